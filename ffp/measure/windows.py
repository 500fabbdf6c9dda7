"""Cuts documents into windows of token ids: the same way for calibration, search, selection and test."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch

from ffp.core.errors import ConfigError
from ffp.measure.bos import encode, place_bos

SEPARATOR = "\n\n"
MARGIN = 8  # tokens


def token_windows(
    tokenizer: Any, documents: Sequence[str], *, context: int, windows: int, name: str, at_most: bool = False,
    bos: str = "auto",
) -> torch.Tensor:  # fmt: skip
    """Returns the first windows of a text, none overlapping another: token ids, (windows, context) int64.

    Documents are joined by an empty line and tokenised as one text, the way perplexity is reported for WikiText; what
    is left at the end is dropped.

    A BOS takes one of the positions of a window, which then holds context - 1 tokens of the text: what the model sees
    is never longer than the context, as in lm-eval and llama.cpp. It is the first token, so that it is never predicted,
    and context - 1 tokens of each window are, with it or without. A BOS that the text itself begins with is left out
    first, so that no window begins with two.

    Args:
        tokenizer: A tokenizer of transformers.
        documents: The text.
        context: Tokens of a window; lm-eval calls it max_length, llm-compressor max_seq_length.
        windows: Number of windows, 0 for all there are; llm-compressor calls it num_calibration_samples.
        name: What the text is called in an error.
        at_most: Take fewer windows where the text is shorter.
        bos: Where a BOS is put: "auto", "always", "once" or "never"; see ffp.measure.bos.place_bos.

    Raises:
        ConfigError: The text has fewer windows than asked for, or none; or a BOS is asked for, and there is none.
    """
    ids, begin = _text_ids(tokenizer, documents, place_bos(tokenizer, bos))
    if (step := context - len(begin)) < 1:
        raise ConfigError(f"a context of {context} holds the BOS and nothing of the {name}. Give at least 2.")
    available = len(ids) // step
    least = 1 if at_most else max(windows, 1)
    if available < least:
        wanted = f"{least} windows" if least > 1 else "one window"
        size = f"{context}, with a BOS each" if begin else str(context)
        raise ConfigError(
            f"the {name} has {len(ids)} tokens, {available} windows of {size}: fewer than {wanted}. "
            "Lower the number of windows or the context, or name a longer text."
        )
    count = min(windows, available) or available
    text = torch.tensor(ids[: count * step], dtype=torch.int64).reshape(count, step)
    return torch.cat([torch.tensor(begin, dtype=torch.int64).expand(count, -1), text], dim=1)


def _text_ids(tokenizer: Any, documents: Sequence[str], placed: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and those that begin each window besides."""
    ids, begin = encode(tokenizer, SEPARATOR.join(documents)), [tokenizer.bos_token_id]
    if placed == "never":
        return ids, []
    ids = ids[1:] if ids[:1] == begin else ids
    return (ids, begin) if placed == "always" else (begin + ids, [])


def later_windows(
    tokenizer: Any, documents: Sequence[str], *, used_tokens: int, context: int, windows: int, name: str,
    bos: str = "auto",
) -> torch.Tensor:  # fmt: skip
    """Returns windows of a text behind its first tokens, from documents of which these hold nothing.

    Args:
        tokenizer: A tokenizer of transformers.
        documents: The text.
        used_tokens: How many of its first tokens are used elsewhere, as token_windows cuts them, at most.
        context: Tokens of a window.
        windows: Number of windows, at most.
        name: What the text is called in an error.
        bos: As token_windows takes it.

    Raises:
        ConfigError: No document is left, or less than one window; or a BOS is asked for, and there is none.
    """
    free = first_free(tokenizer, documents, used_tokens)
    if free >= len(documents):
        raise ConfigError(
            f"no document of the {name} is left for recovery: calibration takes {used_tokens} tokens of its "
            f"{len(documents)} documents. Name a longer text, or calibrate on fewer tokens."
        )
    rest = f"{name} behind the first {used_tokens} tokens"
    return token_windows(
        tokenizer, documents[free:], context=context, windows=windows, name=rest, at_most=True, bos=bos
    )


def first_free(tokenizer: Any, documents: Sequence[str], used_tokens: int) -> int:
    """Returns the number of the first document that a text's first tokens do not reach, len(documents) for none.

    The last tokens of some documents can differ from those in the middle of the text, hence the margin.
    """

    def tokens(count: int) -> int:
        return len(encode(tokenizer, SEPARATOR.join(documents[:count])))

    return min(len(documents), bisect_left(range(len(documents) + 1), used_tokens + MARGIN, key=tokens))
