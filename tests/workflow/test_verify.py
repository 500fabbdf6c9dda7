"""ffp verify accepts a sound grid and finds every edit."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffp.config import Experiment
from ffp.core.errors import ArtifactError
from ffp.pipeline.verify import Verifier, verify
from ffp.store import schemas
from ffp.store.files import checksum, read_table, write_json
from ffp.store.schemas import AllocationFile, AnswersFile, CostFile, JsonFile, ScoresFile, TensorFile
from tests.helpers import tiny
from tests.helpers.verify import faults

CELL = Path("results/cells/tiny/structured/s0.30/fastforward/seed0")
JSON: dict[Path, type[JsonFile]] = {
    CELL / "scores.json": ScoresFile,
    CELL / "allocation.json": AllocationFile,
    CELL / "search.cost.json": CostFile,
    CELL / "answers.json": AnswersFile,
}
CALIBRATION = Path("data/calibration/tiny")
TENSORS: dict[Path, TensorFile[Any]] = {
    CELL / "masks.safetensors": schemas.MASKS,
    CALIBRATION / "stats.safetensors": schemas.STATS,
    CALIBRATION / "tokens.safetensors": schemas.TOKENS,
    CELL.parents[1] / "owl/seed0/updates.safetensors": schemas.UPDATES,
}


@pytest.fixture
def grid(tiny_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A copy of the finished tiny grid, which is the working directory."""
    for name in ("config", "data", "logs", "results"):  # the page shows the ends of the logs
        shutil.copytree(tiny_grid / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Experiment(Path("config/grid.yaml"))


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all numbers in nested plain data."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(part, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def nudged(body: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """A copy with one number changed a little."""
    copy = json.loads(json.dumps(body))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] += 1 if isinstance(parent[path[-1]], int) else max(1e-6, abs(parent[path[-1]]) * 1e-6)
    return dict(copy)


def test_a_sound_grid_is_accepted_and_its_size_is_named(tiny_grid: Path) -> None:
    done = tiny.run(tiny_grid, "ffp.cli", "verify", "results", "--config", "config/grid.yaml")
    assert done.returncode == 0, done.output
    assert "results: everything agrees (1 calibrations, 4 cells, 30 documents," in done.output


def test_results_that_were_moved_are_accepted(grid: Experiment) -> None:
    """Their page names the folder in which they were made."""
    Path("results").rename("moved")
    assert not Verifier(grid.at(results=Path("moved"))).run()


@pytest.mark.parametrize("file", JSON, ids=lambda path: path.name)
def test_any_number_edited_in_an_artifact_is_found_when_it_is_read(grid: Experiment, file: Path) -> None:
    body = json.loads(file.read_text())
    found = list(numbers(body))
    assert len(found) > 5
    for path in found:
        file.write_text(json.dumps(nudged(body, path)))
        with pytest.raises(ArtifactError, match=f"{file.name} is damaged or was edited: its checksum is"):
            JSON[file].read(file)


@pytest.mark.parametrize("file", JSON, ids=lambda path: path.name)
def test_a_number_edited_together_with_its_checksum_is_found_too(grid: Experiment, file: Path) -> None:
    body = json.loads(file.read_text())
    tag = body.pop("schema")
    del body["checksum"]
    chosen = random.Random(0).sample(sorted(numbers(body), key=str), 4)
    for path in chosen:
        write_json(file, tag, nudged(body, path))
        assert faults(grid), f"{path} of {file.name} was edited and nobody noticed"


def edit_tensor(file: Path) -> None:
    """Change the first number of the first array, and seal the file again."""
    tensors, meta = TENSORS[file].read(file)
    name = next(name for name, array in tensors.items() if array.size)
    array = tensors[name].copy()
    array.flat[0] = array.flat[0] + 1 if array.dtype.kind == "f" else (array.flat[0] + 1) % 3
    TENSORS[file].write(file, {**tensors, name: array}, meta)


@pytest.mark.parametrize("file", TENSORS, ids=lambda path: path.name)
def test_an_edited_array_is_found_even_with_a_new_checksum(grid: Experiment, file: Path) -> None:
    edit_tensor(file)
    assert any(str(file) in fault or file.parent.name in fault for fault in faults(grid))


def test_edited_figures_of_the_report_are_found_where_they_stand(grid: Experiment) -> None:
    names = ["comparison.csv", "comparison.md", "comparison.tex", "metrics.json", "index.html", "quality_cost.svg"]
    for file in (Path("results/report") / name for name in names):
        text = file.read_text()
        place = next(i for i in range(len(text) // 2, len(text)) if text[i].isdigit())
        file.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    found = Verifier(grid).run()
    assert len(found) == len(names)
    for name in names:
        assert sum(f"{name} is not what its artifacts give: line " in fault for fault in found) == 1


def test_an_edited_table_and_trace_are_found(grid: Experiment) -> None:
    for file in (Path("results/report/comparison.parquet"), CELL / "trace.parquet"):
        table = read_table(file)
        column = "ppl" if "ppl" in table else "reward"
        table.loc[1, column] += 1e-6
        table.to_parquet(file, index=False)
        assert any(file.name in fault for fault in faults(grid))


def test_text_that_leaked_is_found(grid: Experiment) -> None:
    """A quotation of 13 words of the test text in the search text, whose asset is sealed again."""
    folder = Path("data/text/docs")
    words = json.loads((folder / "test.jsonl").read_text().splitlines()[0])["text"].split()[10:40]
    with (folder / "search.jsonl").open("a") as stream:
        stream.write(json.dumps({"id": "x", "source": "docs", "text": "As it says: " + " ".join(words)}) + "\n")
    found = faults(grid)
    assert any("texts search and test share" in fault for fault in found)
    assert any("search.jsonl: sha256 is" in fault for fault in found)


def test_other_settings_than_the_configuration_names_are_found(grid: Experiment) -> None:
    text = Path("config/grid.yaml").read_text()
    Path("config/grid.yaml").write_text(text.replace("evaluations: 40", "evaluations: 41"))
    with pytest.raises(ArtifactError, match=r"allocation.json: settings is (.|\n)* faults in results"):
        verify(Experiment(Path("config/grid.yaml")))


def test_a_missing_file_and_one_without_a_checksum_are_found(grid: Experiment) -> None:
    (CELL / "updates.safetensors").unlink()
    scores = json.loads((CELL.parents[1] / "owl/seed0/scores.json").read_text())
    del scores["checksum"]
    (CELL.parents[1] / "owl/seed0/scores.json").write_text(json.dumps(scores))
    found = "\n".join(faults(grid))
    assert "updates.safetensors is missing. Run the rule that makes it again." in found
    assert "owl/seed0/scores.json is damaged or was edited: its checksum is" in found


def test_checksums_tell_names_types_shapes_and_values_apart() -> None:
    arrays = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.float32), np.zeros(8, np.float32), np.ones(4), np.zeros(0)]
    sums = {checksum({}, {"a": array}) for array in arrays} | {checksum({}, {"b": np.zeros(4)})}
    assert len(sums) == len(arrays) + 1
