"""Where files lie: the same paths for Python and for the workflow's wildcards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ffp.config import Cell
from ffp.core.errors import ConfigError
from ffp.store.layout import FIGURES, WILDCARD_CELL, Layout, default_data, downloads_of

LAYOUT = Layout(Path("data"), Path("results"))
CELL = Cell("m", "structured", "0.20", "owl", 3)


def test_a_cell_has_a_folder_of_its_own():
    assert LAYOUT.cell(CELL).scores == Path("results/cells/m/structured/s0.20/owl/seed3/scores.json")


def test_results_in_another_folder_have_logs_of_their_own():
    folders = ["results", "/results", "../results", "/scratch/results", "results/paper"]
    logs = [str(Layout(Path("data"), Path(folder)).logs) for folder in folders]
    assert logs == ["logs", "logs/results", "logs/results", "logs/scratch/results", "logs/results/paper"]
    assert str(Layout(Path("data"), Path("./results/")).logs) == "logs"


def test_wildcards_give_the_pattern_of_every_cell():
    names = {"model": "m", "granularity": "structured", "sparsity": "0.20", "method": "owl", "seed": 3}
    for pattern, path in zip(LAYOUT.cell(WILDCARD_CELL).searched, LAYOUT.cell(CELL).searched, strict=True):
        assert str(pattern).format(**names) == str(path)


def test_assets_of_a_data_folder_share_their_downloads():
    assert downloads_of(LAYOUT.model("m").folder) == Path("data/downloads").absolute()


def test_a_user_whom_the_system_does_not_know_is_asked_for_home(tmp_path, monkeypatch):
    """As in a container that runs under a number of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    with pytest.raises(ConfigError, match=r"the home directory in ~/.cache is not known.* set HOME"):
        default_data()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data() == tmp_path / ".cache/ffp"


def test_the_report_names_each_of_its_files_once():
    files = LAYOUT.report.all
    assert len(set(files)) == len(files)
    assert {path.stem for path in files if path.suffix == ".svg"} == set(FIGURES)
