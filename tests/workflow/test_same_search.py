"""Cells that differ in what follows the search make it once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ffp import cli
from ffp.config import Cell, Experiment
from ffp.store.layout import Layout
from ffp.store.schemas import AllocationFile, CostFile
from tests.helpers import tiny

METHODS = ["fastforward-guided", "guided-ridge", "guided-narrow", "owl", "owl-ridge"]
VARIANTS = {
    "guided-ridge": {"use": "fastforward-guided", "compensate": "ridge"},
    "guided-narrow": {"use": "fastforward-guided", "params": {"spread": 0.1}},
    "owl-ridge": {"use": "owl", "compensate": "ridge"},
}
FIRST, SECOND = (Cell("tiny", "structured", "0.30", method, 0) for method in METHODS[:2])


def write(folder: Path, **keys: object) -> Experiment:
    """The tiny grid with these methods and keys."""
    file = folder / "config/grid.yaml"
    body = yaml.safe_load(file.read_text()) | {"methods": METHODS, "variants": VARIANTS, **keys}
    file.write_text(yaml.safe_dump(body))
    return Experiment(file)


def test_the_same_search_is_an_earlier_one_with_equal_settings(tmp_path):
    tiny.configure(tmp_path)
    experiment = write(tmp_path)
    found = {cell.method: experiment.same_search(cell) for cell in experiment.cells() if cell.seed == 0}
    assert {method: cell for method, cell in found.items() if cell} == {"guided-ridge": FIRST}
    for change in ({"score": "wifv"}, {"keep_blocks": "0"}, {"attention_units": "query-heads"}):
        other = write(tmp_path, variants=VARIANTS | {"guided-ridge": VARIANTS["guided-ridge"] | change})
        assert other.same_search(SECOND) is None
    first = write(
        tmp_path, methods=["guided-ridge", "fastforward-guided"], granularities=["structured", "unstructured"]
    )
    assert first.same_search(FIRST) == SECOND
    assert first.same_search(Cell("tiny", "unstructured", "0.30", "fastforward-guided", 0)) is None


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A finished grid of one search with and without compensation."""
    folder = tmp_path_factory.mktemp("same")
    tiny.build(folder)
    write(folder, methods=METHODS[:2])
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    return folder


def test_its_answer_is_taken_and_the_report_is_sound(grid, monkeypatch, capsys):
    monkeypatch.chdir(grid)
    layout = Layout.from_grid(Experiment(Path("config/grid.yaml")).grid)
    first, second = layout.cell(FIRST), layout.cell(SECOND)
    one, two = AllocationFile.read(first.allocation), AllocationFile.read(second.allocation)
    assert two == one.model_copy(update={"cell": two.cell}) and two.cell.method == "guided-ridge"
    assert first.trace.read_bytes() == second.trace.read_bytes()
    assert CostFile.read(first.search_cost) == CostFile.read(second.search_cost)
    assert first.scores.read_bytes() != second.scores.read_bytes()
    assert cli.main(["verify", "--config", "config/grid.yaml"]) == 0, capsys.readouterr().out
    assert "fastforward-guided" not in Path(layout.log("allocate", SECOND.path)).read_text()


@pytest.mark.bad_input
def test_another_search_is_refused(grid, monkeypatch, capsys):
    monkeypatch.chdir(grid)
    write(grid, methods=[METHODS[0], "guided-narrow"])
    other = Cell("tiny", "structured", "0.30", "guided-narrow", 0)
    words = ["--model-dir", "data/models/tiny", "--calibration", "data/calibration/tiny", "--out", "new"]
    words += ["--reuse", f"results/cells/{FIRST.path}"]
    assert cli.main(["allocate", "--config", "config/grid.yaml", "--cell", other.path, *words]) == 3
    assert "allocation.json is not the search of tiny/structured/s0.30/guided-narrow" in capsys.readouterr().err
    assert not Path("new/allocation.json").exists()
