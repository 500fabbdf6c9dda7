"""Readers of grids, on the cells of the tiny grid and on runs made up."""

import json
import sys

import numpy as np
import pytest

from experiments import ablation, baselines, race, reading, units
from ffp.config import Experiment
from ffp.store.layout import Layout
from ffp.store.schemas import ScoresFile


@pytest.fixture
def tiny(tiny_grid, monkeypatch):
    monkeypatch.chdir(tiny_grid)
    return Experiment(tiny_grid / "config/grid.yaml")


def read(module, monkeypatch, out):
    monkeypatch.setattr(sys, "argv", ["reader", "--config", "config/grid.yaml", "--out", str(out)])
    module.main()
    return json.loads(out.read_text())


def test_a_finished_grid_has_no_missing_cells(tiny):
    results = reading.read_grid(tiny)
    assert [result.cell for result in results.done] == list(tiny.cells())
    assert results.missing == []
    dense, owl = results.done[:2]
    assert dense.allocation is None and owl.allocation is not None
    expected = ScoresFile.read(Layout.from_grid(tiny.grid).cell(dense.cell).scores).ppl
    assert np.exp(dense.losses.mean()) == pytest.approx(expected.value)


def test_a_grid_without_cells_is_refused_with_the_command_that_fills_it(tiny, tmp_path):
    with pytest.raises(SystemExit, match=r"no cell of .*grid\.yaml is finished\. Run `make demo GRID="):
        reading.read_grid(tiny.at(results=tmp_path))


def test_the_race_is_read_from_the_searches_answers(tiny, monkeypatch, tmp_path):
    body = read(race, monkeypatch, tmp_path / "race.json")
    runs = {run["method"]: run for run in body["runs"]}
    budget = tiny.grid.search.budget().tokens(tiny.grid.search.context)
    assert body["budget_tokens"] == budget
    for name in ("fastforward", "fastforward-guided"):
        curve = runs[name]["curve"]
        assert curve[-1] == {"tokens": budget, "selection_excess": runs[name]["final_selection_excess"]}
        assert runs[name]["cost"]["n_tokens"] > 0
    assert runs["owl"]["curve"] == [] and runs["dense"]["keep"] is None
    assert set(body["marks"]["test_ppl"]["0.30"]) == {"owl", "fastforward", "fastforward-guided"}
    assert set(body["marks"]["selection_test_gap"]["0.30"]) == {"fastforward", "fastforward-guided"}
    assert (tmp_path / "race.svg").stat().st_size > 1000


def test_units_are_compared_with_whole_kv_groups(tiny, monkeypatch, tmp_path):
    body = read(units, monkeypatch, tmp_path / "units.json")
    assert body["marks"]["test_ppl"]["tiny 30%"]["owl"].keys() == {"kv-groups"}
    assert body["marks"]["minus_kv_groups"]["tiny 30%"]["owl"] == {"kv-groups": [0.0, 0.0]}
    assert len(body["cells"]) == 4 and (tmp_path / "units.svg").stat().st_size > 1000


def test_other_readers_accept_any_grid(tiny, monkeypatch, tmp_path):
    body = read(baselines, monkeypatch, tmp_path / "baselines.json")
    assert body["marks"] == {} and len(body["cells"]) == 4
    marks = ablation.compare_variants(tiny, reading.read_grid(tiny).done)
    assert set(marks["test_ppl"]["0.30"]) == {"owl", "fastforward", "fastforward-guided"}


def curve(*losses):
    return [{"tokens": 100 * (i + 1), "selection_excess": loss} for i, loss in enumerate(losses)]


def run_of(method, seed, losses, ppl):
    points = curve(*losses)
    final = losses[-1] if losses else None
    shape = {"method": method, "sparsity": "0.30", "seed": seed, "curve": points, "final_selection_excess": final}
    return {**shape, "test": {"ppl": ppl, "stderr": 0.1}}


@pytest.fixture
def raced(tiny, monkeypatch):
    methods = ("uniform", "evolutionary", "fastforward", "random-search")
    grid = tiny.grid.model_copy(update={"methods": methods, "variants": {}})
    monkeypatch.setattr(tiny, "grid", grid)
    runs = [run_of("dense", 0, (), 10.0), run_of("uniform", 1, (), 40.0)]
    for seed in (1, 2, 3):
        runs.append(run_of("evolutionary", seed, (0.9, 0.8, 0.7, 0.5), 10 * np.exp(0.6)))
        runs.append(run_of("fastforward", seed, (0.9, 0.5, 0.45, 0.3) if seed < 3 else (0.9, 0.8, 0.7, 0.6), 20.0))
        runs.append(run_of("random-search", seed, (0.9, 0.8, 0.8, 0.7), 30.0))
    return tiny, runs


def test_marks_of_the_race_are_medians_over_seeds(raced):
    marks = race.compute_marks(*raced)
    reached = marks["tokens_to_match_evolutionary"]["0.30"]
    assert reached == {"evolutionary": 1.0, "fastforward": 0.5, "random-search": None}
    assert marks["test_ppl"]["0.30"]["uniform"] == 40.0
    assert marks["selection_test_gap"]["0.30"]["evolutionary"] == pytest.approx(0.1)


def test_older_curves_that_repeat_the_only_answer_are_cut_to_it():
    repeated = run_of("error-table-dp", 1, (0.5, 0.5, 0.5, 0.4), 20.0)
    assert race._without_filling(repeated)["curve"] == curve(0.5, 0.5, 0.5, 0.4)[-1:]
    moving = run_of("fastforward", 1, (0.6, 0.5, 0.5, 0.4), 20.0)
    assert race._without_filling(moving) == moving
