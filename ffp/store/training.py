"""A training on disk: its state, replaced as a whole every few steps, so that a killed one goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ffp.core.errors import ArtifactError
from ffp.store.files import digest
from ffp.store.schemas import TRAINING, TrainingOrigin


class FileTraining:
    """The last state of a training, in a file."""

    def __init__(self, path: Path, identity: Any):
        """Names the file.

        Args:
            path: The file; it is created by the first state.
            identity: Plain data that says what the training belongs to (settings, digests of the inputs). A state of
                another identity counts for nothing, since it is of another model or text.
        """
        self.path, self._origin = path, TrainingOrigin(identity=digest(identity))

    def load(self) -> dict[str, npt.NDArray[Any]] | None:
        """Returns the last state; None where there is none, or a damaged one."""
        if not self.path.exists():
            return None
        try:
            arrays, origin = TRAINING.read(self.path, sealed=True)
        except ArtifactError:
            return None
        return arrays if origin == self._origin else None

    def save(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replaces the last state.

        Raises:
            FfpError: The disk is full or the file cannot be written.
        """
        TRAINING.write(self.path, arrays, self._origin)

    def remove(self) -> None:
        """Deletes the file, at the end of the training."""
        self.path.unlink(missing_ok=True)
