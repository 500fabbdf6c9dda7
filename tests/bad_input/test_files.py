"""Damaged or foreign artifacts, given to the step that reads them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from ffp.store import schemas
from ffp.store.files import read_json, write_json
from tests.bad_input.refusal import ARTIFACT as BAD
from tests.bad_input.refusal import USER, Case, edit, refused, write
from tests.helpers import tiny

CELL = "tiny/structured/s0.30/owl/seed0"
SEARCH = CELL.replace("owl", "fastforward")
FOLDER = f"results/cells/{CELL}"
COMMON = ["--config", "config/grid.yaml", "--cell", CELL, "--model-dir", "data/models/tiny"]
CALIBRATION = ["--calibration", "data/calibration/tiny"]
TEXT = ["--text-dir", "data/text/docs"]
STEPS: dict[str, list[str]] = {
    "calibrate": ["calibrate", "--config", "config/grid.yaml", "--model", "tiny", "--model-dir", "data/models/tiny",
                  *TEXT, "--out", "out"],
    "grams": ["grams", "--config", "config/grid.yaml", "--model", "tiny", "--model-dir", "data/models/tiny",
              *CALIBRATION, "--out", "out"],
    "allocate": ["allocate", *COMMON, *CALIBRATION, "--out", "out"],
    "search": ["allocate", *COMMON[:3], SEARCH, *COMMON[4:], *CALIBRATION, "--out", "out"],
    "apply": ["apply", *COMMON, *CALIBRATION, "--allocation", f"{FOLDER}/allocation.json", "--out", "out"],
    "evaluate": ["evaluate", *COMMON, *TEXT, "--cut", FOLDER, "--out", "out/scores.json"],
}  # fmt: skip
ALLOCATION = f"{FOLDER}/allocation.json"
MASKS, UPDATES = f"{FOLDER}/masks.safetensors", f"{FOLDER}/updates.safetensors"
STATS, TOKENS = (f"data/calibration/tiny/{name}.safetensors" for name in ("stats", "tokens"))
WEIGHTS = "data/models/tiny/model.safetensors"


def shorten(file: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size - 9)


def flip(file: str) -> Callable[[Path], object]:
    """Flip one bit three bytes before the end: in the data of an array, in a line of text."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[-3] ^= 2
        (folder / file).write_bytes(data)

    return damage


def allocation(**changes: Any) -> Callable[[Path], object]:
    """The allocation with other keys, and with the right checksum."""

    def damage(folder: Path) -> None:
        tag, body = read_json(folder / ALLOCATION, [schemas.AllocationFile.tag])
        write_json(folder / ALLOCATION, tag, {**body, **changes})

    return damage


def tensors(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Arrays changed in place, and sealed again."""

    def damage(folder: Path) -> None:
        schema = getattr(schemas, Path(file).stem.upper())
        arrays, origin = schema.read(folder / file)
        arrays = {name: array.copy() for name, array in arrays.items()}
        change(arrays)
        schema.write(folder / file, arrays, origin)

    return damage


def asset(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A change of the fetched model of which asset.json knows: as if it had been fetched so."""

    def damage(folder: Path) -> None:
        change(folder / "data/models/tiny")
        (folder / "data/models/tiny/asset.json").unlink()
        manifest = schemas.AssetFile(kind="model", source={}, files={}, crc32={}, digest="0" * 16)
        manifest.write(folder / "data/models/tiny/asset.json")

    return damage


def model_config(**changes: Any) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        body = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**body, **changes}))

    return asset(change)


def add_token(folder: Path) -> None:
    """A token that the text has, and the embedding has not."""

    def change(model: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_tokens(["the"])
        tokenizer.save_pretrained(model)

    asset(change)(folder)


def scale_down_proj(factor: float) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        changed = {name: array * factor if "down_proj" in name else array for name, array in tensors.items()}
        save_file(changed, model / "model.safetensors", metadata={"format": "pt"})

    return change


def overflow(folder: Path) -> None:
    asset(scale_down_proj(3e5))(folder)
    edit("config/models/tiny.yaml", dtype="float16")(folder)


def remove(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def last_index(arrays: dict[str, Any]) -> None:
    arrays["block01.ffn"][-1] = 10_000


CASES = [
    ("apply", Case("a truncated allocation", shorten(ALLOCATION), "allocation.json cannot be read: .*Delete", BAD)),
    ("apply", Case("another schema", write(ALLOCATION, '{"schema": "ffp/scores/1"}'),
                   "schema 'ffp/scores/1', expected 'ffp/allocation/2'", BAD)),
    ("apply", Case("an allocation that is a list", write(ALLOCATION, "[]"), "schema None, expected", BAD)),
    ("apply", Case("an allocation that is a pickle", write(ALLOCATION, pickle.dumps({})), "cannot be read", BAD)),
    ("apply", Case("no allocation", remove(ALLOCATION), "allocation.json is missing. Run the rule", BAD)),
    ("apply", Case("too many decisions", allocation(keep=[1] * 7), "\\(7 decisions\\) does not answer", USER)),
    ("apply", Case("more units than there are", allocation(keep=[9, 64] * 3), "keeps 9 units of block00.attention")),
    ("apply", Case("fewer than none", allocation(keep=[-1, 64] * 3), "keeps -1 units of block00.attention, outside")),
    ("apply", Case("too little removed", allocation(keep=[2, 64] * 3), "removes 0.000000 of the parameters, less")),
    ("apply", Case("kept units in words", allocation(keep=["two"] * 6), "keep.0: .*should be a valid integer", BAD)),
    ("apply", Case("half units", allocation(keep=[1.5, 40] * 3), "keep.0: Input should be a valid integer", BAD)),
    ("apply", Case("no problem", allocation(problem=None), "allocation.json lacks what its .*: problem", BAD)),
    ("apply", Case("another problem", allocation(problem_id="0" * 16), "allocation for problem 0{16}")),
    ("apply", Case("truncated statistics", shorten(STATS), "stats.safetensors cannot be read", BAD)),
    ("apply", Case("a flipped bit in the statistics", flip(STATS), "stats.safetensors is damaged or was", BAD)),
    ("apply", Case("a flipped bit in the tokens", flip(TOKENS), "tokens.safetensors is damaged or was", BAD)),
    ("apply", Case("statistics of another model", tensors(STATS, lambda a: a.popitem()), "no statistics of", BAD)),
    ("allocate", Case("no calibration", remove(STATS), "stats.safetensors is missing", BAD)),
    ("search", Case("a target that cannot be met", edit("config/models/tiny.yaml", min_keep=60),
                    "sparsity 0.3 cannot be met: with these min_keep at most .*Lower the sparsity")),
    ("search", Case("more windows than there are", edit("config/grid.yaml", search__windows_per_evaluation=99),
                    "windows_per_evaluation = '99': more than the 8 of search.windows. Lower")),
    ("evaluate", Case("no masks", remove(MASKS), "masks.safetensors is missing", BAD)),
    ("evaluate", Case("truncated masks", shorten(MASKS), "masks.safetensors cannot be read", BAD)),
    ("evaluate", Case("a flipped bit in the masks", flip(MASKS), "masks.safetensors is damaged or was", BAD)),
    ("evaluate", Case("masks that are a pickle", write(MASKS, pickle.dumps({})), "masks.safetensors cannot", BAD)),
    ("evaluate", Case("masks of another model", tensors(MASKS, lambda a: a.popitem()), "is in only one of", BAD)),
    ("evaluate", Case("units that are not there", tensors(MASKS, last_index), "keeps index 10000 of", BAD)),
    ("evaluate", Case("units in disorder", tensors(MASKS, lambda a: a["block01.ffn"].sort()
                      or a.update({"block01.ffn": a["block01.ffn"][::-1].copy()})), "indices must ascend", BAD)),
    ("evaluate", Case("truncated updates", shorten(UPDATES), "updates.safetensors cannot be read", BAD)),
    ("evaluate", Case("updates of another shape", tensors(UPDATES, lambda a: a.update(
        {name: array[:3].copy() for name, array in a.items()})), "updates.safetensors .*shape", BAD)),
    ("evaluate", Case("updates of no layer", tensors(UPDATES, lambda a: a.update({"nothing.weight": np.ones(3)})),
                      "updates.safetensors .*nothing", BAD)),
    ("evaluate", Case("an edited text", lambda f: (f / "data/text/docs/test.jsonl").open("a").write("{}\n"),
                      "test.jsonl is missing, damaged or was edited since it was fetched. Delete", BAD)),
    ("evaluate", Case("a text shorter than a window", edit("config/grid.yaml", evaluation={"context": 120_000}),
                      "the test text has [0-9]+ tokens, 0 windows of 120000: fewer than one window. Lower")),
    ("calibrate", Case("more windows than the text has", edit("config/grid.yaml", calibration__windows=9_999),
                       "the calibration text has .* fewer than 9999 windows. Lower")),
    ("calibrate", Case("no model", lambda f: shutil.rmtree(f / "data/models/tiny"), "no config.json. Run `ffp", BAD)),
    ("calibrate", Case("a test text that is too short", edit("config/grid.yaml", evaluation__windows=9_999),
                       "the test text has .* fewer than 9999 windows. Lower")),
    *(("calibrate", Case(f"a context of {part} beyond the model", edit("config/grid.yaml", **{f"{part}__context": 129}),
                         f"{part}.context = 129 exceeds the 128 positions that the model knows .* Lower it to 128"))
      for part in ("calibration", "search", "evaluation")),
    ("evaluate", Case("a context beyond the model", edit("config/grid.yaml", evaluation={"context": 129}),
                      "evaluation.context = 129 exceeds the 128 positions")),
    ("calibrate", Case("a tokenizer with a token too many", add_token,
                       "calibration text has the token id 400, but the model's embedding ends at 399: .*Use the tok")),
    ("calibrate", Case("weights that overflow", overflow,
                       "is not finite: numbers overflow in float16. Use dtype bfloat16 or float32")),
    ("calibrate", Case("weights that are not numbers", asset(scale_down_proj(float("nan"))),
                       "is not finite: numbers overflow in float32. Fetch its weights again")),
    *((step, Case("more memory than there is", edit("config/models/tiny.yaml", batch_tokens=10**12),
                  "take about [0-9]+.[0-9] GB of memory on cpu, which has .* Lower batch_tokens"))
      for step in ("calibrate", "grams")),
    *((step, Case("a folder that cannot be made", lambda f: None, "cannot write /proc/ffp/tiny: .*Free the disk",
                  command=(*STEPS[step][:-1], "/proc/ffp/tiny"))) for step in ("calibrate", "grams")),
    ("calibrate", Case("a flipped bit in the weights", flip(WEIGHTS), "model.safetensors is missing, dam", BAD)),
    ("calibrate", Case("weights of another shape", model_config(intermediate_size=96), "cannot be loaded: ", BAD)),
    ("calibrate", Case("an unknown architecture", model_config(model_type="lama"), "cannot be loaded: ", BAD)),
    ("calibrate", Case("a model that brings its own code", model_config(
        model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}),
        "cannot be loaded: ", BAD)),
    ("calibrate", Case("a device that is not here", edit("config/models/tiny.yaml", device="mps"),
                       "device 'mps' is not available on this machine. Use device: auto or cpu")),
]  # fmt: skip


@pytest.fixture
def grid(tiny_grid: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny grid."""
    for name in ("config", "data", "results"):
        shutil.copytree(tiny_grid / name, tmp_path / name)
    return tmp_path


@pytest.mark.bad_input
@pytest.mark.parametrize(("step", "case"), CASES, ids=[f"{step}: {case.name}" for step, case in CASES])
def test_a_bad_file_is_refused(
    step: str, case: Case, grid: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(case, STEPS[step], grid, monkeypatch, capfd)


def test_the_commands_do_their_work_on_sound_files(tiny_grid: Path, tmp_path: Path) -> None:
    """What the cases damage works before."""
    command = [word.replace("out", str(tmp_path)) if word.startswith("out") else word for word in STEPS["apply"]]
    assert (done := tiny.run(tiny_grid, "ffp.cli", *command)).returncode == 0, done.output
