"""Whether a disturbed grid ended like an undisturbed one: the same artifacts and, but for what was measured, report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ffp import report
from ffp.config import Experiment
from ffp.store.schemas import CostFile, ScoresFile

EXACT = (
    "allocation.json",
    "trace.parquet",
    "answers.json",
    "masks.safetensors",
    "updates.safetensors",
    "policy.safetensors",
)
TEMPORARY = ("*.partial", ".*.old", "journal.txt", "recover.state.safetensors", ".snakemake/incomplete/*")
UNMEASURED = {"wall_s": 0.0, "earlier_s": 0.0, "peak_mem_bytes": 0}


def rest(folder: Path) -> None:
    """Sets measured seconds and bytes of memory to zero in every file below a folder."""
    for path in folder.rglob("*.cost.json"):
        CostFile.read(path).model_copy(update=UNMEASURED).write(path)
    for path in folder.rglob("scores.json"):
        scores = ScoresFile.read(path)
        scores.model_copy(update={"cost": scores.cost.model_copy(update=UNMEASURED)}).write(path)


def leftovers(folder: Path) -> list[str]:
    """Temporary files below a folder: of killed writers, and of searches, trainings and jobs under way."""
    found = (path for pattern in TEMPORARY for path in folder.rglob(pattern))
    return sorted(str(path.relative_to(folder)) for path in found)


def rested_report(folder: Path, scratch: Path) -> dict[str, bytes]:
    """Every file of the report of a grid whose measured seconds and bytes of memory are all set to zero."""
    for name in ("config", "data/calibration", "results/cells"):
        shutil.copytree(folder / name, scratch / name)
    rest(scratch)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scratch)
        out = Path("results/report")
        report.build(Experiment(Path("config/grid.yaml")), out)
        return {path.name: path.read_bytes() for path in out.iterdir()}


def differences(one: Path, other: Path, scratch: Path) -> list[str]:
    """The artifacts and files of the report that two runs of a grid do not share, byte by byte."""
    found = []
    names: list[dict[str, Any]] = []
    for folder in (one, other):
        cells = folder / "results/cells"
        files = [path for name in EXACT for path in cells.rglob(name)]
        names.append({str(path.relative_to(cells)): path for path in files})
    for name in sorted(set(names[0]) | set(names[1])):
        pair = [side.get(name) for side in names]
        if None in pair or pair[0].read_bytes() != pair[1].read_bytes():  # type: ignore[union-attr]
            found.append(name)
    reports = [rested_report(folder, scratch / side) for folder, side in ((one, "one"), (other, "other"))]
    names_ = sorted(set(reports[0]) | set(reports[1]))
    return found + [name for name in names_ if reports[0].get(name) != reports[1].get(name)]
