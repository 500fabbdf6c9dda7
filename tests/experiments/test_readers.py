"""Readers of grids, on the cells of the tiny grid and on runs made up."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import ablation, answers, baselines, defaults, growth, models, race, reading, second_order, units
from ffp.config import Experiment
from ffp.store.files import write_json
from ffp.store.layout import Layout
from ffp.store.schemas import AnswersFile, ScoresFile
from tests.helpers.cells import make_experiment, write_cell

ROWS = ("owl", "fastforward", "fastforward-guided")


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


def test_rows_of_the_second_order_are_compared_with_the_default(tiny, monkeypatch, tmp_path):
    body = read(second_order, monkeypatch, tmp_path / "second_order.json")
    rows = body["marks"]["minus_default"]["tiny 30%"]
    assert rows["fastforward-guided"] == [0, 0] and rows["owl"][1] > 0
    assert body["marks"]["tokens"]["tiny 30%"]["owl"] == 0 < body["marks"]["tokens"]["tiny 30%"]["fastforward"]
    assert (tmp_path / "second_order.svg").stat().st_size > 1000


def test_seeds_of_the_second_order_are_paired_with_those_of_the_default(tiny):
    done = reading.read_grid(tiny).done
    owl, plain, guided = (next(r for r in done if r.cell.method == name) for name in ROWS)
    more = [replace(plain, cell=replace(guided.cell, seed=1)), replace(owl, cell=replace(plain.cell, seed=1))]
    marks = second_order.summarize([*done, *more])
    assert marks["seeds"]["tiny 30%"] == {"owl": 1, "fastforward": 2, "fastforward-guided": 2}
    rows = marks["minus_default"]["tiny 30%"]
    assert rows["fastforward"][0] == pytest.approx((owl.losses - guided.losses).mean() / 2)
    assert rows["owl"][0] == pytest.approx((owl.losses - guided.losses).mean())
    assert marks["test_ppl"]["tiny 30%"]["fastforward"] == pytest.approx(
        (owl.scores.ppl.value + plain.scores.ppl.value) / 2
    )


def test_models_are_compared_by_losses_ranks_and_their_agreement(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "REFERENCE", "fastforward-guided")
    body = read(models, monkeypatch, tmp_path / "models.json")
    ppl = body["marks"]["test_ppl"]["tiny 30%"]
    assert ppl.keys() == {"owl", "fastforward", "fastforward-guided"}
    assert body["marks"]["minus_reference"]["tiny 30%"]["fastforward-guided"] == [0, 0]
    assert sorted(body["marks"]["ranks"].values()) == [1, 2, 3]
    assert min(body["marks"]["ranks"], key=body["marks"]["ranks"].get) == min(ppl, key=ppl.get)
    assert body["marks"]["agreement"] == {} and (tmp_path / "models.svg").stat().st_size > 1000


def test_seeds_are_averaged_by_window_and_models_agree_as_far_as_their_orders_do():
    def rows(*levels):
        return {name: {0: np.array([level, level + 1])} for name, level in zip("abc", levels, strict=True)}

    losses = {("x", "0.30"): rows(1, 2, 3), ("y", "0.30"): rows(1, 3, 2), ("y", "0.20"): rows(1, 2, 3)}
    losses["x", "0.30"]["a"][1] = np.array([2.0, 2.0])
    marks = models.summarize(losses)
    assert marks["test_ppl"]["x 30%"]["a"] == pytest.approx(np.exp((1.5 + 2) / 2))
    assert marks["seed_spread"] == {"x 30%": {"a": pytest.approx(0.5)}, "y 30%": {}, "y 20%": {}}
    assert marks["agreement"] == {"30% x y": pytest.approx(0.5)}
    assert marks["ranks"] == {"a": 1, "b": pytest.approx(7 / 3), "c": pytest.approx(8 / 3)}


def test_what_another_machine_has_run_stays_where_it_is_asked_for(tiny, monkeypatch, tmp_path):
    out = tmp_path / "models.json"
    body = read(models, monkeypatch, out)
    owl = body["marks"]["test_ppl"].pop("tiny 30%")["owl"]
    elsewhere = next(row for row in body["cells"] if row["method"] == "owl") | {"sparsity": 0.4}
    body["marks"] = {name: {"tiny 40%": {"owl": owl}} for name in ("test_ppl", "minus_reference", "seed_spread")}
    body.pop("checksum")
    write_json(out, models.SCHEMA, body | {"cells": [elsewhere]})
    words = ["reader", "--config", "config/grid.yaml", "--out", str(out), "--keep"]
    monkeypatch.setattr(sys, "argv", words)
    models.main()
    both = json.loads(out.read_text())
    assert list(both["marks"]["test_ppl"]) == ["tiny 30%", "tiny 40%"] and both["marks"]["ranks"] == {"owl": 1}
    assert len(both["cells"]) == 5 and both["cells"][0] == elsewhere
    assert list(both["kept"]) == [body["provenance"]["commit"]]
    both["provenance"] |= {"commit": "later", "settings": {**both["provenance"]["settings"], "seeds": [0, 1]}}
    both.pop("checksum")
    write_json(out, models.SCHEMA, both)
    models.main()
    assert json.loads(out.read_text())["kept"] == both["kept"]  # by the commit that ran them
    write_json(out, models.SCHEMA, body | {"provenance": {**body["provenance"], "settings": {}}})
    with pytest.raises(SystemExit, match=r"other settings \(calibration, .*evaluation"):
        models.main()


def test_the_race_keeps_the_runs_of_another_machine_where_it_is_asked_for(tiny, monkeypatch, tmp_path):
    out = tmp_path / "race.json"
    body = read(race, monkeypatch, out)
    elsewhere = {**body["runs"][-1], "seed": 7}
    outdated = {**body["runs"][-1], "test": {"ppl": 1.0, "stderr": 0.0}}
    body.pop("checksum")
    write_json(out, race.SCHEMA, body | {"runs": [elsewhere, outdated]})
    monkeypatch.setattr(sys, "argv", ["reader", "--config", "config/grid.yaml", "--out", str(out), "--keep"])
    race.main()
    both = json.loads(out.read_text())
    assert both["runs"] == [elsewhere, *body["runs"]]
    method = elsewhere["method"]
    assert both["kept"] == {body["provenance"]["commit"]: [f"tiny/structured/s0.30/{method}/seed7"]}


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


def test_one_window_has_no_standard_error():
    assert reading.mean_and_stderr(np.array([0.5])) == (0.5, None)


def test_pairs_are_means_over_the_seeds_of_both(tiny):
    """A last seed that one of the two lacks does not replace the earlier ones."""
    owl, plain, guided = (r for r in reading.read_grid(tiny).done if not r.cell.is_dense)

    def at(result, method, seed):
        return replace(result, cell=replace(result.cell, method=method, granularity="unstructured", seed=seed))

    done = [at(owl, "owl", 0), at(plain, "uniform", 0), at(guided, "owl", 1), at(owl, "uniform", 2)]
    mean, stderr = baselines.compare_pairs(done)["owl_minus_uniform"]["0.30"]
    assert mean == pytest.approx((owl.losses - plain.losses).mean()) and stderr > 0
    done.append(at(owl, "uniform", 1))
    mean, _ = baselines.compare_pairs(done)["owl_minus_uniform"]["0.30"]
    assert mean == pytest.approx((owl.losses - plain.losses + guided.losses - owl.losses).mean() / 2)
    table = units.tabulate(tiny, [owl, replace(guided, cell=replace(owl.cell, seed=1))])
    assert table["tiny 30%"]["owl"]["kv-groups"].keys() == {0, 1}


def test_a_variant_that_shares_no_seed_with_its_method_is_left_out(tiny, monkeypatch):
    owl, plain, _ = (r for r in reading.read_grid(tiny).done if not r.cell.is_dense)
    variants = {"later": SimpleNamespace()}
    experiment = SimpleNamespace(grid=SimpleNamespace(variants=variants), method=lambda _: SimpleNamespace(name="owl"))
    later = replace(plain, cell=replace(owl.cell, method="later", seed=1))
    assert ablation.compare_variants(experiment, [owl, later])["change"]["0.30"] == {}
    same = replace(later, cell=replace(later.cell, seed=0))
    assert ablation.compare_variants(experiment, [owl, same])["change"]["0.30"].keys() == {"later"}


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


def test_seeds_whose_evolution_is_missing_do_not_count_in_the_race(raced):
    experiment, runs = raced
    runs = [run for run in runs if run["method"] != "evolutionary" or run["seed"] == 1]
    reached = race.compute_marks(experiment, runs)["tokens_to_match_evolutionary"]["0.30"]
    assert reached == {"evolutionary": 1.0, "fastforward": 0.5, "random-search": None}
    runs = [run for run in runs if run["method"] != "fastforward" or run["seed"] != 1]
    assert "fastforward" not in race.compute_marks(experiment, runs)["tokens_to_match_evolutionary"]["0.30"]


def test_a_search_that_is_not_scored_yet_counts_in_the_curves_alone(raced):
    experiment, runs = raced
    runs = [{**run, "test": None} if run["method"] == "fastforward" else run for run in runs]
    marks = race.compute_marks(experiment, runs)
    assert marks["tokens_to_match_evolutionary"]["0.30"]["fastforward"] == 0.5
    assert "fastforward" not in marks["test_ppl"]["0.30"] and "fastforward" not in marks["selection_test_gap"]["0.30"]


def test_older_curves_that_repeat_the_only_answer_are_cut_to_it():
    repeated = run_of("error-table-dp", 1, (0.5, 0.5, 0.5, 0.4), 20.0)
    assert race._without_filling(repeated)["curve"] == curve(0.5, 0.5, 0.5, 0.4)[-1:]
    moving = run_of("fastforward", 1, (0.6, 0.5, 0.5, 0.4), 20.0)
    assert race._without_filling(moving) == moving


def test_answers_are_scored_on_windows_that_no_search_sees(tiny, monkeypatch, tmp_path, capsys):
    """The tiny grid has no evolution: its curves are there, its comparisons are empty."""
    monkeypatch.setattr(answers, "FURTHER", 2)
    out = tmp_path / "answers.json"
    body = read(answers, monkeypatch, out)
    assert [run["method"] for run in body["runs"]] == ["fastforward", "fastforward-guided"]
    for run in body["runs"]:
        (cell,) = (cell for cell in tiny.cells() if cell.method == run["method"])
        kept = AnswersFile.read(Layout.from_grid(tiny.grid).cell(cell).answers).points
        assert [point["tokens"] for point in run["points"]] == [point.tokens for point in kept]
        assert {(len(point["further"]), len(point["test"])) for point in run["points"]} == {(2, 6)}
    last = body["runs"][-1]["points"][-1]
    scores = reading.read_scores(tiny, cell)  # without compensation a candidate is the cell's model
    ppl = body["dense_test_ppl"] * np.exp(np.mean(last["test"]))
    assert ppl == pytest.approx(scores.ppl.value, rel=1e-4)
    assert body["marks"]["tokens_to_match"] == {"further": {"0.30": {}}, "test": {"0.30": {}}}
    assert out.with_suffix(".svg").exists()
    before = out.read_bytes()
    read(answers, monkeypatch, out)
    assert out.read_bytes() == before, "nothing was missing"
    monkeypatch.setattr(answers, "FURTHER", 3)
    with pytest.raises(SystemExit, match=r"other settings \(further_windows\)"):
        read(answers, monkeypatch, out)


def test_answers_are_compared_with_evolutions_last_one_under_the_same_seed(tiny):
    def run(method, seed, *losses):
        points = [{"tokens": 100 * (i + 1), "further": [loss, loss + 0.2], "test": [loss, loss]}
                  for i, loss in enumerate(losses)]  # fmt: skip
        return {"method": method, "sparsity": "0.30", "seed": seed, "points": points}

    runs = [run("evolutionary", 0, 0.9, 0.5), run("evolutionary", 1, 0.9, 0.7),
            run("owl", 0, 0.5, 0.4), run("owl", 1, 0.8, 0.6), run("owl", 2, 0.1, 0.1)]  # fmt: skip
    grid = SimpleNamespace(grid=SimpleNamespace(methods=["evolutionary", "owl"]))
    marks = answers.compute_marks(grid, runs)
    assert marks["tokens_to_match"]["test"]["0.30"] == {"evolutionary": 1.0, "owl": 0.75}
    ahead = marks["from_evolution"]["further"]["0.30"]["owl"]
    assert ahead["0.5"] == pytest.approx([0.05, 0.0]) and ahead["1"] == pytest.approx([-0.1, 0.0])


def test_growth_compares_tokens_to_the_same_gain_on_two_models(tmp_path, monkeypatch):
    """The search of the larger model needs twice the tokens of the smaller one's, evolution as many on both."""
    methods = ["evolutionary", "fastforward-guided"]
    grid = make_experiment(tmp_path, models=["tiny", "other"], methods=methods, seeds=[0, 1], tasks=None)
    for model, times in (("tiny", 1), ("other", 2)):
        write_cell(grid, f"{model}/structured/s0.00/dense/seed0", [2.0, 2.1], tasks=False)
        for sparsity in ("0.20", "0.30"):
            for seed in (0, 1):
                answers = {"evolutionary": {400: 0.4, 800: 0.3}, "fastforward-guided": {100 * times: 0.3, 800: 0.2}}
                for name in methods:
                    path = f"{model}/structured/s{sparsity}/{name}/seed{seed}"
                    write_cell(grid, path, [2.5, 2.6], tokens=800, answers=answers[name], tasks=False)
    monkeypatch.chdir(tmp_path)
    body = read(growth, monkeypatch, tmp_path / "growth.json")
    assert body["marks"]["share"] == {
        "tiny": {"evolutionary": 1.0, "fastforward-guided": 0.125},
        "other": {"evolutionary": 1.0, "fastforward-guided": 0.25},
    }
    assert {run["tokens"] for run in body["runs"] if run["model"] == "other"} == {800, 200}
    assert body["models"]["tiny"]["decisions"] == 6


def test_growth_is_a_power_of_the_prunable_parameters():
    models = {"a": {"prunable_params": 1e8}, "b": {"prunable_params": 4e8}}
    one = {"method": "fastforward-guided", "seed": 0, "share": 0.1}
    runs = [
        {**one, "model": model, "sparsity": sparsity, "tokens": tokens}
        for model, sparsity, tokens in (("a", "0.20", 100), ("a", "0.30", 100), ("b", "0.20", 200), ("b", "0.30", 200))
    ]
    marks = growth.compute_marks(models, runs)
    assert marks["exponent"] == {"fastforward-guided": [pytest.approx(0.5), 0.0]}
    low, middle, high = marks["projected_7b_tokens"]["fastforward-guided"]
    assert low == middle == high == pytest.approx(200 * (6.5e9 / 4e8) ** 0.5)
    assert growth.compute_marks({"a": models["a"]}, runs[:2])["exponent"] is None
    runs[-1] = {**runs[-1], "tokens": None}  # it did not get there: by how much the tokens grow is not known
    assert growth.compute_marks(models, runs)["exponent"] == {}


def test_marks_of_the_defaults_compare_rows_on_the_sparsities_that_all_have():
    runs = [
        {"row": row, "sparsity": sparsity, "calibration_tokens": tokens, "selection": {"ppl": ppl}}
        for row, sparsity, tokens, ppl in (
            ("a", 0.2, 8, np.e**2), ("a", 0.3, 8, np.e**3), ("b", 0.3, 8, np.e**2.5), ("a", 0.2, 16, np.e)
        )
    ]  # fmt: skip
    assert defaults._marks(runs, 1.0) == {"8": {"a": pytest.approx(2.0), "b": pytest.approx(1.5)}, "16": {"a": 0.0}}
