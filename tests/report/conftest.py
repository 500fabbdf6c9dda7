"""Grids for the tests of the report."""

from pathlib import Path

import pytest

from ffp.config import Experiment
from ffp.report import build
from tests.helpers.cells import fill, make_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """An empty grid."""
    return make_experiment(tmp_path)


@pytest.fixture(scope="package")
def built(tmp_path_factory) -> tuple[Experiment, Path]:
    """A grid in every state and its report, built once; tests only read it."""
    folder = tmp_path_factory.mktemp("grid")
    experiment = make_experiment(folder)
    fill(experiment)
    return experiment, build(experiment, folder / "report").parent
