"""Where the tests of assets put what they make."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Folder of an asset, which is not there yet."""
    return tmp_path / "data" / "assets" / "x"


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Folder that all assets share."""
    return tmp_path / "data" / "downloads"
