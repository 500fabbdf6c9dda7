"""Which files of a cell were made under other settings, or from other files, than the grid has now."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffp.config import Cell, Experiment
from ffp.store import schemas
from ffp.store.digests import calibration_digest
from ffp.store.files import sha256
from ffp.store.identity import changed_settings
from ffp.store.kinds import TensorFile
from ffp.store.layout import CellFiles, Layout
from ffp.store.schemas import AllocationFile, Provenance, ScoresFile


class Staleness:
    """Looks at the cells of a grid; what cells of a model share is read once.

    Files that are not here are passed over: results without their masks or calibration are as good as with them.
    """

    def __init__(self, experiment: Experiment):
        self.experiment, self.layout = experiment, Layout.from_grid(experiment.grid)
        self.calibration = functools.cache(self._calibration)

    def notes(
        self, cell: Cell, files: CellFiles, allocation: AllocationFile | None, scores: ScoresFile | None
    ) -> Iterator[str]:
        """Yields a sentence for each stale file of a cell.

        Raises:
            ArtifactError: One of them is damaged.
        """
        masks, recovered = _origin(schemas.MASKS, files.masks), _origin(schemas.UPDATES, files.recovered)
        found = (
            ("allocate", files.allocation, allocation and allocation.settings),
            ("apply", files.masks, masks and masks.get("settings")),
            ("recover", files.recovered, recovered and recovered.get("settings")),
            ("evaluate", files.scores, scores and scores.settings),
        )
        for step, path, settings in found:
            if settings and (changed := changed_settings(self.experiment, step, cell, settings)):
                yield _other_settings(path, changed)
        if allocation is not None:
            changed, digest = self.calibration(cell.model)
            if changed:
                yield _other_settings(self.layout.calibration(cell.model).stats, changed)
            for path, origin in ((files.allocation, allocation.provenance), (files.masks, masks)):
                if digest and origin and origin.get("calibration") not in (None, digest):
                    yield f"{path.name} was made from another calibration than the one that is here: run it again"
        if masks and files.allocation.exists() and masks.get("allocation") != sha256(files.allocation):
            yield f"{files.masks.name} was made from another {files.allocation.name}: run it again"
        late = scores and masks and files.masks.stat().st_mtime > files.scores.stat().st_mtime  # else not read whole
        if scores and late and scores.provenance.get("masks") != sha256(files.masks):
            yield f"{files.scores.name} was made from another {files.masks.name}: run it again"

    def _calibration(self, model: str) -> tuple[list[str], str | None]:
        """Settings of a model's calibration that were others, and its digest; None where it is not here."""
        files = self.layout.calibration(model)
        origin = _origin(schemas.STATS, files.stats)
        if origin is None or not files.tokens.exists():
            return [], None
        settings, cell = origin.get("settings"), Cell.dense_of(model)
        changed = changed_settings(self.experiment, "calibrate", cell, settings) if settings else []
        return changed, calibration_digest(files.folder)


def _origin(kind: TensorFile[Any], path: Path) -> Provenance | None:
    if not path.exists():
        return None
    provenance: Provenance = kind.read_origin(path).provenance
    return provenance


def _other_settings(path: Path, changed: list[str]) -> str:
    names = ", ".join(changed)
    return f"{path.name} was made with other settings than the configuration has now ({names}): run it again"
