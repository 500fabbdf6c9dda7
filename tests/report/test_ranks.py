"""Methods over several models and sparsities: ranks, the table, and the figure."""

from __future__ import annotations

import math

import pytest

from ffp.report import build, plots, tables
from ffp.report.collect import collect
from ffp.report.groups import group
from ffp.report.ranks import rank
from ffp.store.schemas import ScoresFile
from tests.helpers.cells import edit, files_of, make_experiment, write_cell

METHODS = ["uniform", "owl", "evolutionary"]
# mean losses by model, sparsity and method: owl is best three times out of four, uniform never
LOSSES = {
    ("tiny", "0.20"): (3.0, 2.5, 2.7), ("tiny", "0.30"): (4.0, 3.5, 3.0),
    ("other", "0.20"): (3.0, 2.5, 2.6), ("other", "0.30"): (4.0, 3.1, 3.2),
}  # fmt: skip


@pytest.fixture
def grid(tmp_path):
    """Two models at two sparsities; each method differs from the others by far more than its windows."""
    experiment = make_experiment(tmp_path, models=["tiny", "other"], methods=METHODS, tasks=None)
    for model in ("tiny", "other"):
        write_cell(experiment, f"{model}/structured/s0.00/dense/seed0", [2.0, 2.1, 1.9], tasks=False)
    for (model, sparsity), losses in LOSSES.items():
        for name, loss in zip(METHODS, losses, strict=True):
            path = f"{model}/structured/s{sparsity}/{name}/seed0"
            write_cell(
                experiment, path, [loss, loss + 0.101, loss - 0.1], tokens=300 * (name == "evolutionary"), tasks=False
            )
    return experiment


def test_ranks_are_means_over_models_and_sparsities(grid):
    found = {each.method: each for each in rank(group(collect(grid)))}
    assert list(found) == ["owl", "evolutionary", "uniform"]
    assert {name: each.mean for name, each in found.items()} == {"owl": 1.25, "evolutionary": 1.75, "uniform": 3.0}
    assert (found["owl"].wins, found["owl"].ties, found["owl"].losses) == (7, 0, 1)
    assert (found["uniform"].wins, found["uniform"].losses, found["uniform"].settings) == (0, 8, 4)
    assert found["uniform"].interval == (3.0, 3.0)
    low, high = found["owl"].interval
    assert low == 1.0 and 1.25 < high <= 2.0


def test_close_perplexities_tie_and_share_no_win(grid):
    write_cell(grid, "tiny/structured/s0.20/evolutionary/seed0", [2.5, 2.61, 2.395], tokens=300, tasks=False)
    found = {each.method: each for each in rank(group(collect(grid)))}
    assert (found["owl"].wins, found["owl"].ties, found["evolutionary"].ties) == (6, 1, 1)


def test_without_a_known_error_only_equal_perplexities_tie(grid):
    equal = "tiny/structured/s0.20/evolutionary/seed0"
    write_cell(grid, equal, [2.5, 2.601, 2.4], tokens=300, tasks=False)
    for record in collect(grid):
        file = files_of(grid, record.cell.path).scores
        edit(ScoresFile, file, lambda body: body["ppl"].update(loss_by_window=[1.0], stderr=None))
    found = {each.method: (each.wins, each.ties, each.losses) for each in rank(group(collect(grid)))}
    assert found == {"owl": (6, 1, 1), "evolutionary": (5, 1, 2), "uniform": (0, 0, 8)}


def test_a_method_with_a_gap_is_left_out_and_one_setting_is_no_ranking(grid, tmp_path):
    (tmp_path / "results/cells/other/structured/s0.30/owl/seed0/scores.json").unlink()
    groups = group(collect(grid))
    assert [each.method for each in rank(groups)] == ["evolutionary", "uniform"]
    assert rank([each for each in groups if each.block[::2] == ("tiny", "0.20")]) == []
    assert tables.ranking(grid, [each for each in groups if each.block[0] == "none"]).lines == []


def test_the_page_shows_the_ranking_and_the_models_side_by_side(grid, tmp_path):
    page = build(grid, tmp_path / "report").read_text()
    assert '<section id="s-ranking">' in page and '<figure id="models">' in page
    assert "1.2 (1.0 to " in page and "All models, structured, 20% sparsity: tiny uniform PPL" in page
    assert "| owl | 1.2 (1.0 to " in (tmp_path / "report/ranking.md").read_text()
    first, _ = plots.FIGURES["models"](grid, group(collect(grid))).axes
    shown = [(line.get_xdata()[0], line.get_ydata()[0]) for line in first.lines]
    expected = math.log(group(collect(grid))[1].row["ppl"]) - math.log(group(collect(grid))[0].row["ppl"])
    assert len(shown) == 6 and (pytest.approx(expected), 0) in shown
    assert [label.get_text() for label in first.get_yticklabels()] == METHODS


def test_a_grid_of_one_model_has_no_such_figure(tmp_path):
    experiment = make_experiment(tmp_path, methods=METHODS)
    page = build(experiment, tmp_path / "report").read_text()
    assert '<figure id="models">' not in page and '<section id="s-ranking">' not in page
