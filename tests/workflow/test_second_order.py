"""A grid whose search knows of the compensation behind it: from calibration with Gram matrices to a sound report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import ffp
from ffp.config import Experiment
from ffp.core.errors import ConfigError
from ffp.models.checkpoint import load_model, load_tokenizer
from ffp.store import schemas
from ffp.store.documents import read_documents
from ffp.store.layout import SPLITS, Layout
from tests.helpers import tiny
from tests.helpers.verify import faults

AWARE = {"use": "fastforward-guided", "score": "obs", "compensate": "ridge", "params": {"start": "fisher-table"}}
METHODS = ["owl", "fastforward-guided", "aware"]


def write(folder: Path, **keys: object) -> Experiment:
    """The tiny grid with one search that is compensated, one that is not, and a heuristic."""
    file = folder / "config/grid.yaml"
    body = yaml.safe_load(file.read_text())
    body |= {"methods": METHODS, "variants": {"aware": AWARE}, "search": body["search"] | {"compensated": True}}
    file.write_text(yaml.safe_dump(body | keys))
    return Experiment(file)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid."""
    folder = tmp_path_factory.mktemp("second")
    tiny.build(folder)
    write(folder)
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    return folder


def test_only_cells_that_need_it_are_compensated_in_the_search_and_read_gram_matrices(tmp_path: Path) -> None:
    tiny.configure(tmp_path)
    experiment = write(tmp_path)
    assert [experiment.compensated_search(name) for name in METHODS] == [False, False, True]
    assert [experiment.needs_grams(name) for name in METHODS] == [False, False, True]
    assert experiment.keeps_grams
    assert not write(tmp_path, methods=METHODS[:2]).keeps_grams
    assert not write(
        tmp_path, variants={"aware": AWARE | {"score": "wanda", "params": {}, "compensated": False}}
    ).keeps_grams
    assert write(tmp_path, methods=["owl"], variants={"owl": {"score": "pairwise"}}).keeps_grams
    with pytest.raises(ConfigError, match="aware serves structured pruning only"):
        write(tmp_path, methods=["aware"], granularities=["unstructured"])
    with pytest.raises(ConfigError, match="compensated: true needs compensate: ridge"):
        write(tmp_path, variants={"aware": AWARE | {"compensate": "bias", "compensated": True}})


def test_the_grid_is_sound_and_a_second_run_does_nothing(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grid)
    experiment = Experiment(Path("config/grid.yaml"))
    assert not faults(experiment)
    assert "Nothing to be done" in tiny.snakemake(grid, "--dry-run").output
    cell = next(cell for cell in experiment.cells() if cell.method == "aware")
    trace = schemas.TRACE.read(Layout.from_grid(experiment.grid).cell(cell).trace)
    assert trace["stage"][0] == "table" and trace["sparsity"][0] == 0
    assert set(trace["stage"][1:]) == {"gates"}


def test_prune_with_the_same_settings_gives_the_cells_allocation_and_perplexity(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(grid)
    experiment = Experiment(Path("config/grid.yaml"))
    layout, settings = Layout.from_grid(experiment.grid), experiment.grid
    cell = next(cell for cell in experiment.cells() if cell.method == "aware")
    torch.set_num_threads(experiment.models["tiny"].resources.threads)
    folder = layout.model("tiny").folder
    pruned = ffp.prune(
        load_model(folder, experiment.models["tiny"]), load_tokenizer(folder), sparsity=0.3,
        method="fastforward-guided", params=AWARE["params"], compensate="ridge", search=settings.search,
        text={name: read_documents(layout.text("docs").documents(name)) for name in SPLITS}, batch_tokens=256,
        calibration=settings.calibration.model_copy(update={"score": "obs"}), evaluation=settings.evaluation,
    )  # fmt: skip
    files = layout.cell(cell)
    assert schemas.AllocationFile.read(files.allocation).keep == pruned.allocation.allocation.keep
    assert schemas.ScoresFile.read(files.scores).ppl.value == pruned.pruned.ppl["value"]


def test_gram_matrices_of_an_edited_file_are_refused(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grid)
    experiment = Experiment(Path("config/grid.yaml"))
    file = Layout.from_grid(experiment.grid).calibration("tiny").grams
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    found = "\n".join(faults(experiment))
    file.write_bytes(kept)
    assert str(file) in found
