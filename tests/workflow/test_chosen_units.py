"""A search that chooses single units: its choice lies beside the allocation, the masks follow it, edits are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError
from ffp.pipeline import steps
from ffp.store import schemas
from ffp.store.layout import CellFiles, Layout
from tests.helpers.verify import AllButTheReport

METHODS = ["grasprune", "grasprune-bias", "grasprune-ridge"]


def run(experiment: Experiment, cell: Cell) -> CellFiles:
    """All steps of a cell, as the workflow's rules call them."""
    layout = Layout.from_grid(experiment.grid)
    files, model = layout.cell(cell), layout.model(cell.model).folder
    calibration, text = layout.calibration(cell.model).folder, layout.text("docs").folder
    same = experiment.same_search(cell)
    if same is None:
        steps.allocate(experiment, cell, model, calibration, files.folder)
    else:
        steps.reuse_allocation(experiment, cell, model, calibration, layout.cell(same).folder, files.folder)
    steps.apply(experiment, cell, model, calibration, files.allocation, files.folder)
    steps.evaluate(experiment, cell, model, [text], None, files.folder, files.scores)
    return files


@pytest.fixture(scope="module")
def finished_cells(tiny_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny grid with three cells more: the second has the search of the first, the third one without scales."""
    folder = tmp_path_factory.mktemp("chosen")
    for name in ("config", "data", "results"):
        shutil.copytree(tiny_grid / name, folder / name)
    file = folder / "config/grid.yaml"
    body = yaml.safe_load(file.read_text())
    body["variants"] |= {f"grasprune-{kind}": {"use": "grasprune", "compensate": kind} for kind in ("bias", "ridge")}
    file.write_text(yaml.safe_dump(body | {"methods": [*body["methods"], *METHODS]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = Experiment(Path("config/grid.yaml"))
        for cell in (cell for cell in experiment.cells() if cell.method in METHODS):
            run(experiment, cell)
    return folder


@pytest.fixture
def grid(finished_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A copy of it, which is the working directory."""
    shutil.copytree(finished_cells, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Experiment(Path("config/grid.yaml"))


def files_of(grid: Experiment, method: str) -> CellFiles:
    return Layout.from_grid(grid.grid).cell(next(cell for cell in grid.cells() if cell.method == method))


def test_the_cells_are_sound_and_keep_the_units_that_were_chosen(grid: Experiment) -> None:
    assert AllButTheReport(grid).run() == []
    plain, bias, ridge = (files_of(grid, method) for method in METHODS)
    assert plain.units.read_bytes() == bias.units.read_bytes()
    body = schemas.AllocationFile.read(plain.allocation)
    assert "units.safetensors" in body.files
    for files in (plain, bias, ridge):
        units, masks = (
            kind.read(file)[0] for kind, file in ((schemas.UNITS, files.units), (schemas.MASKS, files.masks))
        )
        assert all(np.array_equal(kept, np.flatnonzero(units[name])) for name, kept in masks.items())
        assert all(np.isin(factors, (0, 1)).all() for factors in units.values()) == (files is ridge)
    updates, _ = schemas.UPDATES.read(plain.updates)
    assert len(updates) == 6 and all(name.endswith(("o_proj.weight", "down_proj.weight")) for name in updates)
    points = schemas.AnswersFile.read(plain.answers).points
    assert not points or points[-1].keep == body.keep


def test_units_that_were_edited_are_found_and_not_applied(grid: Experiment) -> None:
    files = files_of(grid, "grasprune")
    units, origin = schemas.UNITS.read(files.units)
    name = "block01.ffn"
    schemas.UNITS.write(files.units, {**units, name: units[name][::-1].copy()}, origin)
    found = "\n".join(AllButTheReport(grid).run())
    assert f"{files.units}: sha256" in found and f"without the units of {files.units.name}" in found
    prunable = steps.load_prunable(grid, "tiny", Layout.from_grid(grid.grid).model("tiny").folder, weights=False)
    with pytest.raises(ArtifactError, match=r"units\.safetensors is not what the search beside it wrote\. Allocate"):
        steps.read_allocation(files.allocation, prunable)
    files.units.unlink()
    with pytest.raises(ArtifactError, match=r"units\.safetensors is not what the search beside it wrote\. Allocate"):
        steps.read_allocation(files.allocation, prunable)
    assert any(str(files.units) in fault for fault in AllButTheReport(grid).run())
