"""Scores of a grid whose texts were changed: every perplexity stands under the text that it was measured on."""

import shutil

import pandas as pd
import pytest

from experiments.reading import read_grid
from ffp.pipeline import status
from ffp.report import build, compare, tables
from ffp.report.collect import collect
from ffp.report.groups import group
from ffp.store.schemas import ScoresFile
from tests.helpers.cells import edit, files_of, make_experiment, score_body, write_cell

FIRST, BOTH = "tiny/structured/s0.20/uniform/seed0", "tiny/structured/s0.20/owl/seed0"


@pytest.fixture
def changed(tmp_path):
    """A grid that began with the text words and has more before it now; one of two cells is scored on both."""
    small = {"tasks": None, "methods": ["uniform", "owl"], "sparsities": [0.2]}
    before = make_experiment(tmp_path, **small)
    for path, loss in ((FIRST, 3.0), (BOTH, 3.1)):
        write_cell(before, path, [loss, loss + 0.5], tasks=False)
        edit(ScoresFile, files_of(before, path).scores, lambda body: body["ppl"].update(text="words"))
    shutil.copytree(tmp_path / "results", tmp_path / "before")
    other = {**score_body([4.0, 4.5], 0, False)["ppl"], "text": "more"}
    edit(ScoresFile, files_of(before, BOTH).scores, lambda body: body.update(ppl_further={"more": other}))
    return make_experiment(tmp_path, **small, text=None, texts={"calibrate": "words", "test": ["more", "words"]})


def test_columns_are_chosen_by_the_text_that_the_scores_name(changed, tmp_path):
    table = tables.comparison(changed, group(collect(changed)))
    shown = {
        line.group.method: [line.entries[table.headings.index(f"PPL {name}")].text[:5] for name in ("more", "words")]
        for line in table.lines
    }
    assert shown == {"dense": [tables.DASH] * 2, "uniform": [tables.DASH] * 2, "owl": ["70.11", "28.50"]}
    build(changed, tmp_path / "report")
    rows = pd.read_csv(tmp_path / "report/comparison.csv").set_index("method")
    assert rows["status"].to_dict() == {"dense": "missing", "uniform": "missing", "owl": "done"}
    assert rows["ppl"].dropna().round(2).to_dict() == {"owl": 70.11}
    assert rows["ppl_on_words"].dropna().round(2).to_dict() == {"uniform": 25.79, "owl": 28.5}


def test_a_cell_without_the_first_text_is_to_be_scored_again(changed):
    record = next(record for record in collect(changed) if record.cell.path == FIRST)
    assert record.row["reason"] == "scores.json has no perplexity on more yet"
    found = list(status.lines(changed))
    assert found[0].startswith("1 of 3 cells done (33%), 1 to score again, 1 not begun;")
    assert found[1] == "1 scored cells have no perplexity on more yet; the next run evaluates them again."
    results = read_grid(changed)
    assert [(each.cell.path, round(each.scores.ppl.value, 2)) for each in results.done] == [(BOTH, 70.11)]
    assert FIRST in results.missing and list(results.done[0].scores.ppl_further) == ["words"]


def test_results_are_compared_text_by_text(changed, tmp_path):
    now = ScoresFile.read(files_of(changed, BOTH).scores)
    swapped = {"ppl": now.ppl_further["more"], "ppl_further": {"words": now.ppl}}
    now.model_copy(update=swapped).write(files_of(changed, BOTH).scores)
    found = compare.compare(tmp_path / "before", tmp_path / "results")
    assert not found.changed
    figures = {each.cell: each.figures for each in found.cells}
    assert figures == {FIRST: {}, BOTH: {"ppl_on_more": (None, pytest.approx(70.1054), None)}}
