"""Where files lie: the same paths for Python and for the workflow's wildcards."""

from __future__ import annotations

from pathlib import Path

from ffp.config import Cell
from ffp.store.layout import FIGURES, WILDCARD_CELL, Layout, downloads_of

LAYOUT = Layout(Path("data"), Path("results"))
CELL = Cell("m", "structured", "0.20", "owl", 3)


def test_a_cell_has_a_folder_of_its_own():
    assert LAYOUT.cell(CELL).scores == Path("results/cells/m/structured/s0.20/owl/seed3/scores.json")


def test_wildcards_give_the_pattern_of_every_cell():
    names = {"model": "m", "granularity": "structured", "sparsity": "0.20", "method": "owl", "seed": 3}
    for pattern, path in zip(LAYOUT.cell(WILDCARD_CELL).searched, LAYOUT.cell(CELL).searched, strict=True):
        assert str(pattern).format(**names) == str(path)


def test_assets_of_a_data_folder_share_their_downloads():
    assert downloads_of(LAYOUT.model("m").folder) == Path("data/downloads").absolute()


def test_the_report_names_each_of_its_files_once():
    files = LAYOUT.report.all
    assert len(set(files)) == len(files)
    assert {path.stem for path in files if path.suffix == ".svg"} == set(FIGURES)
