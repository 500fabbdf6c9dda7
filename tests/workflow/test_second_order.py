"""A grid whose search knows of the compensation behind it: from calibration with Gram matrices to a sound report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import ffp
from ffp import cli
from ffp.config import Cell, Experiment
from ffp.core.errors import ConfigError
from ffp.models.checkpoint import load_model, load_tokenizer
from ffp.pipeline import steps
from ffp.report.collect import collect
from ffp.store import schemas
from ffp.store.digests import score_digests
from ffp.store.documents import read_documents
from ffp.store.files import sha256
from ffp.store.layout import SPLITS, CellFiles, Layout
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


@pytest.fixture
def copied(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A copy of the grid, which is the working directory."""
    for name in ("config", "data", "logs", "results"):
        shutil.copytree(grid / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Experiment(Path("config/grid.yaml"))


def write_grams(experiment: Experiment, **changes: object) -> None:
    """Gram matrices of twice the size, in a file whose provenance differs by these keys."""
    path = Layout.from_grid(experiment.grid).calibration("tiny").grams
    arrays, meta = schemas.GRAMS.read(path)
    changed = meta.model_copy(update={"provenance": meta.provenance.model_copy(update=changes)})
    schemas.GRAMS.write(path, {name: 2 * array for name, array in arrays.items()}, changed)


def with_grams(experiment: Experiment) -> tuple[Cell, CellFiles]:
    """The cell that reads Gram matrices, and its files."""
    cell = next(cell for cell in experiment.cells() if cell.method == "aware")
    return cell, Layout.from_grid(experiment.grid).cell(cell)


@pytest.mark.bad_input
@pytest.mark.parametrize("named", ["0" * 16, None])
@pytest.mark.parametrize("step", ["allocate", "reuse", "apply"])
def test_gram_matrices_of_another_calibration_are_refused_in_one_line(
    step: str, named: str | None, copied: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    write_grams(copied, calibration=named)
    cell, files = with_grams(copied)
    given = {
        "allocate": [], "reuse": ["--reuse", str(files.folder)], "apply": ["--allocation", str(files.allocation)],
    }[step]  # fmt: skip
    words = ["--cell", cell.path, "--model-dir", "data/models/tiny", "--calibration", "data/calibration/tiny", *given]
    command = "apply" if step == "apply" else "allocate"
    assert cli.main([command, "--config", "config/grid.yaml", *words, "--out", "new"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "grams.safetensors is of the calibration" in lines[0], lines
    assert "Delete it and run the rule grams (`ffp grams`) again." in lines[0]


def test_what_other_gram_matrices_gave_is_named(copied: Experiment) -> None:
    """They are of this calibration, but not those that the search and the cut read."""
    write_grams(copied)
    _, files = with_grams(copied)
    found = faults(copied)
    for name in ("allocation.json", "masks.safetensors", "updates.safetensors"):
        assert any(line.startswith(f"{files.folder / name}: grams seal") for line in found), found
    assert not any("/owl/" in line or "/fastforward-guided/" in line for line in found)
    notes = {record.cell.method: record.notes for record in collect(copied)}
    end = "was made from another grams.safetensors than the one that is here: run it again"
    assert notes["aware"] == [f"allocation.json {end}", f"masks.safetensors {end}"]
    assert not notes["owl"] and not notes["fastforward-guided"]


def test_results_of_before_gram_matrices_were_named_stay_valid(copied: Experiment, tmp_path: Path) -> None:
    cell, files = with_grams(copied)
    layout = Layout.from_grid(copied.grid)

    def older(origin: schemas.Provenance, **changes: object) -> schemas.Provenance:
        return schemas.Provenance(**{k: v for k, v in origin.model_dump().items() if k != "grams seal"} | changes)

    found = schemas.AllocationFile.read(files.allocation)
    assert found.provenance.get("grams seal") == schemas.GRAMS.read_seal(layout.calibration("tiny").grams)
    origin = older(found.provenance)
    schemas.AnswersFile.read(files.answers).model_copy(update={"provenance": origin}).write(files.answers)
    schemas.CostFile.read(files.search_cost).model_copy(update={"provenance": origin}).write(files.search_cost)
    digests = {name: sha256(files.folder / name) for name in found.files}
    found.model_copy(update={"provenance": origin, "files": digests}).write(files.allocation)
    for kind, path in ((schemas.MASKS, files.masks), (schemas.UPDATES, files.updates)):
        arrays, meta = kind.read(path)
        changed = older(meta.provenance, allocation=sha256(files.allocation))
        kind.write(path, arrays, meta.model_copy(update={"provenance": changed}))
    scores, cut = schemas.ScoresFile.read(files.scores), score_digests(copied, cell, None, files.folder)
    scores.model_copy(update={"provenance": scores.provenance.model_copy(update=cut)}).write(files.scores)
    assert not [line for line in faults(copied) if "report" not in line]
    assert not any(record.notes for record in collect(copied))
    folders = [layout.model("tiny").folder, layout.calibration("tiny").folder, files.folder, tmp_path / "new"]
    steps.reuse_allocation(copied, cell, *folders)
    assert sha256(tmp_path / "new/allocation.json") == sha256(files.allocation)


def test_gram_matrices_of_an_edited_file_are_refused(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grid)
    experiment = Experiment(Path("config/grid.yaml"))
    file = Layout.from_grid(experiment.grid).calibration("tiny").grams
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    found = "\n".join(faults(experiment))
    file.write_bytes(kept)
    assert str(file) in found
