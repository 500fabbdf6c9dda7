"""Measurements kept on disk the moment they are made, so that a killed search goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffp.core.errors import FfpError
from ffp.store.files import digest, sealed_line, sealed_lines

log = logging.getLogger("ffp")


class Journal:
    """Append-only record of measurements, one line each with its checksum; a damaged tail is dropped.

    identity: what the measurements belong to (settings, digests of the inputs). A journal of another identity is
    discarded, since its losses are of another model or text.
    """

    def __init__(self, path: Path | None, identity: Any = None):
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        self._head = {"key": "identity", "values": [digest(identity)]}
        lines = sealed_lines(path)
        if not lines or lines[0] != self._head:
            lines = [self._head]
        self._known = {line["key"]: line for line in lines[1:]}
        if path.exists():
            path.write_text("".join(sealed_line(line) for line in lines))
        if self._known:
            log.info("resuming: %d measurements in %s", len(self._known), path.name)

    def find(self, key: str) -> dict[str, Any] | None:
        """The measurement of that key, if an earlier attempt has made it."""
        return self._known.get(key)

    def add(self, key: str, values: Sequence[float], seconds: float) -> None:
        """Record a measurement at once; the first one makes the file."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as stream:
                if stream.tell() == 0:
                    stream.write(sealed_line(self._head))
                stream.write(sealed_line({"key": key, "values": list(values), "s": seconds}))
        except OSError as error:
            raise FfpError(f"cannot write {self.path}: {error.strerror}. Free the disk and start again.") from error
