"""What a grid took: read from the files of its finished jobs, put beside the plan, and used for the next plan."""

from __future__ import annotations

import copy
import csv
import re
import shutil
from pathlib import Path

import pytest
import yaml

from ffp.config import Experiment, TasksConfig
from ffp.config.assets import StockTask
from ffp.pipeline import plan, sizes, spent
from ffp.pipeline.took import took
from ffp.store.layout import Layout
from ffp.store.schemas import CostFile, ScoresFile

GRID = Path("config/grid.yaml")


@pytest.fixture
def experiment(tiny_grid, monkeypatch):
    """The finished tiny grid, in its folder."""
    monkeypatch.chdir(tiny_grid)
    return Experiment(GRID)


def tokens(experiment):
    """Tokens of a forward that are planned, by step."""
    prunable = sizes.prunables_of(experiment, "tiny", sizes.load_sizes(experiment, "tiny"))[0]
    work = plan.planned_flops(prunable, experiment, "tiny", 0)
    return {step: flops / sizes.forward_flops(prunable) for step, flops in work.items()}


def test_every_job_that_ran_the_model_is_counted_once(experiment):
    layout, found = Layout.from_grid(experiment.grid), took(experiment, "tiny")
    cells = list(experiment.cells())
    searches = [CostFile.read(layout.cell(cell).search_cost) for cell in cells if "fastforward" in cell.method]
    scores = [ScoresFile.read(layout.cell(cell).scores).cost for cell in cells]
    jobs = {step: part.jobs for step, part in found.items()}
    assert jobs == {"calibrate": 1, "allocate": 2, "apply": 1, "evaluate": 4}
    assert found["allocate"].tokens == sum(cost.n_tokens for cost in searches)
    assert found["allocate"].memory == max(cost.peak_mem_bytes for cost in searches)
    assert found["evaluate"].seconds == pytest.approx(sum(cost.wall_s for cost in scores))
    measured = Path("logs/apply/tiny/structured/s0.30/owl/seed0.benchmark.tsv").read_text()
    (row,) = csv.DictReader(measured.splitlines(), delimiter="\t")
    assert found["apply"].seconds == float(row["s"])


def test_gram_matrices_that_another_grid_collected_are_not_counted(experiment, tmp_path, monkeypatch):
    """They lie beside the calibration, which grids share."""
    for name in ("config", "data", "results"):
        shutil.copytree(name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    files = Layout.from_grid(experiment.grid).calibration("tiny")
    shutil.copy(files.cost, files.grams_cost)
    table, grid = spent.compare(experiment), yaml.safe_load(GRID.read_text())
    assert "tiny calibrate" in table and "grams" not in table
    GRID.write_text(yaml.safe_dump({**grid, "methods": [*grid["methods"], "fisher-table"]}))
    assert re.search(r"tiny grams +1 of 1", spent.compare(Experiment(GRID)))


def test_tokens_of_the_plan_bound_those_that_were_taken(experiment):
    planned, found = tokens(experiment), took(experiment, "tiny")
    for step in ("calibrate", "evaluate"):  # the first token of a window is not predicted
        assert planned[step] == pytest.approx(found[step].tokens, rel=0.05)
    assert 0.5 < found["allocate"].tokens / planned["allocate"] <= 1


def test_tokens_of_tasks_are_planned_as_time_alone(experiment):
    asked = experiment.grid.model_copy(update={"tasks": (StockTask(task="arc_easy"),)})
    with_tasks = copy.copy(experiment)
    with_tasks.grid, with_tasks.tasks = asked, TasksConfig.of(asked.tasks)

    def row(of):
        (found,) = re.findall(r"tiny evaluate +4 of 4 +(\S+ \S+) +\S+ \S+ +(\S+) ", spent.compare(of))
        return found

    (before, plain), (after, asked_tokens) = row(experiment), row(with_tasks)
    assert plain == asked_tokens and before != after


def test_the_next_plan_is_as_fast_as_the_finished_jobs(experiment):
    planned, found = plan.plan_model(experiment, "tiny"), took(experiment, "tiny")
    forward = planned.flops["calibrate"] / tokens(experiment)["calibrate"]
    timed = [found[step] for step in ("calibrate", "allocate")]
    speed = forward * sum(part.tokens for part in timed) / sum(part.seconds for part in timed)
    assert planned.speed.flops == pytest.approx(speed)
    assert "TFLOP/s (measured: its finished jobs)" in plan.report(experiment)
    assert "at 3 TFLOP/s (given)" in plan.report(experiment, tflops=3.0)


def test_the_table_has_a_row_for_each_step_and_says_where_nothing_has_ended(experiment, tmp_path, monkeypatch):
    rows = re.findall(r"^ +tiny (\w+) +(\d+) of (\d+)", spent.compare(experiment), re.MULTILINE)
    assert rows == [("calibrate", "1", "1"), ("allocate", "2", "2"), ("apply", "1", "1"), ("evaluate", "4", "4")]
    shutil.copytree("data", tmp_path / "data")
    shutil.copytree("config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    begun = spent.compare(Experiment(GRID))
    assert re.search(r"tiny calibrate +1 of 1", begun) and "allocate" not in begun
    Layout.from_grid(experiment.grid).calibration("tiny").cost.unlink()
    assert spent.compare(Experiment(GRID)) == "No job of config/grid.yaml has ended yet."
