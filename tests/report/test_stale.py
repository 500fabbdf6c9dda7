"""Notes of files that were made under other settings, or from other files, than the grid has now; what export does."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from ffp import cli
from ffp.config import Experiment
from ffp.report.collect import collect
from ffp.store import schemas
from ffp.store.layout import Layout

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
    os.utime(files.scores, (0, 0))
    assert notes(Experiment(GRID)) == [
        "allocation.json was made from another calibration than the one that is here: run it again",
        "masks.safetensors was made from another calibration than the one that is here: run it again",
        "masks.safetensors was made from another allocation.json: run it again",
        "scores.json was made from another masks.safetensors: run it again",
    ]


def test_results_without_data_and_masks_are_as_good():
    shutil.rmtree("data/calibration")
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


def test_scores_of_other_masks_are_not_in_the_card(caplog):
    files = Layout.from_grid(Experiment(GRID).grid).cell(Experiment(GRID).cell(CELL))
    scores = schemas.ScoresFile.read(files.scores)
    of_another(scores, "masks").write(files.scores)
    assert cli.main(["export", *COMMON, "--cut", f"results/cells/{CELL}", "--out", "small"]) == 0
    assert "is of other masks" in caplog.text
    value = schemas.ScoresFile.read(files.scores).ppl.value
    assert f"{value:.2f}" not in Path("small/README.md").read_text()


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
