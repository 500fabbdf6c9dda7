"""What a search needs of a journal: measurements kept the moment they are made, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class Journal(Protocol):
    """Measurements by key; ffp.store.journal keeps them in a file."""

    def find(self, key: str) -> Mapping[str, Any] | None:
        """Returns the measurement of that key if an earlier attempt made it: "values" and seconds "s"."""
        ...

    def add(self, key: str, values: Sequence[float], seconds: float, *, tokens: int) -> None:
        """Records a measurement at once; see ffp.store.journal.FileJournal.add."""
        ...


class MemoryJournal:
    """A journal in memory.

    `find` answers from the entries it was made with, not from those added since: an attempt that found its own
    measurements would count their seconds twice.

    Attributes:
        entries: What was added, each {"key", "values", "s", "tokens"}.
    """

    def __init__(self, known: Iterable[Mapping[str, Any]] = ()):
        self._known = {str(entry["key"]): entry for entry in known}
        self.entries: list[Mapping[str, Any]] = []

    def find(self, key: str) -> Mapping[str, Any] | None:
        """Returns the measurement of that key if an earlier attempt made it."""
        return self._known.get(key)

    def add(self, key: str, values: Sequence[float], seconds: float, *, tokens: int) -> None:
        """Records a measurement."""
        self.entries.append({"key": key, "values": list(values), "s": seconds, "tokens": tokens})
