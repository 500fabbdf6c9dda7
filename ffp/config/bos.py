"""Where a beginning-of-sequence token (BOS) stands in the windows of a text: what may be asked for, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

PlacedBos = Literal["always", "once", "never"]
Bos = Literal["auto", "always", "once", "never"]

IN_WORDS: Mapping[str, str] = {
    "auto": "a BOS in each window if the tokenizer adds one",
    "always": "a BOS in each window",
    "once": "a BOS at the start of the text",
    "never": "no BOS",
}
