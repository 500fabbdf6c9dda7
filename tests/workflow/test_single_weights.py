"""Single weights from files to files: allocated, pruned, evaluated and verified by the commands of the rules."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from ffp import cli
from ffp.config import Experiment
from ffp.store import schemas
from ffp.store.schemas import AllocationFile, ScoresFile
from tests.helpers import tiny
from tests.helpers.verify import AllButTheReport

MODEL, TEXT, CALIBRATION = "data/models/tiny", "data/text/docs", "data/calibration/tiny"
CELLS = [
    ("unstructured", "0.60", "uniform-sparsegpt"),
    ("unstructured", "0.60", "evolutionary"),
    ("n-of-8", "0.50", "owl"),
    ("n-of-8", "0.50", "shortgpt"),
    ("structured", "0.30", "flap-bias"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A calibrated site whose grid has all granularities."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)  # the grid names its sources relative to it
        yield make(folder)


def make(folder):
    grid = tiny.build(folder)
    body = yaml.safe_load(grid.read_text())
    body |= {
        "granularities": ["structured", "unstructured", "n-of-8"],
        "own_sparsities": {"unstructured": [0.6], "n-of-8": [0.5]},
        "methods": ["uniform-sparsegpt", "evolutionary", "owl", "shortgpt", "flap-bias"],
        "variants": {
            "uniform-sparsegpt": {"use": "uniform", "pruner": "sparsegpt"},
            "flap-bias": {"use": "flap", "score": "wifv", "compensate": "bias"},
            "evolutionary": {"fitness": "kl", "params": {"step": 500}},
        },
    }
    grid.write_text(yaml.safe_dump(body))
    config = folder / "config"
    run("asset", "model", "--config", config / "models/tiny.yaml", "--out", folder / MODEL)
    run("asset", "text", "--config", config / "texts/docs.yaml", "--out", folder / TEXT)
    run("calibrate", "--config", grid, "--model", "tiny", "--model-dir", folder / MODEL, "--text-dir",
        folder / TEXT, "--out", folder / CALIBRATION)  # fmt: skip
    return folder


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.parametrize(("granularity", "sparsity", "method"), CELLS)
def test_a_cell(site, granularity, sparsity, method):
    cell = f"tiny/{granularity}/s{sparsity}/{method}/seed0"
    out, grid = site / "results" / "cells" / cell, site / "config" / "grid.yaml"
    common = ["--config", grid, "--cell", cell, "--model-dir", site / MODEL]
    run("allocate", *common, "--calibration", site / CALIBRATION, "--out", out)
    run("apply", *common, "--calibration", site / CALIBRATION, "--allocation", out / "allocation.json", "--out", out)
    run("evaluate", *common, "--text-dir", site / TEXT, "--cut", out, "--out", out / "scores.json")
    scores, allocation = ScoresFile.read(out / "scores.json"), AllocationFile.read(out / "allocation.json")
    assert scores.block_sparsity == pytest.approx(allocation.block_sparsity, abs=1e-12)
    assert float(sparsity) <= scores.block_sparsity < float(sparsity) + 0.1
    assert np.isfinite(scores.ppl.value)
    if granularity == "unstructured":
        assert scores.block_sparsity == pytest.approx(0.6, abs=1e-4)
        gone = scores.params.dense - scores.params.kept
        assert gone == pytest.approx(0.6 * sum(decision.n_units for decision in allocation.problem.decisions), abs=1)
    updates, _ = schemas.UPDATES.read(out / "updates.safetensors")
    assert bool(updates) == (method in ("uniform-sparsegpt", "flap-bias"))
    assert not faults(cell)


def faults(cell):
    """What verify finds wrong with a cell and the assets behind it, in a grid that is not finished."""
    verifier = AllButTheReport(Experiment(Path("config/grid.yaml")))
    return [fault for fault in verifier.run() if cell in fault or "data/" in fault]


def flip(packed, name, *weights):
    """Turn over the bits of some weights of one packed mask."""
    bits = np.unpackbits(packed[name])
    bits[list(weights)] ^= 1
    return {**packed, name: np.packbits(bits)}


@pytest.mark.parametrize(("granularity", "sparsity", "method"), CELLS[:3])
def test_a_weight_more_or_another_weight_in_a_sealed_mask_is_found(site, granularity, sparsity, method):
    cell = f"tiny/{granularity}/s{sparsity}/{method}/seed0"
    if not (site / "results/cells" / cell / "scores.json").exists():
        test_a_cell(site, granularity, sparsity, method)
    file = site / "results/cells" / cell / "masks.safetensors"
    before = file.read_bytes()
    masks, meta = schemas.MASKS.read(file)
    name = next(iter(masks))
    bits = np.unpackbits(masks[name])
    kept, gone = int(np.flatnonzero(bits)[0]), int(np.flatnonzero(bits == 0)[0])
    schemas.MASKS.write(file, flip(masks, name, gone), meta)
    counted = faults(cell)
    assert any("masks.safetensors: units kept is" in fault or "keeps no whole N" in fault for fault in counted), counted
    schemas.MASKS.write(file, flip(masks, name, gone, kept), meta)
    exchanged = faults(cell)
    assert any("scores.json: masks is" in fault for fault in exchanged), exchanged
    file.write_bytes(before)
    assert not faults(cell)


def test_cells_are_those_that_a_granularity_serves(site):
    experiment = Experiment(site / "config" / "grid.yaml")
    cells = {(cell.granularity, cell.sparsity, cell.method) for cell in experiment.cells(dense=False)}
    assert set(CELLS) <= cells
    assert ("structured", "0.30", "uniform-sparsegpt") not in cells
    assert experiment.refusal("flap-bias", "unstructured") == "flap-bias serves structured pruning only"
    assert "unstructured" in experiment.refusal("uniform-sparsegpt", "structured")
