"""Counts the bytes of text that predicted tokens spell, by which losses compare across tokenizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ffp.measure.bos import place_bos
from ffp.measure.windows import SEPARATOR

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of one byte, as SentencePiece calls it


def predicted_bytes(
    tokenizer: Any, documents: Sequence[str], *, context: int, windows: int, bos: str = "auto"
) -> int | None:
    """Returns how many UTF-8 bytes of a text the predicted tokens of its first windows spell.

    A token spells what stands between the end of the token before it and its own end, so that all tokens together spell
    the text exactly, whatever a tokenizer normalises. The first token of a window is not predicted and not counted. A
    BOS spells nothing, and neither does the blank that SentencePiece puts before a text.

    Args:
        tokenizer: A tokenizer of transformers.
        documents: The text, as ffp.measure.windows.token_windows takes it.
        context: Tokens of a window.
        windows: How many windows there are.
        bos: As token_windows takes it.

    Returns:
        The number; None if it is 0, or for a tokenizer that does not say where its tokens stand in the text (one that
        is not "fast").
    """
    if not tokenizer.is_fast:
        return None
    placed = place_bos(tokenizer, bos)
    ids, places = byte_places(tokenizer, SEPARATOR.join(documents))
    # a window holds `step` tokens of the text; the first one is predicted only behind a BOS of the window's own
    step, unpredicted = (context - 1, 0) if placed == "always" else (context, 1)
    begin = int(placed != "never" and ids[:1] == [tokenizer.bos_token_id]) - int(placed == "once")
    starts = [begin + step * window for window in range(windows)]
    return int(sum(places[start + step] - places[start + unpredicted] for start in starts)) or None


def byte_places(tokenizer: Any, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Returns a text's n token ids, and the bytes before each of them and before the end, (n + 1,).

    Where a character lies in several tokens, these say how many of its bytes each of them spells: a token of byte-level
    BPE has a letter for each byte, and SentencePiece a token for each byte.
    """
    found = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    ids, offsets = list(found["input_ids"]), np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    size = 1 + sum((codes >= limit).astype(np.int64) for limit in (0x80, 0x800, 0x10000))  # bytes of each character
    before = np.concatenate([[0], np.cumsum(size)])
    ends = np.maximum.accumulate(offsets[:, 1])
    places = np.concatenate([[0], before[ends]])
    for token in np.flatnonzero(offsets[1:, 0] < ends[:-1]) + 1:  # begins within a character
        name = tokenizer.convert_ids_to_tokens(ids[token - 1])
        places[token] = min(places[token], places[token - 1] + (1 if BYTE.fullmatch(name) else len(name)))
    return ids, places
