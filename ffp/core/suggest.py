"""Near matches of a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence: near matches of `name`, or all known names if none is near."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {', '.join(matches)}?" if matches else f"known: {', '.join(names)}."
