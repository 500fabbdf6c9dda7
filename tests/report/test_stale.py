"""Notes of files that were made under other settings, or from other files, than the grid has now; what export does."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ffp import cli
from ffp.config import Experiment
from ffp.report.collect import collect
from ffp.store import schemas
from ffp.store.files import sha256
from ffp.store.layout import CellFiles, Layout
from ffp.store.provenance import provenance

CELL, OTHER = (f"tiny/structured/s0.30/{method}/seed0" for method in ("owl", "fastforward"))
GRID = Path("config/grid.yaml")
COMMON = ["--config", str(GRID), "--cell", CELL, "--model-dir", "data/models/tiny"]


@pytest.fixture(autouse=True)
def grid(tiny_grid, tmp_path, monkeypatch):
    """A finished grid of its own, in the working folder."""
    shutil.copytree(tiny_grid, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def change(**keys) -> Experiment:
    GRID.write_text(yaml.safe_dump({**yaml.safe_load(GRID.read_text()), **keys}))
    return Experiment(GRID)


def notes(experiment: Experiment) -> list[str]:
    return next(record.notes for record in collect(experiment) if record.cell.path == CELL)


def other_settings(name: str, key: str) -> str:
    return f"{name} was made with other settings than the configuration has now ({key}): run it again"


def of_another(body, name: str):
    """A file, or its metadata, that names another digest of what it was made from."""
    return body.model_copy(update={"provenance": body.provenance.model_copy(update={name: "0" * 64})})


def test_nothing_is_said_of_a_grid_as_it_ran():
    assert not any(record.notes for record in collect(Experiment(GRID)))


def test_another_compensation_is_said_of_the_masks():
    found = change(variants={"owl": {"use": "owl", "compensate": "bias"}})
    assert other_settings("masks.safetensors", "compensate") in notes(found)


def test_another_calibration_is_said_of_all_that_came_of_it():
    body = yaml.safe_load(GRID.read_text())["calibration"]
    found = change(calibration={**body, "windows": body["windows"] - 1})
    assert notes(found) == [other_settings("stats.safetensors", "calibration")]


def test_files_that_follow_another_file_are_named():
    files = Layout.from_grid(Experiment(GRID).grid).cell(Experiment(GRID).cell(CELL))
    arrays, origin = schemas.STATS.read(Layout.from_grid(Experiment(GRID).grid).calibration("tiny").stats)
    origin = origin.model_copy(update={"n_tokens": 1})
    schemas.STATS.write(Layout.from_grid(Experiment(GRID).grid).calibration("tiny").stats, arrays, origin)
    kept, made = schemas.MASKS.read(files.masks)
    schemas.MASKS.write(files.masks, kept, of_another(made, "allocation"))
    assert notes(Experiment(GRID)) == [
        "allocation.json was made from another calibration than the one that is here: run it again",
        "masks.safetensors was made from another calibration than the one that is here: run it again",
        "masks.safetensors was made from another allocation.json: run it again",
        "scores.json was made from another masks.safetensors: run it again",
    ]


def cell_files() -> CellFiles:
    experiment = Experiment(GRID)
    return Layout.from_grid(experiment.grid).cell(experiment.cell(CELL))


@pytest.mark.parametrize(
    ("key", "what"), [("text", "text docs"), ("model", "model"), ("text docs", None), ("commit", None)]
)
def test_scores_on_another_text_or_model_are_named(key, what):
    """As after docs.jsonl was edited and fetched again, and the run was interrupted."""
    of_another(schemas.ScoresFile.read(cell_files().scores), key).write(cell_files().scores)
    found = [f"scores.json was made from another {what} than the one that is here: run it again"]
    assert notes(Experiment(GRID)) == (found if what else [])


def test_a_model_that_is_fetched_anew_is_said_of_all_that_came_of_the_old_one():
    manifest = Layout.from_grid(Experiment(GRID).grid).model("tiny").manifest
    schemas.AssetFile.read(manifest).model_copy(update={"digest": "other"}).write(manifest)
    names = ["stats.safetensors", "allocation.json", "masks.safetensors", "scores.json"]
    expected = [f"{name} was made from another model than the one that is here: run it again" for name in names]
    assert notes(Experiment(GRID)) == expected


@pytest.mark.parametrize("age_s", [60, -60])
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["masks", "updates"])
def test_files_that_were_made_again_are_named_whatever_the_clocks_say(name, sealed, age_s):
    files, kind = cell_files(), {"masks": schemas.MASKS, "updates": schemas.UPDATES}[name]
    scores, path = schemas.ScoresFile.read(files.scores), files.folder / f"{name}.safetensors"
    assert scores.provenance.get(f"{name} seal") == kind.read_seal(path)
    if not sealed:  # as older versions wrote it
        seals = dict.fromkeys(("masks seal", "updates seal"))
        scores = scores.model_copy(update={"provenance": scores.provenance.model_copy(update=seals)})
        scores.write(files.scores)
        assert notes(Experiment(GRID)) == []
    arrays, origin = kind.read(path)
    kind.write(path, arrays, of_another(origin, "commit"))
    now = files.scores.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))
    assert notes(Experiment(GRID)) == [f"scores.json was made from another {name}.safetensors: run it again"]


def test_weights_that_were_trained_again_are_named():
    files, found = cell_files(), change(variants={"owl": {"use": "owl", "recover": "lora"}})
    made = {"masks": sha256(files.masks), "updates": sha256(files.updates)}
    weights = {"layer.weight": np.zeros((2, 2), np.float32)}
    schemas.UPDATES.write(files.recovered, weights, schemas.Origin(provenance=provenance(made)))
    scores = schemas.ScoresFile.read(files.scores)
    seal = {"recovered seal": schemas.UPDATES.read_seal(files.recovered)}
    scores.model_copy(update={"provenance": scores.provenance.model_copy(update=seal)}).write(files.scores)

    def about(name: str) -> list[str]:
        return [note for note in notes(found) if name in note.partition(" was made from")[2]]

    assert about("recovered.safetensors") == about("masks.safetensors") == []
    schemas.UPDATES.write(files.recovered, weights, schemas.Origin(provenance=provenance({**made, "masks": "other"})))
    assert about("recovered.safetensors") == ["scores.json was made from another recovered.safetensors: run it again"]
    assert about("masks.safetensors") == ["recovered.safetensors was made from another masks.safetensors: run it again"]


def test_results_without_data_and_masks_are_as_good():
    shutil.rmtree("data/calibration")
    shutil.rmtree("data/models")
    shutil.rmtree("data/text")
    for path in Path("results").rglob("*.safetensors"):
        path.unlink()
    assert not any(record.notes for record in collect(Experiment(GRID)))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "words", [["export", "--out", "small"], ["evaluate", "--text-dir", "data/text/docs", "--out", "s.json"]]
)
def test_masks_of_other_settings_are_refused(words, capsys):
    change(variants={"owl": {"use": "owl", "compensate": "bias"}})
    assert cli.main([*words, *COMMON, "--cut", f"results/cells/{CELL}"]) == 3
    said = capsys.readouterr().err
    assert "masks.safetensors was made with other settings than config/grid.yaml has now (compensate)" in said
    assert not Path("small").exists() and not Path("s.json").exists()


@pytest.mark.parametrize(("key", "said"), [("masks", "is of other masks"), ("text", "is of another text")])
def test_scores_of_other_masks_or_texts_are_not_in_the_card(key, said, caplog):
    layout, grid = Layout.from_grid(Experiment(GRID).grid), Experiment(GRID)
    paths = [layout.cell(cell).scores for cell in (next(grid.cells()), grid.cell(CELL))]
    dense, pruned = map(schemas.ScoresFile.read, paths)
    of_another(pruned, key).write(paths[1])
    assert cli.main(["export", *COMMON, "--cut", f"results/cells/{CELL}", "--out", "small"]) == 0
    card = Path("small/README.md").read_text()
    assert said in caplog.text and f"{dense.ppl.value:.4g}" not in card
    assert (f"{pruned.ppl.value:.4g}" in card) == (key == "text")


@pytest.mark.bad_input
def test_a_pruned_cell_is_not_scored_without_its_masks(capsys):
    words = [*COMMON, "--text-dir", "data/text/docs", "--out", "scores.json"]
    assert cli.main(["evaluate", *words]) == 2
    assert "give --cut with the folder of its masks and updates" in capsys.readouterr().err
    assert cli.main(["evaluate", *words, "--cut", f"results/cells/{OTHER}"]) == 3
    assert f"is of {OTHER}, not of {CELL}" in capsys.readouterr().err


@pytest.mark.bad_input
def test_task_scores_are_not_lost_where_the_folder_of_the_tasks_is_not_given(capsys):
    scores = Path(f"results/cells/{CELL}/scores.json")
    before, text = scores.read_bytes(), ["--text-dir", "data/text/docs"]
    again = ["evaluate", *COMMON, *text, "--cut", str(scores.parent), "--out", str(scores)]
    model = ["--config", str(GRID), "--model", "tiny", "--model-dir", "data/models/tiny"]
    other = ["--tasks-dir", "data/tasks/one"]
    assert cli.main([*again, *other]) == 2
    assert "config/grid.yaml scores no tasks: leave --tasks-dir out" in capsys.readouterr().err
    change(tasks=["arc_easy"])
    for words in (again, ["preflight", *model, *text, "--out", "preflight.json"]):
        assert cli.main(words) == 2
        assert "scores tasks: give --tasks-dir with their folder, such as data/tasks/" in capsys.readouterr().err
    assert scores.read_bytes() == before and not Path("preflight.json").exists()


@pytest.mark.bad_input
def test_an_allocation_of_another_cell_is_not_applied(capsys):
    words = ["--calibration", "data/calibration/tiny", "--allocation", f"results/cells/{OTHER}/allocation.json"]
    assert cli.main(["apply", *COMMON, *words, "--out", "cell"]) == 3
    assert f"is of {OTHER}, not of {CELL}" in capsys.readouterr().err


def test_grids_with_results_of_their_own_have_logs_of_their_own(tmp_path):
    found = {
        Layout(Path("data"), results).log("allocate", CELL)
        for results in (Path("results"), Path("a"), Path("b/results"), tmp_path / "results")
    }
    assert len(found) == 4 and Path("logs/allocate", f"{CELL}.log") in found
    assert all(path.parts[0] == "logs" for path in found)
