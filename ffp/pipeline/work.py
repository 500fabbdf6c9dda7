"""What a killed `ffp prune` leaves behind, so that the same command goes on where it was."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ffp import api
from ffp.measure.journal import Journal
from ffp.measure.recovery import TrainingState
from ffp.models.prunable import PrunableModel
from ffp.pipeline.steps import read_calibration, write_calibration
from ffp.store import schemas
from ffp.store.files import digest
from ffp.store.journal import FileJournal
from ffp.store.layout import CalibrationFiles, CellFiles
from ffp.store.provenance import provenance
from ffp.store.training import FileTraining

log = logging.getLogger("ffp")


def _size(folder: Path) -> int:
    """Bytes of all files in a folder, but for those that a run removes meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


class Work:
    """Keeps finished parts of one pruning in a folder, or nowhere."""

    def __init__(self, folder: Path | None, identity: Any = None):
        """Opens a folder beside the result.

        Args:
            folder: Its name begins that of the folder; None keeps nothing.
            identity: Plain data on which every number depends. Parts that belong to other data are left alone.
        """
        self._beside = folder
        self.folder = folder and folder.with_name(f"{folder.name}-{digest(identity)}")
        self._identity = identity

    def name_others(self) -> None:
        """Logs one line about folders of earlier runs with other options: nobody removes them, and they can be large.

        Each holds up to all Gram matrices of the model.
        """
        if self._beside is None:
            return
        found = sorted(self._beside.parent.glob(f"{glob.escape(self._beside.name)}-*"))
        if others := [path for path in found if path != self.folder and path.is_dir()]:
            shown = ", ".join(f"{path} ({_size(path) / 1e6:,.1f} MB)" for path in others)
            them = "it" if len(others) == 1 else "them"
            log.warning(
                "runs with other options that did not end left %s: delete %s if you don't go on with %s",
                shown, them, them,
            )  # fmt: skip

    def calibration(self, prunable: PrunableModel, compute: Callable[[], api.Calibration]) -> api.Calibration:
        """Returns the calibration that is kept, or computes and keeps it."""
        if self.folder is None:
            return compute()
        if not CalibrationFiles(self.folder).stats.exists():  # written last
            write_calibration(CalibrationFiles(self.folder), compute(), provenance())
        return read_calibration(prunable, self.folder, grams=CalibrationFiles(self.folder).grams.exists())

    def perplexity(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns a perplexity that is kept, or computes and keeps it."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.json"
        if (kept := schemas.PerplexityFile.read_if_there(path)) is None:
            kept = schemas.PerplexityFile.model_validate(compute())
            kept.write(path)
        return kept.model_dump(mode="json")

    @property
    def journal(self) -> Journal | None:
        """The journal of the search."""
        return None if self.folder is None else FileJournal(CellFiles(self.folder).journal, self._identity)

    @property
    def training(self) -> TrainingState | None:
        """The state of the recovery."""
        return None if self.folder is None else FileTraining(CellFiles(self.folder).training, self._identity)

    def remove(self) -> None:
        """Deletes what was kept, once the result is saved."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
