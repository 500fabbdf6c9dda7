"""Steps of the workflow that were killed, and started again with another setting."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ffp.config import Experiment
from ffp.core.errors import ArtifactError, ConfigError
from ffp.models import checkpoint
from ffp.pipeline import steps
from ffp.store.journal import FileJournal
from ffp.store.layout import CellFiles, Layout
from ffp.store.schemas import AllocationFile

GRID, MODEL = Path("config/grid.yaml"), Path("config/models/tiny.yaml")
SEARCH, HEURISTIC = "tiny/structured/s0.30/fastforward/seed0", "tiny/structured/s0.30/owl/seed0"


@pytest.fixture(autouse=True)
def grid(tiny_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished grid, in the working folder."""
    for name in ("config", "data"):
        shutil.copytree(tiny_grid / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


def search(cell: str = SEARCH) -> CellFiles:
    """The search, or the allocation, of a cell with the settings as they are."""
    experiment = Experiment(GRID)
    layout = Layout.from_grid(experiment.grid)
    folders = layout.model("tiny").folder, layout.calibration("tiny").folder, Path("out")
    steps.allocate(experiment, experiment.cell(cell), *folders)
    return CellFiles(Path("out"))


@pytest.mark.parametrize("settings", [{"device": "cuda"}, {"device": "cuda", "offload": True}], ids=["cuda", "offload"])
def test_a_heuristic_of_a_model_for_gpus_needs_none(
    settings: dict[str, object], tiny_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node without one, after a node with one has calibrated; here that is pretended."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    MODEL.write_text(yaml.safe_dump({**yaml.safe_load(MODEL.read_text()), **settings}))
    experiment = Experiment(GRID)
    layout = Layout.from_grid(experiment.grid)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "choose_device", lambda name: torch.device("cpu"))
        folders = layout.model("tiny"), layout.text("docs"), layout.calibration("tiny")
        steps.calibrate(experiment, "tiny", *(files.folder for files in folders))
    found = AllocationFile.read(search(HEURISTIC).allocation)
    before = AllocationFile.read(CellFiles(tiny_grid / "results/cells" / HEURISTIC).allocation)
    assert found.keep == before.keep and found.provenance.get("device") == "cpu"
    with pytest.raises(ConfigError, match="device 'cuda' is not available on this machine"):
        search(SEARCH)


@pytest.mark.fault
@pytest.mark.parametrize(("batch_tokens", "goes_on"), [(256, True), (64, False)])
def test_a_killed_search_goes_on_with_the_same_batches_alone(
    batch_tokens: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after memory did not suffice: losses of other batches differ in their last bits."""
    config = yaml.safe_load(MODEL.read_text())
    MODEL.write_text(yaml.safe_dump({**config, "batch_tokens": 256}))
    add, seen = FileJournal.add, []

    def killed(self: FileJournal, *given: object, **named: object) -> None:
        add(self, *given, **named)  # type: ignore[arg-type]
        seen.append(given)
        if len(seen) == 3:
            raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(FileJournal, "add", killed)
        search()
    MODEL.write_text(yaml.safe_dump({**config, "batch_tokens": batch_tokens}))
    caplog.set_level("INFO")
    files = search()
    assert ("resuming: 3 measurements" in caplog.text) == goes_on
    assert files.allocation.exists() and not files.journal.exists()


@pytest.mark.fault
@pytest.mark.parametrize(("part", "key"), [("search", "context"), ("search", "windows"), ("calibration", "windows")])
def test_steps_refuse_the_calibration_of_other_settings(part: str, key: str) -> None:
    """A search would forward other windows than the grid, and then its allocation, says."""
    grid = yaml.safe_load(GRID.read_text())
    GRID.write_text(yaml.safe_dump({**grid, part: {**grid[part], key: grid[part][key] + 1}}))
    experiment = Experiment(GRID)
    layout = Layout.from_grid(experiment.grid)
    folders = layout.model("tiny").folder, layout.calibration("tiny").folder
    with pytest.raises(ArtifactError, match=rf"made with other settings .*grid.yaml has now .*{part}.*Calibrate again"):
        search()
    with pytest.raises(ArtifactError, match="Calibrate again"):
        steps.collect_grams(experiment, "tiny", *folders, Path("grams"))
    assert not Path("grams").exists()
