"""kill -9 of Snakemake and of its steps at random moments: the next run goes on by itself, and nothing is lost."""

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

from tests.helpers import tiny
from tests.helpers.folders import differences


def steps_of(run: subprocess.Popen[str]) -> list[int]:
    """The processes of `ffp` commands below a run, which is the leader of its session."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-s", str(run.pid)], text=True, capture_output=True).stdout
    pairs = (line.split(None, 1) for line in listed.splitlines())
    return [int(pid) for pid, command in pairs if "/ffp " in command and "bash" not in command]


def everything(run: subprocess.Popen[str], _: random.Random) -> None:
    os.killpg(run.pid, signal.SIGKILL)


def only_snakemake(run: subprocess.Popen[str], _: random.Random) -> None:
    """Its jobs go on, as orphans, into the next run."""
    run.kill()


def one_step(run: subprocess.Popen[str], rng: random.Random) -> None:
    if steps := steps_of(run):
        os.kill(rng.choice(steps), signal.SIGKILL)
    else:
        run.kill()


KILLERS: tuple[Callable[[subprocess.Popen[str], random.Random], None], ...] = (everything, only_snakemake, one_step)


def disturb(folder: Path, kills: int, seed: int) -> int:
    """Start the grid again and again and kill it each time at a random moment; how often it was killed under way."""
    rng, done, patience = random.Random(seed), 0, 6.0
    with (folder / "disturbed.log").open("w") as log:  # a file, which orphans can go on to write to
        while done < kills:
            run = tiny.snakemake(folder, start_only=True, stdout=log)
            try:
                run.wait(timeout=rng.uniform(1.0, patience))
                break  # the grid is finished: there is nothing left to kill
            except subprocess.TimeoutExpired:
                rng.choice(KILLERS)(run, rng)
                done += 1
                patience += 0.5
                run.wait()
    return done


def settle(folder: Path) -> None:
    """Run the grid, unattended, until it is finished; three attempts are enough for what orphans may still disturb."""
    for _ in range(3):
        last = tiny.snakemake(folder)
        if last.returncode == 0:
            return
    raise AssertionError(last.output[-4000:])  # type: ignore[attr-defined]


def survive(
    kills: int, seed: int, finished: Path, source: Path, folder: Path, record: Callable[[str, object], None]
) -> None:
    """Kill a grid so often, starting anew when it is done too soon, and compare its end with an undisturbed one's."""
    done = rounds = 0
    while done < kills:
        site = folder / f"round{rounds}"
        shutil.copytree(source, site)
        tiny.configure(site)
        done += disturb(site, kills - done, seed + rounds)
        settle(site)
        lost = differences(finished, site, folder / f"compared{rounds}")
        record("lost", len(lost))
        assert not lost
        assert "Nothing to be done" in tiny.snakemake(site).output  # type: ignore[attr-defined]
        rounds += 1
    record("kills", done)


@pytest.mark.fault
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_kills_change_nothing(
    kills: int, tiny_grid: Path, tiny_source: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = int(time.time())
    print(f"kills drawn with seed {seed}")
    survive(kills, seed, tiny_grid, tiny_source, tmp_path, record_property)
