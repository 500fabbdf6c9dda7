"""The tiny real grid, run once for all tests that read it."""

from pathlib import Path

import pytest

from tests.workflow import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder where the workflow has run to its end."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.build(folder)
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    return folder
