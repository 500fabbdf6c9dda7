"""Cuts documents into windows of token ids: the same way for calibration, search, selection and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ffp.core.errors import ConfigError

SEPARATOR = "\n\n"


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
