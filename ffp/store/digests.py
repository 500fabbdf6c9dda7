"""Digests by which files name what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError, ConfigError
from ffp.store.files import crc32, digest, sha256
from ffp.store.identity import CODE, changed_settings
from ffp.store.kinds import TensorFile
from ffp.store.layout import AssetFiles, CalibrationFiles, CellFiles, Layout
from ffp.store.provenance import test_keys
from ffp.store.schemas import GRAMS, MASKS, STATS, UPDATES, AllocationFile, AssetFile, Provenance

Digests = dict[str, str | None]
GRAMS_SEAL = "grams seal"  # by which what was made from Gram matrices names them; older results do not


def asset_digest(folder: Path) -> str:
    """Returns the digest of a fetched model, text or set of tasks; ArtifactError if one of its files was changed."""
    files = AssetFiles(folder)
    manifest = AssetFile.read(files.manifest)
    for name, crc in manifest.crc32.items():
        if not (folder / name).is_file() or crc32(folder / name) != crc:
            raise ArtifactError(
                f"{folder / name} is missing, damaged or was edited since it was fetched. Delete "
                f"{files.manifest} and run again: it is fetched anew."
            )
    return manifest.digest


def calibration_digest(folder: Path) -> str:
    """Returns the digest of a calibration, by which results name it."""
    files = CalibrationFiles(folder)
    return digest([sha256(files.tokens), sha256(files.stats)])


def calibration_digests(experiment: Experiment, model: str, folder: Path, *, grams: bool = False) -> Digests:
    """Returns by what results name a calibration, and its Gram matrices if they are read.

    Raises:
        ArtifactError: It was made with other settings than the grid has now, a file is missing, or as check_grams.
    """
    files = CalibrationFiles(folder)
    if names := ", ".join(changed_calibration(experiment, model, folder)):
        raise ArtifactError(
            f"{files.stats} was made with other settings than {experiment.file} has now ({names}). Calibrate again."
        )
    found: Digests = {"calibration": calibration_digest(folder)}
    if grams:
        check_grams(folder)
        found[GRAMS_SEAL] = GRAMS.read_seal(files.grams)
    return found


def changed_calibration(experiment: Experiment, model: str, folder: Path) -> list[str]:
    """Returns the settings of a calibration that were others when it was made; code is none of them."""
    settings = STATS.read_origin(CalibrationFiles(folder).stats).provenance.get("settings")
    changed = changed_settings(experiment, "calibrate", Cell.dense_of(model), settings) if settings else []
    return [key for key in changed if key not in CODE]


def is_of(origin: Provenance, inputs: Mapping[str, str | None]) -> bool:
    """Returns whether a file was made from these inputs; an older one does not name its Gram matrices."""
    unnamed = {GRAMS_SEAL} if origin.get(GRAMS_SEAL) is None else set()
    return all(origin.get(name) == found for name, found in inputs.items() if name not in unnamed)


def check_grams(folder: Path) -> None:
    """Raises ArtifactError where Gram matrices are of another calibration than the one beside them."""
    files, expected = CalibrationFiles(folder), calibration_digest(folder)
    origin = GRAMS.read_origin(files.grams).provenance
    found = origin.get("calibration")
    together = found is None and origin == STATS.read_origin(files.stats).provenance  # as `ffp prune` collects them
    if found != expected and not together:
        raise ArtifactError(
            f"{files.grams} is of the calibration {found}, and the one beside it is {expected}. Delete it and run the "
            "rule grams (`ffp grams`) again."
        )


def test_digests(experiment: Experiment, text_dirs: Sequence[Path]) -> dict[str, str]:
    """Returns the digests of the test texts, as a result's provenance has them.

    Raises:
        ConfigError: There is not one folder for each test text.
        ArtifactError: A file of one of them was changed.
    """
    names = experiment.grid.test_texts
    if len(text_dirs) != len(names):
        raise ConfigError(
            f"{experiment.file} tests on {', '.join(names)}: give --text-dir {len(names)} times, in this order, "
            f"instead of {len(text_dirs)} times."
        )
    return {key: asset_digest(folder) for key, folder in zip(test_keys(names), text_dirs, strict=True)}


def tasks_digest(experiment: Experiment, folder: Path | None) -> str | None:
    """Returns the digest of the fetched tasks; None for a grid without tasks.

    Raises:
        ConfigError: The grid scores tasks and the folder is not given, or the other way round.
        ArtifactError: A file of the folder was changed.
    """
    if experiment.tasks is None:
        if folder is not None:
            raise ConfigError(f"{experiment.file} scores no tasks: leave --tasks-dir out, or add `tasks` to the grid.")
        return None
    if folder is None:
        usual = Layout.from_grid(experiment.grid).tasks(str(experiment.tasks_name)).folder
        raise ConfigError(f"{experiment.file} scores tasks: give --tasks-dir with their folder, such as {usual}.")
    return asset_digest(folder)


def cut_digests(experiment: Experiment, cell: Cell, folder: Path | None) -> dict[str, str | None]:
    """Returns the digests of a cell's masks and updates; None for those of the dense model.

    Raises:
        ConfigError: The cell is pruned, and the folder is not given.
        ArtifactError: The folder is another cell's, or its masks were made with other settings than the grid has now.
    """
    if cell.is_dense:
        return {"masks": None, "updates": None}
    if folder is None:
        raise ConfigError(f"{cell.path} is a pruned model: give --cut with the folder of its masks and updates.")
    files = CellFiles(folder)
    if files.allocation.exists():
        check_cell(cell, AllocationFile.read(files.allocation), files.allocation)
    settings = MASKS.read_origin(files.masks).provenance.get("settings") or {}
    changed = [key for key in changed_settings(experiment, "apply", cell, settings) if key not in CODE]
    if settings and changed:
        names = ", ".join(changed)
        raise ArtifactError(
            f"{files.masks} was made with other settings than {experiment.file} has now ({names}). Apply again."
        )
    return {"masks": sha256(files.masks), "updates": sha256(files.updates)}


def recovered_digest(experiment: Experiment, cell: Cell, folder: Path | None) -> dict[str, str]:
    """Returns the digest of a cell's recovered weights; nothing for cells without."""
    if folder is None or not experiment.recover(cell).wanted:
        return {}
    return {"recovered": sha256(CellFiles(folder).recovered)}


def cut_files(experiment: Experiment, cell: Cell, files: CellFiles) -> dict[str, tuple[TensorFile[Any], Path]]:
    """Returns what a cell is scored with beside its model, by name: masks, updates and recovered weights."""
    found: dict[str, tuple[TensorFile[Any], Path]] = {}
    if not cell.is_dense:
        found = {"masks": (MASKS, files.masks), "updates": (UPDATES, files.updates)}
    return found | ({"recovered": (UPDATES, files.recovered)} if experiment.recover(cell).wanted else {})


def score_digests(
    experiment: Experiment, cell: Cell, tasks_dir: Path | None, cut_dir: Path | None
) -> dict[str, str | None]:
    """Returns the digests of tasks, masks, updates and recovered weights, as scores.json names them.

    Seals stand beside them, by which the report knows the files without reading gigabytes again.

    Raises:
        ConfigError: A folder is missing that the cell needs, or a set of tasks is given that the grid does not score.
        ArtifactError: A file was changed, is another cell's, or was made with other settings than the grid has now.
    """
    found = {"tasks": tasks_digest(experiment, tasks_dir), **cut_digests(experiment, cell, cut_dir)}
    found |= recovered_digest(experiment, cell, cut_dir)
    files = cut_files(experiment, cell, CellFiles(cut_dir)) if cut_dir else {}
    return found | {f"{name} seal": kind.read_seal(path) for name, (kind, path) in files.items()}


def check_cell(cell: Cell, found: AllocationFile, path: Path) -> None:
    """Raises ArtifactError where an allocation is another cell's."""
    theirs = found.cell.model_dump()
    if theirs != cell.as_dict():
        own = Cell(**{**theirs, "sparsity": f"{theirs['sparsity']:.2f}"}).path
        raise ArtifactError(f"{path} is of {own}, not of {cell.path}. Give the folder of this cell.")
