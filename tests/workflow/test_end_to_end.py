"""The whole pipeline on a tiny real grid: runs, does nothing again, survives kill -9, and says what is wrong."""

import base64
import gzip
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest

from ffp.core import projection
from ffp.store import schemas
from ffp.store.schemas import AllocationFile, AnswersFile, CostFile, ScoresFile
from tests.helpers import tiny

METHODS = ("owl", "fastforward", "fastforward-guided")


def cell(method):
    return f"tiny/structured/s0.30/{method}/seed0"


def test_every_cell_is_scored_and_reported(finished):
    table = pd.read_csv(finished / "results/report/comparison.csv")
    assert sorted(table["method"]) == sorted(("dense", *METHODS))
    assert set(table["status"]) == {"done"}
    assert np.isfinite(table["ppl"]).all()
    assert (finished / "results/report/index.html").stat().st_size > 10_000


@pytest.mark.parametrize("method", METHODS)
def test_masks_meet_the_budget_exactly(finished, method):
    folder = finished / "results/cells" / cell(method)
    problem = AllocationFile.read(folder / "allocation.json").pruning_problem
    kept, _ = schemas.MASKS.read(folder / "masks.safetensors")
    keep = [len(kept[decision.name]) for decision in problem.decisions]
    addable = [d.params_per_unit for d, k in zip(problem.decisions, keep, strict=True) if k < d.n_units]
    assert 0 <= projection.kept_budget(problem) - np.dot(keep, problem.params_per_unit) < min(addable)
    scores = ScoresFile.read(folder / "scores.json")
    assert scores.block_sparsity == problem.sparsity_of(keep) >= 0.3
    removed = np.dot(problem.n_units - keep, problem.params_per_unit)
    assert scores.params.dense - scores.params.kept == removed


def test_a_search_leaves_its_answers_and_a_heuristic_an_empty_file(finished):
    for method in METHODS:
        points = AnswersFile.read(finished / "results/cells" / cell(method) / "answers.json").points
        assert bool(points) == (method != "owl")
        assert [point.tokens for point in points] == sorted(point.tokens for point in points)
        assert all(np.isfinite(point.loss) for point in points)


def test_only_the_compensated_method_has_updates(finished):
    for method in METHODS:
        folder = finished / "results/cells" / cell(method)
        updates, _ = schemas.UPDATES.read(folder / "updates.safetensors")
        allocation = AllocationFile.read(folder / "allocation.json")
        decisions = allocation.pruning_problem.decisions
        cut = sum(kept < decision.n_units for decision, kept in zip(decisions, allocation.keep, strict=True))
        assert len(updates) == (cut if method == "owl" else 0) and cut > 0


def test_a_second_run_does_nothing(finished):
    again = tiny.snakemake(finished)
    assert again.returncode == 0
    assert "Nothing to be done" in again.output


def test_the_printed_commands_make_a_cell_alone_again(finished, tmp_path):
    """What the page prints for a cell, typed into a shell where that cell and its calibration are gone."""
    source = (finished / "results/report/index.html").read_text()
    packed = re.search(r'id="cell-details">([^<]+)<', source)[1]
    printed = json.loads(gzip.decompress(base64.b64decode(packed)))[cell("fastforward")]
    assert printed["logs"].keys() == {"allocate", "apply", "evaluate"}
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    shutil.rmtree(again / "results/cells")
    shutil.rmtree(again / "data/calibration")
    lines = [*printed["inputs"], *printed["commands"]]
    done = tiny.shell(again, *lines)
    assert done.returncode == 0, done.stdout
    for name in ("allocation.json", "trace.parquet", "masks.safetensors"):
        assert (again / "results/cells" / cell("fastforward") / name).read_bytes() == (
            finished / "results/cells" / cell("fastforward") / name
        ).read_bytes()
    compared = tiny.shell(again, f"ffp compare {finished / 'results'} results")
    assert f"only in A     {cell('owl')}" in compared.stdout
    mine = [line for line in compared.stdout.splitlines() if cell("fastforward") in line]
    assert all(line.split()[:2] == ["only", "cost"] for line in mine), compared.stdout


def test_status_says_that_all_is_done(finished):
    done = tiny.shell(finished, "ffp status --config config/grid.yaml")
    assert done.stdout.strip().endswith("4 of 4 cells done (100%); no run of the workflow is at work here.")


def test_snakemakes_own_report_has_the_captions(finished):
    done = tiny.snakemake(finished, "--report", "own.html")
    assert done.returncode == 0, done.output
    text = (finished / "own.html").read_text()
    assert (
        "One row for each cell of the grid." in text
        and "The answer that each search would have given after so many tokens" in text
    )


def allocate(folder, method, **options):
    words = ["--config", "config/grid.yaml", "--cell", cell(method), "--model-dir", "data/models/tiny"]
    words += ["--calibration", "data/calibration/tiny", "--out", f"again/{method}"]
    return tiny.run(folder, "ffp.cli", "allocate", *words, **options)


@pytest.mark.parametrize("method", ["fastforward", "fastforward-guided"])
def test_a_killed_search_ends_like_an_undisturbed_one(finished, method):
    """kill -9 after a few measurements; the second attempt ends with the same bytes."""
    journal = finished / f"again/{method}/journal.txt"
    search = allocate(finished, method, start_only=True)
    while search.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 6):
        time.sleep(0.01)
    assert search.poll() is None, "the search ended before it could be killed"
    os.killpg(search.pid, signal.SIGKILL)
    search.wait()
    assert not (finished / f"again/{method}/allocation.json").exists()
    assert (last := allocate(finished, method)).returncode == 0, last.output
    assert "resuming:" in last.output
    straight, again = finished / "results/cells" / cell(method), finished / "again" / method
    assert (again / "allocation.json").read_bytes() == (straight / "allocation.json").read_bytes()
    assert (again / "trace.parquet").read_bytes() == (straight / "trace.parquet").read_bytes()
    costs = [CostFile.read(folder / "search.cost.json") for folder in (straight, again)]
    assert costs[0].evaluations == costs[1].evaluations and costs[0].n_tokens == costs[1].n_tokens
    assert not journal.exists()


def test_bad_requests_exit_2_and_damaged_files_3_with_one_line(finished):
    words = ["allocate", "--config", "config/grid.yaml", "--model-dir", "data/models/tiny", "--out", "x"]
    calibration = ["--calibration", "data/calibration/tiny"]
    unknown = tiny.run(finished, "ffp.cli", *words, "--cell", cell("olw"), *calibration)
    assert unknown.returncode == 2
    assert f"has no cell '{cell('olw')}': did you mean {cell('owl')}" in unknown.output
    damaged = finished / "damaged"
    damaged.mkdir()
    for name in ("tokens.safetensors", "stats.safetensors"):
        damaged.joinpath(name).write_bytes((finished / "data/calibration/tiny" / name).read_bytes()[:-7])
    broken = tiny.run(finished, "ffp.cli", *words, "--cell", cell("owl"), "--calibration", "damaged")
    assert broken.returncode == 3
    assert "damaged/stats.safetensors cannot be read" in broken.output
    assert "Traceback" not in unknown.output + broken.output
    assert not (finished / "x").exists()
