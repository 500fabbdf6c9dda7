"""`ffp status` on grids in every state: what is done, what is searching, what is quiet, what failed, what is left."""

import os
import time
from pathlib import Path

import pytest

from ffp.allocators import METHODS, create, is_search
from ffp.cli import main
from ffp.pipeline import locks, status
from ffp.report.collect import Record
from ffp.store.files import sealed_line
from ffp.store.journal import FileJournal
from ffp.store.layout import Layout
from tests.helpers.cells import files_of, fill, make_experiment

CELL = "tiny/structured/s0.30/fastforward/seed0"
SEARCH = {"context": 100, "evaluations": 20, "windows_per_evaluation": 2}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = make_experiment(tmp_path, search=SEARCH)
    fill(experiment)
    return experiment


def begin(experiment, measurements, age_s=1.0) -> Path:
    """A search that measured these (key, tokens), half a second a piece."""
    journal = FileJournal(files_of(experiment, CELL).journal, "x")
    for key, tokens in measurements:
        journal.add(key, [3.0, 3.1], 0.5, tokens=tokens)
    os.utime(journal.path, (time.time() - age_s,) * 2)
    return journal.path


def line_of(experiment, cell=CELL) -> str:
    return next(line for line in status.lines(experiment) if cell in line)


def test_totals_name_every_state(experiment, capsys):
    assert main(["status", "--config", str(experiment.file)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "6 of 9 cells done (67%), 1 failed, 2 not begun; no run of the workflow is at work here."


def test_a_search_shows_its_progress_rate_and_time_left(experiment):
    begin(experiment, [("search:a", 200), ("search:b", 200), ("gates:c", 600), ("selection:d", 900)])
    log = Layout.from_grid(experiment.grid).log("allocate", CELL)
    log.parent.mkdir(parents=True)
    log.write_text("10:00:00 fastforward: 2 evaluations, 400/4000 tokens, best 0.4321, 400 tokens/s, 9 s left\n")
    text = line_of(experiment)
    # 1,000 tokens in 1.5 s; those of the selection text are no part of the budget, which has 4,000.
    assert text.startswith(
        f"searching  {CELL}  3 evaluations, 1,000 of 4,000 tokens (25%), best 0.4321, 667 tokens/s, "
    )
    assert "4 s left, measured 1 s ago" in text or "5 s left, measured 1 s ago" in text


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if is_search(method)])
def test_the_tokens_of_every_search_are_those_that_its_reward_forwarded(tmp_path, name):
    """On a tiny model with its journal; a gradient step of some methods has another number of windows."""
    import torch

    from ffp import api
    from ffp.models.prunable import PrunableModel
    from ffp.pruning.cuts import make_cut
    from tests.helpers.families import tiny

    search = {"context": 16, "evaluations": 24, "windows_per_evaluation": 5, "windows": 8}
    experiment = make_experiment(tmp_path, methods=[name], search=search)
    cell = experiment.cell(f"tiny/structured/s0.30/{name}/seed0")
    torch.manual_seed(0)
    windows = api.Windows(*(torch.randint(0, 64, (n, 16)) for n in (4, 8, 4)))
    prunable = PrunableModel(tiny("llama"), min_keep=0)  # 2ssp asks for it
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    calibration = api.calibrate(prunable, windows, grams=True)
    found = api.allocate(
        prunable, calibration, create(name, {}), sparsity=0.3, cut=cut, checkpoints=(0.5, 1.0),
        budget=experiment.grid.search.budget(), journal=FileJournal(files_of(experiment, cell.path).journal, "x"),
    )  # fmt: skip
    shown = status.read_progress(experiment, Record(cell, {}))
    assert shown.tokens == found.trace[-1]["tokens"] == found.cost.n_tokens - found.cost.selection_tokens > 0
    assert shown.tokens <= shown.total == 24 * 5 * 16


def test_a_search_that_measured_nothing_for_long_may_still_run_by_another_clock(experiment):
    journal = begin(experiment, [("search:a", 200)])
    journal.write_bytes(journal.read_bytes() + b"0000 torn li")
    os.utime(journal, (time.time() - 3600,) * 2)
    text = line_of(experiment)
    assert text.startswith("quiet") and "1 evaluations, 200 of 4,000 tokens (5%)" in text
    assert text.endswith("no measurement for 60 min; if it no longer runs, a run goes on from there")


def test_a_journal_without_tokens_does_not_stop_status(experiment):
    journal = files_of(experiment, CELL).journal
    journal.parent.mkdir(parents=True)
    lines = [{"key": "identity", "values": ["x"]}, {"key": "search:a", "values": [3.0], "s": 0.5}]
    journal.write_text("".join(map(sealed_line, lines)))
    assert "1 evaluations, 0 of 4,000 tokens (0%)" in line_of(experiment)


def test_a_failed_cell_shows_why(experiment):
    line = line_of(experiment, "s0.30/evolutionary")
    assert "failed     tiny/structured/s0.30/evolutionary/seed0" in line and "cannot be read" in line


def test_work_left_is_that_of_finished_cells_of_the_same_method(experiment):
    # At 20 % cells took 1.5 s of search and 2 s of evaluation. At 30 % owl misses its scores, fastforward both.
    assert list(status.lines(experiment))[-1] == "left: about 6 s of work for 2 cells, without model loading."


def test_a_run_at_work_is_named(experiment):
    locks.hold()
    try:
        assert f"a run is at work here (process {os.getpid()})." in next(iter(status.lines(experiment)))
    finally:
        locks._held.pop().release()
    assert "no run of the workflow" in next(iter(status.lines(experiment)))
