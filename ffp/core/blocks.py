"""Blocks of a model in a few characters: "0-3,-2:" are the first four and the last two."""

from __future__ import annotations

import re

from ffp.core.errors import ConfigError

NUMBER = r"(-?\d{1,6})"
RANGE = re.compile(f"{NUMBER}(?:-{NUMBER})?")
SLICE = re.compile(f"{NUMBER}?:{NUMBER}?")


def parse_blocks(text: str, n_blocks: int) -> frozenset[int]:
    """Returns the blocks that a text names.

    Args:
        text: Parts with commas between them: a number, a range `a-b` that includes both ends, or a slice of Python such
            as `a:` or `:b`. Negative numbers count from the end. Empty for no block.
        n_blocks: Blocks of the model.

    Raises:
        ConfigError: A part is none of these, or names no block or one outside the model; or no block is left to prune.
    """
    found: set[int] = set()
    for part in check_blocks(text):
        named = _named(part, n_blocks)
        if not named:
            raise ConfigError(
                f"{part!r} in keep_blocks {text!r} is empty, or leaves the model's {n_blocks} blocks, which are 0 to "
                f"{n_blocks - 1}. Name some of them."
            )
        found.update(named)
    if len(found) == n_blocks:
        raise ConfigError(f"keep_blocks {text!r} names all {n_blocks} blocks: nothing can be pruned. Leave some out.")
    return frozenset(found)


def check_blocks(text: str) -> list[str]:
    """Returns the parts of a text that names blocks of any model; see parse_blocks.

    Raises:
        ConfigError: One is neither a number nor a range nor a slice, or this is no text.
    """
    if not isinstance(text, str):
        raise ConfigError(f"keep_blocks = {text!r} is no text. Write the blocks as one, e.g. '0-3,-2:'.")
    parts = [part.strip() for part in text.split(",")] if text else []
    for part in parts:
        if not (RANGE.fullmatch(part) or SLICE.fullmatch(part)):
            raise ConfigError(
                f"{part!r} names no blocks. Write numbers, ranges and slices with commas between, e.g. '0-3,-2:'."
            )
    return parts


def _named(part: str, n_blocks: int) -> range:
    """The blocks of one part; none where an end lies outside the model."""
    if closed := RANGE.fullmatch(part):
        first, last = int(closed[1]), int(closed[2] or closed[1])
        inside = -n_blocks <= min(first, last) and max(first, last) < n_blocks
        return range(first % n_blocks, last % n_blocks + 1) if inside else range(0)
    start, stop = (int(end) if end else None for end in part.split(":"))
    inside = all(-n_blocks <= end <= n_blocks for end in (start, stop) if end is not None)
    return range(n_blocks)[start:stop] if inside else range(0)
