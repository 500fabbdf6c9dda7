"""What `--help` shows in a narrow terminal."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path

import pytest
import typer.main

from ffp.cli import app
from ffp.cli.steps import evaluate
from ffp.config import Experiment
from ffp.report.collect import Record
from ffp.report.details import commands

COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_whole_at_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        app([command, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and "--help" in shown
    assert "…" not in shown


def test_the_example_of_an_evaluation_gives_all_that_its_grid_needs():
    lines = inspect.getdoc(evaluate).replace("\\\n", "").splitlines()
    cell = next(line.partition("CELL=")[2] for line in lines if "CELL=" in line)
    shown = next(line for line in lines if "ffp evaluate" in line).replace("$CELL", cell)
    experiment = Experiment(Path("config/grids/demo.yaml"))
    expected = commands(experiment, Record(experiment.cell(cell), {}))[-1]
    assert sorted(shlex.split(shown)) == sorted(shlex.split(expected))
