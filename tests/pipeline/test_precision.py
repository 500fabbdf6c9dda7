"""A checkpoint in bfloat16, whose YAML names no dtype, stays in bfloat16 from the first step to the exported file."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from ffp.assets import fetch_model, fetch_text
from ffp.config import Experiment
from ffp.models.formats import DenseShape, Transformers
from ffp.pipeline import steps
from ffp.pipeline.export import export
from ffp.store.layout import Layout
from tests.helpers import tiny

SIZES = {"intermediate_size": 1024, "num_key_value_heads": 2, "dtype": torch.bfloat16}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with a grid of one method at 50 %, whose model is fetched and calibrated."""
    monkeypatch.chdir(tmp_path)
    grid = tiny.build(tmp_path, **SIZES)
    body = yaml.safe_load(grid.read_text()) | {"sparsities": [0.5], "methods": ["owl"]}
    grid.write_text(yaml.safe_dump(body))
    experiment = Experiment(Path("config/grid.yaml"))
    layout = Layout.from_grid(experiment.grid)
    assert experiment.models["tiny"].dtype == "auto"
    fetch_model(experiment.models["tiny"], layout.model("tiny").folder)
    fetch_text(experiment.text, layout.text("docs").folder)
    steps.calibrate(experiment, "tiny", layout.model("tiny").folder, layout.text("docs").folder, Path("calibration"))
    return experiment, layout.model("tiny").folder


def dtypes(file):
    with safe_open(file, framework="pt") as weights:
        return {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118


@pytest.mark.parametrize("format", [Transformers(), DenseShape()])
def test_a_bfloat16_checkpoint_is_pruned_and_exported_as_such(site, format):
    experiment, model = site
    cell, out = next(iter(experiment.cells(dense=False))), Path("cell")
    steps.allocate(experiment, cell, model, Path("calibration"), out)
    steps.apply(experiment, cell, model, Path("calibration"), out / "allocation.json", out)
    export(experiment, cell, model, out, Path("exported"), format=format)
    dense, pruned = (folder / "model.safetensors" for folder in (model, Path("exported")))
    assert dtypes(dense) == dtypes(pruned) == {torch.bfloat16}
    share = pruned.stat().st_size / dense.stat().st_size
    assert share > 0.99 if format.zeros else 0.45 < share < 0.55
