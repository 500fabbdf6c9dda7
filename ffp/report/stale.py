"""Which files of a cell were made under other settings, or from other files, than the grid has now."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ffp.config import Cell, Experiment
from ffp.store import schemas
from ffp.store.digests import GRAMS_SEAL, calibration_digest, cut_files
from ffp.store.files import sha256
from ffp.store.identity import changed_settings
from ffp.store.kinds import TensorFile
from ffp.store.layout import AssetFiles, CellFiles, Layout
from ffp.store.schemas import AllocationFile, AssetFile, Provenance, ScoresFile

Inputs = Mapping[str, tuple[str, str | None]]  # what an input is called, and its digest, by its key in provenance
HASHED = 100_000_000  # bytes of the largest file that is hashed, 0.1 to 0.3 s


class Staleness:
    """Looks at the cells of a grid; what cells share is read once.

    Files that are not here are passed over: results without their masks, calibration or assets are as good as with
    them. No date counts, since a copy has another one, and the clocks of nodes differ.
    """

    def __init__(self, experiment: Experiment):
        self.experiment, self.layout = experiment, Layout.from_grid(experiment.grid)
        self.calibration = functools.cache(self._calibration)
        self.asset = functools.cache(_asset_digest)

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
        yield from self._of_inputs(cell, files, allocation, masks, recovered, scores)
        if masks and files.allocation.exists() and masks.get("allocation") != sha256(files.allocation):
            yield f"{files.masks.name} was made from another {files.allocation.name}: run it again"
        cut = cut_files(self.experiment, cell, files)
        for path, origin in ((files.recovered, recovered), (files.scores, scores and scores.provenance)):
            for name, (kind, source) in cut.items():
                if origin and source != path and _is_another(origin, name, kind, source):
                    yield f"{path.name} was made from another {source.name}: run it again"

    def _of_inputs(
        self, cell: Cell, files: CellFiles, allocation: AllocationFile | None, masks: Provenance | None,
        recovered: Provenance | None, scores: ScoresFile | None,
    ) -> Iterator[str]:  # fmt: skip
        """Yields a sentence for each file that another model, text, set of tasks or calibration is behind."""
        model = {"model": ("model", self.asset(self.layout.model(cell.model)))}
        if allocation is not None:
            notes, calibration = self.calibration(cell.model)
            yield from notes
            fitted = {**model, **calibration}
            yield from _others(files.allocation, allocation.provenance, fitted)
            yield from _others(files.masks, masks, fitted)
        seen = self._text(self.experiment.grid.calibration_text)
        yield from _others(files.recovered, recovered, {**model, "text": seen})
        if scores is not None:
            texts = {f"text {name}": self._text(name) for name in scores.ppl_further}
            texts["text"] = self._text(scores.ppl.text or self.experiment.grid.test_texts[0])
            tasks = self.experiment.tasks_name
            known = {"tasks": ("set of tasks", self.asset(self.layout.tasks(tasks)))} if tasks else {}
            yield from _others(files.scores, scores.provenance, {**model, **texts, **known})

    def _text(self, name: str) -> tuple[str, str | None]:
        """What a note calls a text, and its digest."""
        return f"text {name}", self.asset(self.layout.text(name))

    def _calibration(self, model: str) -> tuple[list[str], Inputs]:
        """The notes of a model's calibration, and what it is to those made from it; nothing where it is not here."""
        files = self.layout.calibration(model)
        origin = _origin(schemas.STATS, files.stats)
        if origin is None or not files.tokens.exists():
            return [], {}
        settings, cell = origin.get("settings"), Cell.dense_of(model)
        changed = changed_settings(self.experiment, "calibrate", cell, settings) if settings else []
        inputs = {"model": ("model", self.asset(self.layout.model(model)))}
        inputs["text"] = self._text(self.experiment.grid.calibration_text)
        notes = [_other_settings(files.stats, changed)] if changed else []
        seal = schemas.GRAMS.read_seal(files.grams) if files.grams.exists() else None
        known = {"calibration": ("calibration", calibration_digest(files.folder)), GRAMS_SEAL: (files.grams.name, seal)}
        return [*notes, *_others(files.stats, origin, inputs)], known


def _asset_digest(files: AssetFiles) -> str | None:
    """Returns the digest that the manifest of an asset gives; None where it is not here."""
    manifest = AssetFile.read_if_there(files.manifest)
    return manifest.digest if manifest else None


def _others(path: Path, origin: Provenance | None, inputs: Inputs) -> Iterator[str]:
    """Yields a sentence for each input that is another one now; see Inputs."""
    for key, (what, digest) in inputs.items():
        if origin and digest and origin.get(key) not in (None, digest):
            yield f"{path.name} was made from another {what} than the one that is here: run it again"


def _is_another(origin: Provenance, name: str, kind: TensorFile[Any], source: Path) -> bool:
    """Whether a file that something was made from was made again since, with other content.

    Its seal says it. Something older knows only the sha256 of the file: then large files are left to `ffp verify`.
    """
    if not source.exists():
        return False
    if (seal := origin.get(f"{name} seal")) is not None:
        return bool(seal != kind.read_seal(source))
    return source.stat().st_size <= HASHED and bool(origin.get(name) != sha256(source))


def _origin(kind: TensorFile[Any], path: Path) -> Provenance | None:
    if not path.exists():
        return None
    provenance: Provenance = kind.read_origin(path).provenance
    return provenance


def _other_settings(path: Path, changed: list[str]) -> str:
    names = ", ".join(changed)
    return f"{path.name} was made with other settings than the configuration has now ({names}): run it again"
