"""`ffp compare` on result sets that the tests write: verdicts against the noise, provenance, exit codes."""

import json
import shutil
from pathlib import Path

import pytest

from ffp.cli import main
from ffp.report import compare
from ffp.store.files import read_json, write_json
from ffp.store.schemas import AllocationFile, CompareFile, CostFile, ScoresFile
from tests.helpers.cells import edit, fill, make_experiment, write_cell

CELL = "tiny/structured/s0.20/owl/seed0"


@pytest.fixture
def sets(tmp_path) -> tuple[Path, Path]:
    """Two equal result sets; tests change the second one."""
    experiment = make_experiment(tmp_path)
    fill(experiment)
    shutil.copytree(tmp_path / "results", tmp_path / "b")
    return tmp_path / "results", tmp_path / "b"


def edit_scores(folder: Path, change) -> None:
    edit(ScoresFile, folder / "cells" / CELL / "scores.json", change)


def edit_allocation(folder: Path, change) -> None:
    edit(AllocationFile, folder / "cells" / CELL / "allocation.json", change)


def verdict(sets) -> str:
    return next(d.verdict for d in compare.compare(*sets).cells if d.cell == CELL)


def scale(ppl, by_window):
    """An edit of a perplexity and of the losses behind it."""

    def change(body):
        body["ppl"]["value"] *= ppl
        body["ppl"]["loss_by_window"] = [x + y for x, y in zip(body["ppl"]["loss_by_window"], by_window, strict=True)]

    return change


def test_equal_sets_are_identical_and_exit_0(sets, capsys):
    assert main(["compare", *map(str, sets)]) == 0
    assert capsys.readouterr().out.strip().endswith("8 identical")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (scale(1 + 1e-6, [1e-6] * 3), "rounding"),
        (scale(1.02, [0.2, -0.16, 0.02]), "within noise"),
        (scale(1.02, [0.0199, 0.0198, 0.0197]), "changed"),
        (lambda body: body["params"].update(kept=1), "identical"),
        (lambda body: body.update(model_sparsity=0.5), "changed"),
        (lambda body: body.update(status="failed", reason="out of memory"), "changed"),
    ],
)
def test_a_difference_is_judged_against_its_paired_error(sets, change, expected):
    edit_scores(sets[1], change)
    assert verdict(sets) == expected


@pytest.mark.parametrize(
    ("sparsity", "keep", "expected"),
    [
        (0.18 + 0.0099, [4, 4, 4, 4, 3, 0], "rounding"),  # of 1000 parameters, and a unit takes 10
        (0.18 - 0.0099, [4, 4, 4, 4, 3, 0], "rounding"),
        (0.18 + 0.0201, [4, 4, 4, 4, 3, 0], "changed"),
        (0.18 + 0.0099, [3, 2, 3, 4, 3, 4], "changed"),  # the same allocation removes the same
    ],
)
def test_allocations_of_one_budget_may_remove_a_unit_more(sets, sparsity, keep, expected):
    edit_allocation(sets[1], lambda body: body.update(keep=keep))
    edit_scores(sets[1], lambda body: body.update(model_sparsity=sparsity))
    assert verdict(sets) == expected


def test_a_part_that_goes_whole_takes_more_along(sets):
    """As the KV heads go with the last of the query heads; they are in no unit."""
    for folder in sets:
        edit_allocation(folder, lambda body: [d.update(fixed_params=20) for d in body["problem"]["decisions"]])
    edit_allocation(sets[1], lambda body: body.update(keep=[4, 4, 4, 4, 3, 0]))
    edit_scores(sets[1], lambda body: body.update(model_sparsity=0.18 + 0.0299))
    assert verdict(sets) == "rounding"
    edit_allocation(sets[1], lambda body: body.update(keep=[4, 4, 4, 3, 3, 1]))
    assert verdict(sets) == "changed"


def test_an_allocation_that_fits_no_decisions_is_a_change(sets):
    edit_allocation(sets[1], lambda body: body.update(keep=[4, 4]))
    assert verdict(sets) == "changed"


def test_allocations_of_other_budgets_may_not(sets):
    edit_allocation(sets[1], lambda body: body.update(keep=[4, 4, 4, 4, 3, 0]))
    edit_allocation(sets[1], lambda body: body["problem"].update(target=0.21))
    edit_scores(sets[1], lambda body: body.update(model_sparsity=0.18 + 0.0099))
    assert verdict(sets) == "changed"


def test_a_change_exits_1_and_names_the_cell_the_figures_and_the_error(sets, capsys, tmp_path):
    edit_scores(sets[1], scale(1.02, [0.0199, 0.0198, 0.0197]))
    edit(AllocationFile, sets[1] / "cells" / CELL / "allocation.json", lambda body: body.update(keep=[4] * 6))
    assert main(["compare", *map(str, sets), "--json", str(tmp_path / "out.json")]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if CELL in line)
    assert line.startswith("changed ") and "ppl 29.9641 -> 30.5634 (+0.599, " in line
    assert "standard errors" in line and line.endswith("another allocation")
    body = CompareFile.read(tmp_path / "out.json")
    assert body.changed and next(cell for cell in body.cells if cell["cell"] == CELL)["figures"]["ppl"][2] > 0


def test_an_unknown_error_is_null_in_the_json(sets, tmp_path):
    edit_scores(sets[1], lambda body: body["ppl"].update(value=31.0, stderr=None, loss_by_window=[]))
    assert main(["compare", *map(str, sets), "--json", str(tmp_path / "out.json")]) == 1
    changed = next(c for c in json.loads((tmp_path / "out.json").read_text())["cells"] if c["cell"] == CELL)
    assert changed["figures"]["ppl"][1:] == [31.0, None]


@pytest.mark.parametrize(("factor", "expected"), [(100, "changed"), (1 + 1e-6, "rounding")])
def test_a_perplexity_of_a_single_window_changed_if_it_differs(sets, factor, expected):
    """As a task without an error."""
    for folder in sets:
        edit_scores(folder, lambda body: body["ppl"].update(n_windows=1, stderr=None, loss_by_window=[3.4]))
    edit_scores(sets[1], lambda body: body["ppl"].update(value=factor * body["ppl"]["value"]))
    assert verdict(sets) == expected
    assert not any(winner.tie for winner in compare.compare(*sets).winners)


def test_what_differs_in_the_provenance_is_counted(sets):
    def change(body):
        body["provenance"].update(commit="f" * 40, masks="other")
        body["provenance"]["packages"]["torch"] = "9.9"
        body["settings"]["evaluation"]["windows"] = 3

    edit_scores(sets[1], change)
    found = compare.compare(*sets)
    assert set(found.provenance) == {
        "evaluation commit", "evaluation packages.torch", "evaluation settings.evaluation.windows",
    }  # fmt: skip
    assert found.provenance["evaluation settings.evaluation.windows"] == {"0 -> 3": 1}
    assert not found.changed


def test_results_whose_allocations_list_decisions_by_position_compare_with_new_ones(sets):
    """Schema ffp/allocation/1, written before decisions had names; its cells had no answers.json."""
    for place in (sets[0] / "cells").glob("*/*/*/*/*"):
        (place / "answers.json").unlink(missing_ok=True)
        if (place / "scores.json").is_file() and (place / "allocation.json").is_file():
            _, body = read_json(place / "allocation.json", [AllocationFile.tag])
            body.pop("schema", None)
            decisions = body["problem"].pop("decisions")
            body["problem"]["units"] = [[d["name"], d["n_units"], d["params_per_unit"], 0, 1] for d in decisions]
            write_json(place / "allocation.json", "ffp/allocation/1", body)
    assert verdict(sets) == "identical"
    found = compare.compare(*sets)
    assert {d.verdict for d in found.cells} == {"identical"} and not any(d.allocation for d in found.cells)
    edit(AllocationFile, sets[1] / "cells" / CELL / "allocation.json", lambda body: body.update(keep=[4] * 6))
    assert [d.cell for d in compare.compare(*sets).cells if d.allocation] == [CELL]


def test_a_lost_cell_is_a_change_and_a_new_one_is_not(sets, tmp_path):
    experiment = make_experiment(tmp_path / "c", results=str(sets[1]))
    write_cell(experiment, "tiny/structured/s0.30/fastforward/seed0", [3.0, 3.1])
    assert not compare.compare(*sets).changed
    assert compare.compare(sets[1], sets[0]).changed


def test_what_is_no_cell_among_cells_is_named_and_files_are_passed_over(sets, capsys):
    place = (sets[1] / "cells" / CELL).with_name("seed0.bak")
    place.with_name("seed0.tar").touch()
    assert main(["compare", *map(str, sets)]) == 0
    place.mkdir()
    assert main(["compare", *map(str, sets)]) == 2
    assert f"{place} is no cell. Move it out of {sets[1]}/cells." in capsys.readouterr().err


def test_a_folder_without_cells_exits_2(tmp_path, capsys):
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no cells. Name a results folder" in capsys.readouterr().err


def cost_file(folder: Path, name: str = CELL) -> Path:
    return folder / "cells" / name / "search.cost.json"


def shown(sets, capsys) -> list[str]:
    main(["compare", *map(str, sets)])
    return capsys.readouterr().out.splitlines()


SEARCH = "tiny/structured/s0.20/evolutionary/seed0"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n_tokens": 800}, ["search_tokens 400 -> 800 (+400)"]),
        ({"wall_s": 3.0, "n_tokens": 800}, ["search_tokens 400 -> 800 (+400)", "search_s 1.5 -> 3 (+1.5)"]),
        ({"wall_s": 1.6, "peak_mem_bytes": 1100}, None),
    ],
)
def test_a_cell_that_costs_another_effort_for_the_same_scores_is_no_change(sets, change, expected, capsys):
    """Seconds and memory come from single runs, so that small differences are none."""
    edit(CostFile, cost_file(sets[1], SEARCH), lambda body: body.update(change))
    assert main(["compare", *map(str, sets)]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("only cost")]
    assert found == ([f"only cost     {SEARCH}  {'; '.join(expected)}"] if expected else [])


def test_scores_come_before_cost(sets):
    edit(CostFile, cost_file(sets[1]), lambda body: body.update(n_tokens=800))
    edit_scores(sets[1], scale(1.02, [0.0199, 0.0198, 0.0197]))
    assert verdict(sets) == "changed"


def test_a_winner_that_changed_is_called_out_with_what_it_is_worth(sets, capsys):
    before = compare.compare(*sets)
    assert not before.winners
    edit_scores(sets[1], scale(1.02, [0.0199, 0.0198, 0.0197]))
    (winner,) = compare.compare(*sets).winners
    assert (winner.block, winner.text) == (("tiny", "structured", "0.20"), "ppl")
    assert (winner.before, winner.after, winner.tie) == ("owl", "evolutionary", True)
    line = next(line for line in shown(sets, capsys) if line.startswith("winner"))
    assert (
        line == "winner        tiny, structured, 20%, ppl: owl (29.9641) -> evolutionary (30.0641); tied with owl in B"
    )
    edit_scores(sets[1], scale(3, [1.1, 1.1, 1.1]))
    (winner,) = compare.compare(*sets).winners
    assert not winner.tie


def test_windows_of_another_text_are_not_paired(sets, capsys):
    """Losses window by window would make the difference certain; of other windows it is within the noise of both."""
    edit_scores(sets[1], scale(1.02, [0.0199, 0.0198, 0.0197]))
    paired = compare.compare(*sets).cells
    edit_scores(sets[1], lambda body: body["provenance"].update(text="another"))
    unpaired = compare.compare(*sets).cells
    errors = [next(d for d in cells if d.cell == CELL).figures["ppl"][2] for cells in (paired, unpaired)]
    assert errors[0] < 1 < errors[1] and verdict(sets) == "within noise"
    assert any(CELL in line and line.endswith("on other windows") for line in shown(sets, capsys))


def test_a_text_that_only_one_of_both_has_is_new_or_lost(sets):
    def add(body):
        body["ppl_further"] = {"more": {**body["ppl"], "value": 50.0}}

    edit_scores(sets[1], add)
    assert not compare.compare(*sets).changed
    figures = next(d for d in compare.compare(*sets).cells if d.cell == CELL).figures
    assert figures["ppl_on_more"] == (None, 50.0, None)
    assert compare.compare(sets[1], sets[0]).changed


def accuracy(**values):
    """An edit of accuracies, by task."""

    def change(body):
        for task, value in values.items():
            body["tasks"][task]["metrics"]["acc_norm" if task == "arc_easy" else "acc"]["value"] = value

    return change


def wikitext(value):
    """An edit: the score of a task without an error."""
    metric = {"value": value, "stderr": None, "higher_is_better": False}
    task = {"version": 2, "hash": "h", "n": 3, "n_total": 62, "metrics": {"word_perplexity": metric}}
    return lambda body: body["tasks"].update(wikitext=task)


@pytest.mark.parametrize(
    ("before", "after", "expected", "named"),
    [
        (accuracy(), accuracy(arc_easy=0.9, winogrande=0.1), "changed", {"arc_easy_acc_norm", "winogrande_acc"}),
        (accuracy(), accuracy(winogrande=0.6), "within noise", {"winogrande_acc", "mean_acc"}),
        (wikitext(20.0), wikitext(40.0), "changed", {"wikitext_word_perplexity"}),
        (wikitext(20.0), wikitext(20.001), "rounding", {"wikitext_word_perplexity"}),
        (accuracy(), wikitext(20.0), "identical", {"wikitext_word_perplexity"}),
        (wikitext(20.0), accuracy(), "changed", {"wikitext_word_perplexity"}),
    ],
)
def test_each_task_is_judged_by_itself(sets, before, after, expected, named):
    """A task may rise as another one falls, and one that is no share is in no mean."""
    edit_scores(sets[0], before)
    edit_scores(sets[1], after)
    found = next(d for d in compare.compare(*sets).cells if d.cell == CELL)
    assert (found.verdict, set(found.figures)) == (expected, named)


def test_the_mean_accuracy_is_over_the_tasks_that_both_have(sets):
    edit_scores(sets[1], lambda body: body["tasks"].pop("winogrande"))
    edit_scores(sets[0], accuracy(winogrande=0.9))
    edit_scores(sets[1], accuracy(arc_easy=0.6))
    found = next(d for d in compare.compare(*sets).cells if d.cell == CELL)
    assert found.figures["mean_acc"] == (0.5, 0.6, pytest.approx(0.1 * 2**0.5))
    assert found.figures["winogrande_acc"] == (0.9, None, None) and found.verdict == "changed"


def test_a_task_that_was_asked_otherwise_is_named(sets, capsys):
    edit_scores(sets[1], accuracy(arc_easy=0.6))
    assert not any("on other documents" in line for line in shown(sets, capsys))
    edit_scores(sets[1], lambda body: body["tasks"]["arc_easy"].update(hash="other", num_fewshot=25))
    assert any(CELL in line and line.endswith("on other documents or prompts") for line in shown(sets, capsys))


def test_what_differs_comes_first_and_the_totals_come_last(sets, capsys):
    def change(body):
        body["provenance"].update(commit="f" * 40, dirty=False)
        body["provenance"]["packages"]["torch"] = "9.9"
        body["settings"]["evaluation"]["windows"] = 3

    edit_scores(sets[1], change)
    edit_scores(sets[1], scale(1.02, [0.0199, 0.0198, 0.0197]))
    shutil.rmtree(sets[1] / "cells/tiny/structured/s0.20/fastforward/seed0")
    found = shown(sets, capsys)
    assert "ffffffffff (1 cells)" in found[1] and found[0].startswith(f"A {sets[0]}: ")
    kinds = ["A ", "B ", "differs: evaluation commit: ", "differs: evaluation settings.", "differs: ", "winner",
             "changed ", "only in A "]  # fmt: skip
    places = [next(i for i, line in enumerate(found) if line.startswith(kind)) for kind in kinds]
    packages = next(i for i, line in enumerate(found) if "packages.torch" in line)
    assert places[:4] == sorted(places[:4]) and places[3] < packages < places[5] < places[6] < places[7]
    assert found[-1] == "1 changed, 1 only in A, 6 identical"
