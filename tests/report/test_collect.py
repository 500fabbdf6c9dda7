"""Cells become records: columns, states and their reasons, notes, and what stands behind a cell."""

import csv
import json
from pathlib import Path

import pytest

from ffp.report import collect, details
from ffp.report.groups import group
from ffp.store.files import read_table
from ffp.store.layout import Layout
from ffp.store.schemas import AllocationFile, ScoresFile
from tests.helpers.cells import edit, files_of, fill, make_experiment, write_cell

CONTRACT = [
    "model", "granularity", "sparsity", "method", "seed", "status", "block_sparsity", "model_sparsity", "ppl",
    "ppl_stderr", "search_evaluations", "search_tokens", "search_s",
]  # fmt: skip
OWL = "tiny/structured/s0.20/owl/seed0"


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def row_of(experiment, method: str) -> dict:
    """The first row of a method."""
    return next(record.row for record in collect.collect(experiment) if record.cell.method == method)


def write_log(experiment, step: str, path: str, text: str) -> None:
    """A step's log, below the working folder."""
    log = Layout.from_grid(experiment.grid).log(step, path)
    log.parent.mkdir(parents=True)
    log.write_text(text)


def test_leading_columns_are_the_contract_and_csv_is_exact(built):
    experiment, report = built
    rows = read_csv(report)
    assert list(rows[0])[:13] == CONTRACT
    assert list(rows[0])[13:22] == [
        "search_peak_mem_bytes", "arc_easy_acc", "arc_easy_acc_stderr", "arc_easy_acc_norm", "arc_easy_acc_norm_stderr",
        "arc_easy_n", "winogrande_acc", "winogrande_acc_stderr", "winogrande_n",
    ]  # fmt: skip
    uniform = next(row for row in rows if row["method"] == "uniform" and row["sparsity"] == "0.2")
    scores = ScoresFile.read(files_of(experiment, "tiny/structured/s0.20/uniform/seed0").scores)
    assert float(uniform["ppl"]) == scores.ppl.value
    assert float(uniform["mean_acc"]) == pytest.approx((0.5 + 0.5) / 2), "acc_norm where there is one, otherwise acc"
    assert float(uniform["mean_acc_stderr"]) == pytest.approx((0.1**2 + 0.1**2) ** 0.5 / 2)
    assert (uniform["search_tokens"], uniform["ppl_windows"]) == ("0", "3"), "whole numbers stay whole"
    table = read_table(report / "comparison.parquet")
    assert list(table.columns) == list(rows[0])
    assert len(table) == len(rows) == 9


def test_every_cell_keeps_a_row_with_its_state_and_reason(built):
    states = {(row["sparsity"], row["method"]): (row["status"], row["reason"]) for row in read_csv(built[1])}
    assert states["0.2", "fastforward"] == ("done", "")
    assert states["0.3", "owl"][0] == "missing" and "scores.json is not there yet" in states["0.3", "owl"][1]
    assert states["0.3", "evolutionary"][0] == "failed" and "cannot be read" in states["0.3", "evolutionary"][1]
    assert states["0.3", "fastforward"][0] == "missing" and "allocation.json" in states["0.3", "fastforward"][1]


def test_a_method_that_does_not_serve_a_granularity_is_skipped_with_the_reason(tmp_path):
    experiment = make_experiment(tmp_path, granularities=["structured", "unstructured"])
    records = collect.collect(experiment)
    skipped = [r for r in records if r.row["status"] == "skipped"]
    assert [(r.cell.granularity, r.cell.method, r.cell.sparsity) for r in skipped] == [
        ("unstructured", "fastforward", "0.20"), ("unstructured", "fastforward", "0.30"),
    ]  # fmt: skip
    assert skipped[0].row["reason"] == "fastforward serves structured pruning only"
    assert len(records) == len(list(experiment.cells())) + 2


def test_a_cell_that_calls_itself_skipped_or_failed_is_believed(experiment):
    write_cell(experiment, OWL, [1.0, 2.0])
    edit(ScoresFile, files_of(experiment, OWL).scores, lambda body: body.update(status="failed", reason="no memory"))
    row = row_of(experiment, "owl")
    assert (row["status"], row["reason"]) == ("failed", "no memory")


@pytest.mark.parametrize("name", ["allocation", "answers", "search_cost", "scores"])
def test_a_damaged_file_makes_a_failed_row_and_an_absent_one_does_not(experiment, name):
    write_cell(experiment, "tiny/structured/s0.20/fastforward/seed0", [1.0, 2.0], tokens=400)
    file = getattr(files_of(experiment, "tiny/structured/s0.20/fastforward/seed0"), name)
    file.write_text(file.read_text().replace("1", "2", 1))
    row = row_of(experiment, "fastforward")
    assert row["status"] == "failed" and row["reason"].startswith(str(file))
    file.unlink()
    assert row_of(experiment, "fastforward")["status"] in ("missing", "done")


def test_a_file_without_its_fields_makes_a_failed_row(experiment):
    from ffp.store.files import write_json

    write_json(files_of(experiment, "tiny/structured/s0.00/dense/seed0").scores, ScoresFile.tag, {"status": "done"})
    row = collect.collect(experiment)[0].row
    assert row["status"] == "failed" and "lacks what its schema promises: " in row["reason"]


def test_an_allocation_that_cannot_be_drawn_makes_a_failed_row(experiment):
    write_cell(experiment, OWL, [1.0, 2.0])
    for keep, reason in (
        ([9, 2, 3, 4, 3, 4], "block00.attention keeps 9 of 4 units"),
        ([3], "keep has 1 entries for 6 decisions"),
    ):
        edit(AllocationFile, files_of(experiment, OWL).allocation, lambda body, keep=keep: body.update(keep=keep))
        row = row_of(experiment, "owl")
        assert row["status"] == "failed" and reason in row["reason"]


def test_a_changed_setting_is_noted(experiment, tmp_path):
    fill(experiment)
    changed = make_experiment(tmp_path, evaluation={"windows": 7})
    record = next(r for r in collect.collect(changed) if r.done)
    assert record.notes == [
        "scores.json was made with other settings than the configuration has now (evaluation): run it again"
    ]


@pytest.mark.parametrize(
    "key, value",
    [("score", "wifv"), ("keep_blocks", "0"), ("attention_units", "query-heads")],
)
def test_a_variant_that_differs_from_a_default_is_noted(key, value, experiment, tmp_path):
    fill(experiment)
    changed = make_experiment(tmp_path, variants={"uniform": {key: value}})
    notes = [note for r in collect.collect(changed) if r.cell.method == "uniform" for note in r.notes]
    assert f"allocation.json was made with other settings than the configuration has now ({key}): run it again" in notes


def test_a_log_that_ends_in_a_traceback_is_a_failure_and_an_interruption_is_not(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    crash = "Traceback (most recent call last):\n  ...\ntorch.OutOfMemoryError: 2 GB\n"
    write_log(experiment, "apply", "tiny/structured/s0.20/uniform/seed0", crash)
    write_log(experiment, "apply", OWL, "ffp apply: interrupted; start it again to go on.\n")
    row = row_of(experiment, "uniform")
    assert (row["status"], row["reason"]) == ("failed", "torch.OutOfMemoryError: 2 GB")
    assert row_of(experiment, "owl")["status"] == "missing"


def test_a_figure_that_one_seed_lacks_has_no_mean(tmp_path):
    experiment = make_experiment(tmp_path, seeds=[0, 1])
    write_cell(experiment, "tiny/structured/s0.20/fastforward/seed0", [3.0, 3.1], tokens=100)
    write_cell(experiment, "tiny/structured/s0.20/fastforward/seed1", [3.0, 3.1], tokens=100, tasks=False)
    row = next(g.row for g in group(collect.collect(experiment)) if g.done)
    assert "ppl" in row and "mean_acc" not in row


def test_commands_quote_their_paths_and_are_three_for_a_pruned_cell(tmp_path):
    experiment = make_experiment(tmp_path, results="a b")
    dense, pruned = collect.collect(experiment)[:2]
    assert [line.split()[1] for line in details.commands(experiment, pruned)] == ["allocate", "apply", "evaluate"]
    assert details.commands(experiment, pruned)[0].endswith("--out 'a b/cells/tiny/structured/s0.20/uniform/seed0'")
    (line,) = details.commands(experiment, dense)
    assert line.startswith("ffp evaluate ") and "--cut" not in line and "--tasks-dir data/tasks/two" in line


def test_the_command_of_a_search_that_starts_from_a_policy_names_its_folder(tmp_path):
    variants = {"warm": {"use": "fastforward", "init": {"from": "s0.20"}}}
    experiment = make_experiment(tmp_path, methods=["warm"], variants=variants, results="results")
    first = {r.cell.sparsity: details.commands(experiment, r)[0] for r in collect.collect(experiment)}
    assert " --init results/cells/tiny/structured/s0.20/warm/seed0 " in first["0.30"]
    assert "--init" not in first["0.20"]


def test_figures_are_plain_numbers(built):
    found = json.loads((built[1] / "metrics.json").read_text())
    assert found["cells_done"] == 6 and found["cells"] == 9
    assert found["tiny/structured/s0.20/evolutionary/seed0/search_tokens"] == 400
    assert all(isinstance(value, int | float) for value in found.values())
