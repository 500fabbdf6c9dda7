"""The tiny real grid, under the name that the tests of the workflow give it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished(tiny_grid: Path) -> Path:
    """A folder where the workflow has run to its end; it is not run a second time."""
    return tiny_grid
