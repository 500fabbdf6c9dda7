"""A run says what it makes anew although another grid may need it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ffp.config import Experiment
from ffp.store import schemas
from ffp.store.identity import step_settings
from ffp.store.layout import Layout
from ffp.store.provenance import provenance
from ffp.store.shared import replaced
from tests.helpers.cells import fill, make_experiment


def grid(folder: Path, **changes: object) -> Experiment:
    return make_experiment(folder, data=str(folder / "data"), **changes)


def calibrate(experiment: Experiment, text: str = "a") -> None:
    """Writes a calibration of the grid's model, and the manifest of the text that it is of."""
    layout, cell = Layout.from_grid(experiment.grid), next(experiment.cells())
    origin = provenance({"text": text}, settings=step_settings(experiment, "calibrate", cell))
    stats = schemas.StatsOrigin(provenance=origin, n_tokens=1)
    schemas.STATS.write(layout.calibration("tiny").stats, {"x": np.zeros(1)}, stats)
    fetch(experiment, text)


def fetch(experiment: Experiment, digest: str) -> None:
    """Writes the manifest of the grid's calibration text."""
    layout = Layout.from_grid(experiment.grid)
    manifest = schemas.AssetFile(kind="text", source={}, files={}, crc32={}, digest=digest)
    manifest.write(layout.text(experiment.grid.calibration_text).manifest)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"calibration": {"windows": 9}}, "calibration"),
        ({"calibration": {"context": 9}, "search": {"windows": 9}}, "calibration, search"),
        ({"text": "more"}, "text"),
    ],
)
def test_another_grids_calibration_and_the_cells_made_with_it_are_named(
    changes: dict[str, object], names: str, tmp_path: Path
) -> None:
    first = grid(tmp_path)
    calibrate(first)
    assert list(replaced(first)) == []
    [sentence] = replaced(grid(tmp_path, **changes))
    folder = tmp_path / "data/calibration/tiny"
    assert sentence.startswith(f"{folder} was made with other settings than {first.file} has ({names}): a run makes it")
    assert "anew. If another grid" in sentence
    fill(first)
    [sentence] = replaced(grid(tmp_path, **changes))
    assert f"makes it anew, and 5 finished cells in {tmp_path}/results/cells/tiny with it. If another" in sentence


def test_what_changes_nothing_in_a_calibration_is_not(tmp_path: Path) -> None:
    calibrate(grid(tmp_path))
    assert list(replaced(grid(tmp_path, sparsities=[0.4], methods=["owl"], search={"evaluations": 9}))) == []
    assert list(replaced(grid(tmp_path, models=["other"], calibration={"windows": 9}))) == []


def test_a_text_that_was_fetched_again_with_other_content_is_named(tmp_path: Path) -> None:
    calibrate(grid(tmp_path))
    fetch(grid(tmp_path), "b")
    assert "(text)" in next(replaced(grid(tmp_path)))


def test_a_damaged_calibration_is_left_to_the_step_that_reads_it(tmp_path: Path) -> None:
    experiment = grid(tmp_path)
    calibrate(experiment)
    Layout.from_grid(experiment.grid).calibration("tiny").stats.write_text("{")
    assert list(replaced(experiment)) == []
