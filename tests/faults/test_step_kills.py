"""kill -9 of every command at random moments: the same command goes on, to the same bytes, and leaves nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.helpers import forks, tiny
from tests.helpers.folders import leftovers, rest

KILLS = 4  # of each command
GRID, MODEL, TEXT = "config/grid.yaml", ("--model-dir", "data/models/tiny"), ("--text-dir", "data/text/docs")
LORA, SEARCH = "tiny/structured/s0.30/owl-lora/seed0", "tiny/structured/s0.30/fastforward/seed0"
CALIBRATION = ("--calibration", "data/calibration/tiny")
CUT = ("--cut", f"results/cells/{LORA}")
PRUNE = ("--text", "docs", "--sparsity", "0.3", "--tokens", "6400", "--context", "64", "--calibration-tokens", "256",
         "--threads", "1", "--recover", "lora", "--recover-tokens", "1280", "--recover-rank", "4")  # fmt: skip


def step(name: str, *words: str) -> list[str]:
    return [name, "--config", GRID, *words]


COMMANDS = {
    "asset model": ["asset", "model", "--config", "config/models/tiny.yaml"],
    "asset text": ["asset", "text", "--config", "config/texts/docs.yaml"],
    "preflight": step("preflight", "--model", "tiny", *MODEL, *TEXT),
    "calibrate": step("calibrate", "--model", "tiny", *MODEL, *TEXT),
    "grams": step("grams", "--model", "tiny", *MODEL, *CALIBRATION),
    "allocate": step("allocate", "--cell", SEARCH, *MODEL, *CALIBRATION),
    "apply": step("apply", "--cell", LORA, *MODEL, *CALIBRATION, "--allocation",
                  f"results/cells/{LORA}/allocation.json"),
    "recover": step("recover", "--cell", LORA, *MODEL, *TEXT, *CUT),
    "evaluate": step("evaluate", "--cell", LORA, *MODEL, *TEXT, *CUT),
    "report": step("report"),
    "export": step("export", "--cell", LORA),
    "export gguf": step("export", "--cell", LORA, "--format", "gguf"),
    "prune": ["prune", "tiny", *PRUNE],
}  # fmt: skip
FILES = {"preflight": "preflight.json", "evaluate": "scores.json"}  # commands whose --out is a file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid of a search and of a method with recovery."""
    folder = tmp_path_factory.mktemp("steps")
    grid = tiny.build(folder)
    lora = {"use": "owl", "compensate": "ridge", "recover": {"tokens": 1280, "rank": 4, "batch_tokens": 64}}
    body = yaml.safe_load(grid.read_text()) | {"methods": ["owl-lora", "fastforward"], "variants": {"owl-lora": lora}}
    grid.write_text(yaml.safe_dump(body))
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output  # type: ignore[attr-defined]
    return folder


def start(folder: Path, command: str) -> subprocess.Popen[str]:
    """A command that writes below the folder `made`."""
    out = f"made/out/{FILES.get(command, '')}"
    return subprocess.Popen(
        [forks.folder() / "ffp", *COMMANDS[command], "--out", out], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(run: subprocess.Popen[str]) -> None:
    said = run.communicate()[0]
    assert run.returncode == 0, said


def kill(folder: Path, command: str, seconds: float, rng: random.Random) -> int:
    """Kills the command KILLS times at random moments of its `seconds`; a run that ends before is started anew."""
    done = 0
    while done < KILLS:
        run = start(folder, command)
        try:
            run.wait(timeout=rng.uniform(0, seconds))
            shutil.rmtree(folder / "made")
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            done += 1
        run.communicate()
    return done


def contents(folder: Path) -> dict[str, bytes]:
    rest(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_was_killed_goes_on(
    command: str, finished: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, seed = tmp_path / "grid", int(time.time())
    print(f"kills drawn with seed {seed}")
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".snakemake"))
    began = time.monotonic()
    finish(start(folder, command))
    seconds = time.monotonic() - began
    (folder / "made").rename(folder / "whole")
    kills = kill(folder, command, seconds, random.Random(seed))
    if not (folder / "made/out/ffp.json").exists():  # an export is not made twice
        finish(start(folder, command))
    assert not leftovers(folder)
    whole, again = contents(folder / "whole"), contents(folder / "made")
    assert whole
    lost = [name for name in sorted(whole | again) if whole.get(name) != again.get(name)]
    record_property("lost", len(lost))
    assert not lost
    record_property("kills", kills)
