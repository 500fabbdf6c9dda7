"""The journal of a search on disk: every measurement is kept the moment it is made.

A search is a deterministic function of its seed and its losses. A killed search that starts again runs through the
same decisions, reads losses from the journal instead of running the model, and ends with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffp.core.errors import FfpError
from ffp.store.files import digest, sealed_line, sealed_lines, write_text

log = logging.getLogger("ffp")


class FileJournal:
    """Append-only file of measurements, one line each with its checksum; a damaged tail is dropped."""

    def __init__(self, path: Path, identity: Any):
        """Opens the journal at `path`, or an empty one.

        Args:
            path: The file; it is created by the first measurement.
            identity: Plain data that says what the measurements belong to (settings, digests of the inputs). A
                journal of another identity is discarded, since its losses are of another model or text.
        """
        self.path = path
        self._head = {"key": "identity", "values": [digest(identity)]}
        lines = sealed_lines(path)
        if not lines or lines[0] != self._head:
            lines = [self._head]
        self._known = {line["key"]: line for line in lines[1:]}
        text = "".join(sealed_line(line) for line in lines)
        if path.exists() and path.read_bytes() != text.encode():  # of another identity, or its tail is damaged
            write_text(path, text)
        if self._known:
            log.info("resuming: %d measurements in %s", len(self._known), path.name)

    def find(self, key: str) -> dict[str, Any] | None:
        """Returns the measurement of that key, if an earlier attempt made it: its "values" and seconds "s"."""
        return self._known.get(key)

    def add(self, key: str, values: Sequence[float], seconds: float, *, tokens: int) -> None:
        """Records a measurement at once.

        Args:
            key: What was measured; keys of the selection text begin with "selection:".
            values: The result.
            seconds: Time that it took.
            tokens: Tokens that it forwarded; a backward counts as two forwards.

        Raises:
            FfpError: The disk is full or the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as stream:
                if stream.tell() == 0:
                    stream.write(sealed_line(self._head))
                stream.write(sealed_line({"key": key, "values": list(values), "s": seconds, "tokens": tokens}))
        except OSError as error:
            raise FfpError(f"cannot write {self.path}: {error.strerror}. Free the disk and start again.") from error

    def remove(self) -> None:
        """Deletes the file, at the end of the search."""
        self.path.unlink(missing_ok=True)


def measurements(path: Path) -> list[dict[str, Any]]:
    """Returns the measurements in a journal, in the order they were made; none where there is no file."""
    return sealed_lines(path)[1:]
