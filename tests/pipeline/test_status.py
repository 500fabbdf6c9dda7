"""`ffp status` on grids in every state: what is done, what is searching, what stopped, what failed, what is left."""

import os
import time
from pathlib import Path

import pytest

from ffp.cli import main
from ffp.pipeline import locks, status
from ffp.store.files import sealed_line
from tests.helpers.cells import fill, make_project

CELL = "tiny/structured/s0.30/fastforward/seed0"
SEARCH = {"context": 100, "evaluations": 20, "windows_per_evaluation": 2}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = make_project(tmp_path, search=SEARCH)
    fill(project)
    return project


def begin(project, measurements, age_s=1.0) -> Path:
    """A search that measured these keys, two windows each, half a second a piece."""
    journal = Path(project.grid.results) / "cells" / CELL / "journal.txt"
    journal.parent.mkdir(parents=True)
    lines = [{"key": "identity", "values": ["x"]}]
    lines += [{"key": key, "values": [3.0, 3.1], "s": 0.5} for key in measurements]
    journal.write_text("".join(map(sealed_line, lines)))
    os.utime(journal, (time.time() - age_s,) * 2)
    return journal


def line_of(project, cell=CELL) -> str:
    return next(line for line in status.lines(project) if cell in line)


def test_totals_name_every_state(project, capsys):
    assert main(["status", "--config", str(project.file)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "6 of 9 cells done (67%), 1 failed, 2 not begun; no run of the workflow is at work here."


def test_a_search_shows_its_progress_rate_and_time_left(project):
    begin(project, ["search:a", "search:b", "gates:c", "selection:d"])
    log = Path(f"logs/allocate/{CELL}.log")
    log.parent.mkdir(parents=True)
    log.write_text("10:00:00 fastforward: 2 evaluations, 400/4000 tokens, best 0.4321, 400 tokens/s, 9 s left\n")
    text = line_of(project)
    # 2 + 2 windows and a gradient of three times 2: 10 windows of 100 tokens, in 1.5 s; the budget has 4,000.
    assert text.startswith(
        f"searching  {CELL}  3 evaluations, 1,000 of 4,000 tokens (25%), best 0.4321, 667 tokens/s, "
    )
    assert "4 s left, measured 1 s ago" in text or "5 s left, measured 1 s ago" in text


def test_a_search_that_measured_nothing_for_long_has_stopped(project):
    journal = begin(project, ["search:a"], age_s=3600)
    journal.write_bytes(journal.read_bytes() + b"0000 torn li")
    os.utime(journal, (time.time() - 3600,) * 2)
    text = line_of(project)
    assert text.startswith("stopped") and "1 evaluations, 200 of 4,000 tokens (5%)" in text
    assert text.endswith("measured 60 min ago; goes on from there when started again")


def test_a_failed_cell_shows_why(project):
    assert "failed     tiny/structured/s0.30/evolutionary/seed0" in (line := line_of(project, "s0.30/evolutionary"))
    assert "cannot be read" in line


def test_work_left_is_that_of_finished_cells_of_the_same_method(project):
    # owl and fastforward miss their scores at 30 %; at 20 % both took 1.5 s of search and 2 s of evaluation.
    assert list(status.lines(project))[-1] == "left: about 7 s of work for 2 cells, model loading not counted."


def test_a_run_at_work_is_named(project):
    locks.hold()
    try:
        assert f"a run is at work here (process {os.getpid()})." in next(iter(status.lines(project)))
    finally:
        os.close(locks._held.pop())
    assert "no run of the workflow" in next(iter(status.lines(project)))
