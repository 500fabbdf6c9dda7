"""Documents to windows of token ids: the same cut for calibration, search, selection and test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ffp.core.errors import ArtifactError, ConfigError

SEPARATOR = "\n\n"


def read_documents(path: Path) -> list[str]:
    """The documents of a fetched text, in the file's order; ArtifactError if it is missing or damaged."""
    try:
        return [str(json.loads(line)["text"]) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Run `ffp asset text` for it.") from error
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. Delete its folder and run `ffp asset text` again.") from error


def token_windows(tokenizer: Any, documents: list[str], *, context: int, windows: int, name: str) -> torch.Tensor:
    """The first windows of a text, none overlapping another: (windows, context) int64 token ids.

    Documents are joined by an empty line and tokenised as one text without special tokens, the way perplexity is
    reported for WikiText; what is left at the end is dropped. windows: 0 for all there are. name: what the text is
    called in an error. Raises ConfigError if the text has fewer windows than asked for, or none.
    """
    text = SEPARATOR.join(documents)
    ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    available = len(ids) // context
    if available < max(windows, 1):
        wanted = f"{windows} windows" if windows else "one window"
        raise ConfigError(
            f"the {name} has {len(ids)} tokens, {available} windows of {context}: fewer than {wanted}. "
            "Lower the number of windows or the context, or name a longer text."
        )
    count = windows or available
    return torch.tensor(ids[: count * context], dtype=torch.int64).reshape(count, context)
