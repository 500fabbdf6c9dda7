"""Finds out whether a tokenizer begins a text with a beginning-of-sequence token (BOS), and where one is put."""

from __future__ import annotations

from typing import Any

from ffp.config.bos import IN_WORDS, PlacedBos
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

PROBE = "a"


def adds_bos(tokenizer: Any) -> bool:
    """Returns whether a tokenizer of transformers puts its BOS before a text that it encodes."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(encode(tokenizer, PROBE, special=True)[:1] == [tokenizer.bos_token_id])


def place_bos(tokenizer: Any, asked: str) -> PlacedBos:
    """Returns where the windows of a text have a BOS.

    Args:
        tokenizer: A tokenizer of transformers.
        asked: "auto", or one of the answers.

    Returns:
        "always", at the start of each window; "once", at the start of the whole text, as the code of Wanda and
        SparseGPT tokenises; or "never". "auto" gives "always" for a tokenizer that adds a BOS, else "never".

    Raises:
        ConfigError: A BOS is asked for, and the tokenizer has none.
    """
    match asked:
        case "auto":
            return "always" if adds_bos(tokenizer) else "never"
        case "never":
            return "never"
        case "always" | "once":
            if tokenizer.bos_token_id is None:
                raise ConfigError(f"bos is {asked!r}, but the tokenizer has no BOS token. Give auto or never.")
            return asked
        case _:
            raise ConfigError(f"bos is {asked!r}: {did_you_mean(asked, IN_WORDS)}")


def encode(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """Returns the token ids of a text; special: with the tokens that the tokenizer puts around it."""
    found = tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)
    return list(found["input_ids"])
