"""Cuts documents into windows of token ids: the same way for calibration, search, selection and test."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch

from ffp.core.errors import ConfigError

SEPARATOR = "\n\n"
MARGIN = 8  # tokens


def token_windows(
    tokenizer: Any, documents: Sequence[str], *, context: int, windows: int, name: str, at_most: bool = False
) -> torch.Tensor:
    """Returns the first windows of a text, none overlapping another: token ids, (windows, context) int64.

    Documents are joined by an empty line and tokenised as one text without special tokens, the way perplexity is
    reported for WikiText; what is left at the end is dropped.

    Args:
        tokenizer: A tokenizer of transformers.
        documents: The text.
        context: Tokens of a window; lm-eval calls it max_length, llm-compressor max_seq_length.
        windows: Number of windows, 0 for all there are; llm-compressor calls it num_calibration_samples.
        name: What the text is called in an error.
        at_most: Take fewer windows where the text is shorter.

    Raises:
        ConfigError: The text has fewer windows than asked for, or none.
    """
    text = SEPARATOR.join(documents)
    ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    available = len(ids) // context
    least = 1 if at_most else max(windows, 1)
    if available < least:
        wanted = f"{least} windows" if least > 1 else "one window"
        raise ConfigError(
            f"the {name} has {len(ids)} tokens, {available} windows of {context}: fewer than {wanted}. "
            "Lower the number of windows or the context, or name a longer text."
        )
    count = min(windows, available) or available
    return torch.tensor(ids[: count * context], dtype=torch.int64).reshape(count, context)


def later_windows(
    tokenizer: Any, documents: Sequence[str], *, used_tokens: int, context: int, windows: int, name: str
) -> torch.Tensor:
    """Returns windows of a text behind its first tokens, from documents of which these hold nothing.

    Args:
        tokenizer: A tokenizer of transformers.
        documents: The text.
        used_tokens: How many of its first tokens are used elsewhere, as token_windows cuts them.
        context: Tokens of a window.
        windows: Number of windows, at most.
        name: What the text is called in an error.

    Raises:
        ConfigError: No document is left, or less than one window.
    """
    free = first_free(tokenizer, documents, used_tokens)
    if free >= len(documents):
        raise ConfigError(
            f"no document of the {name} is left for recovery: calibration takes {used_tokens} tokens of its "
            f"{len(documents)} documents. Name a longer text, or calibrate on fewer tokens."
        )
    rest = f"{name} behind the first {used_tokens} tokens"
    return token_windows(tokenizer, documents[free:], context=context, windows=windows, name=rest, at_most=True)


def first_free(tokenizer: Any, documents: Sequence[str], used_tokens: int) -> int:
    """Returns the number of the first document that a text's first tokens do not reach, len(documents) for none.

    The last tokens of some documents can differ from those in the middle of the text, hence the margin.
    """

    def tokens(count: int) -> int:
        text = SEPARATOR.join(documents[:count])
        return len(tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])

    return min(len(documents), bisect_left(range(len(documents) + 1), used_tokens + MARGIN, key=tokens))
