"""What the tests of faults share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def grid(tiny_grid: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny grid, with what Snakemake remembers of it."""
    folder = tmp_path / "grid"
    shutil.copytree(tiny_grid, folder, ignore=shutil.ignore_patterns("again", "damaged", "*.log"))
    return folder
