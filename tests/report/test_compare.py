"""`ffp compare` on result sets that the tests write: verdicts against the noise, provenance, exit codes."""

import json
import shutil
from pathlib import Path

import pytest

from ffp.cli import main
from ffp.report import compare
from ffp.store.files import read_json, write_json
from tests.helpers.cells import fill, make_project, write_cell

CELL = "tiny/structured/s0.20/owl/seed0"


@pytest.fixture
def sets(tmp_path) -> tuple[Path, Path]:
    """Two equal result sets; tests change the second one."""
    project = make_project(tmp_path)
    fill(project)
    shutil.copytree(tmp_path / "results", tmp_path / "b")
    return tmp_path / "results", tmp_path / "b"


def edit(folder: Path, change, name="scores.json", schema="ffp/scores/1") -> None:
    path = folder / "cells" / CELL / name
    body = read_json(path, schema)
    change(body)
    write_json(path, body.pop("schema"), body)


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
    edit(sets[1], change)
    assert verdict(sets) == expected


def test_a_change_exits_1_and_names_the_cell_the_figures_and_the_error(sets, capsys, tmp_path):
    edit(sets[1], scale(1.02, [0.0199, 0.0198, 0.0197]))
    edit(sets[1], lambda body: body.update(keep=[4] * 6), "allocation.json", "ffp/allocation/2")
    assert main(["compare", *map(str, sets), "--json", str(tmp_path / "out.json")]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if CELL in line)
    assert line.startswith("changed ") and "ppl 29.9641 -> 30.5634 (+0.599, " in line
    assert "standard errors" in line and line.endswith("another allocation")
    body = read_json(tmp_path / "out.json", "ffp/compare/1")
    assert body["changed"] and json.dumps(body)


def test_what_differs_in_the_provenance_is_counted(sets):
    def change(body):
        body["provenance"].update(commit="f" * 40, masks="other")
        body["provenance"]["packages"]["torch"] = "9.9"
        body["settings"]["evaluation"]["windows"] = 3

    edit(sets[1], change)
    found = compare.compare(*sets)
    assert set(found.provenance) == {
        "evaluation commit", "evaluation packages.torch", "evaluation settings.evaluation.windows",
    }  # fmt: skip
    assert found.provenance["evaluation settings.evaluation.windows"] == {"0 -> 3": 1}
    assert not found.changed


def test_a_lost_cell_is_a_change_and_a_new_one_is_not(sets, tmp_path):
    project = make_project(tmp_path / "c", results=str(sets[1]))
    write_cell(project, "tiny/structured/s0.30/fastforward/seed0", [3.0, 3.1])
    assert not compare.compare(*sets).changed
    assert compare.compare(sets[1], sets[0]).changed


def test_a_folder_without_cells_exits_2(tmp_path, capsys):
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no cells. Name a results folder" in capsys.readouterr().err
