"""Near matches of a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 50  # names in an error, at most


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence: near matches of `name`, or all known names if none is near and they are few."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if not matches and len(names) > LISTED:
        return f"none of the {len(names)} names is near it."
    return f"did you mean {', '.join(matches)}?" if matches else f"known: {', '.join(names)}."
