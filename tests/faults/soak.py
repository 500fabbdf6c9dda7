"""Runs a grid on a virtual Slurm cluster while jobs, Snakemake, the disk and nodes fail, and looks for what was lost.

    python -m tests.faults.soak --cells 300 --minutes 30 --seed 1

Slurm, Snakemake, the disk and the kills are real; the model is tiny, and a process that has imported torch forks for
each `ffp` (tests/helpers/forks.py). An undisturbed run on this machine comes first. Then each kind of fault happens
equally often, at random moments:

- `step`: kill -9 of an `ffp` at work, in a job or beside Snakemake
- `job`: scancel of a running job
- `snakemake`: kill -9 of Snakemake; its jobs go on, and the next run begins some seconds later
- `full_disk`: no byte is free on the disk with the checkout, for some seconds
- `hanging_disk`: whoever writes to it waits, for some seconds
- `node`: a node dies with its jobs, and comes back

Snakemake is started again whenever it ends, as a user would. If the grid is finished too soon, some cells are deleted.
At the end the grid has to be finished, every artifact and the report the same to the byte as those of the undisturbed
run (measured seconds and bytes of memory aside), the queue empty, and no temporary file left.
Commit nothing meanwhile: artifacts name the commit. Needs root on Debian, as `make test-slurm` does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffp.store.provenance import provenance
from tests.faults.counts import COUNTS_FILE, write_section
from tests.faults.disk import Disk, disk
from tests.helpers import forks, tiny
from tests.helpers.folders import differences, leftovers
from tests.helpers.slurm import cluster, queue, virtual_cluster
from tests.helpers.tiny import ROOT

HEURISTICS = ["alphapruning", "dlp", "ffn-only", "flap", "owl", "uniform"]
SEARCHES = ["evolutionary", "fastforward", "fastforward-guided"]
SEEDS = [0, 1]
PER_SPARSITY = len(HEURISTICS) + len(SEARCHES) * len(SEEDS)
ATTEMPTS = 3  # of the run after the last fault; what ran on from earlier ones may still disturb it
DRAIN_S = 300  # for jobs of killed runs


def configure(folder: Path, cells: int) -> None:
    """Writes the tiny grid with so many cells, rounded up to whole sparsities, and the dense one."""
    grid = tiny.configure(folder)
    body = yaml.safe_load(grid.read_text())
    sparsities = [round(0.1 + 0.02 * number, 2) for number in range(-(-cells // PER_SPARSITY))]
    body.update(methods=HEURISTICS + SEARCHES, seeds=SEEDS, sparsities=sparsities)
    body["search"].update(evaluations=16)
    grid.write_text(yaml.safe_dump(body))
    model = folder / "config/models/tiny.yaml"
    asked = {"threads": 1, "mem_mb": 1000, "gpu": 1, "runtime_min": 10}
    model.write_text(yaml.safe_dump({**yaml.safe_load(model.read_text()), "resources": asked}))


def reference(folder: Path, source: Path, cells: int) -> None:
    """Runs the grid to its end on this machine, undisturbed; at once if `folder` has it already."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    configure(folder, cells)
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output[-4000:]  # type: ignore[attr-defined]


def processes(command: str, folder: Path) -> list[int]:
    """Processes of a command, at work in `folder` or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, place = (process / "cmdline").read_bytes().split(b"\0"), os.readlink(process / "cwd")
        except OSError:
            continue  # it has ended
        if Path(place).is_relative_to(folder) and any(word.endswith(command.encode()) for word in words[:3]):
            found.append(int(process.name))
    return found


@dataclass
class Soak:
    """A grid on the cluster, kept running by whoever starts it again, and what happened to it."""

    folder: Path
    disk: Disk
    log: Path
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    run: subprocess.Popen[str] | None = None
    began: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        """Prints a line of progress."""
        scored = len(list(self.folder.glob("results/cells/*/*/*/*/*/scores.json")))
        print(f"{time.monotonic() - self.began:5.0f} s, {scored} cells: {what}", flush=True)

    def start(self) -> None:
        """Starts the documented command, with ten cells' cuts and scores in a job."""
        self.counts["starts"] += 1
        command = [sys.executable, "-m", "snakemake", "--cores", "all", "--profile", str(ROOT / "profiles/slurm")]
        command += ["--snakefile", str(ROOT / "Snakefile"), "--group-components", "score=10"]
        path = f"{forks.folder()}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with self.log.open("a") as log:
            self.run = subprocess.Popen(
                [*command, "--config", "grid=config/grid.yaml"], cwd=self.folder, text=True, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def tend(self, seconds: float) -> None:
        """Waits, and starts the grid again when it ends; deletes some cells of a finished one."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.run is None:
                self.start()
            assert self.run is not None
            try:
                code = self.run.wait(timeout=left)
            except subprocess.TimeoutExpired:
                return
            self.run = None
            self.say(f"Snakemake ended with {code}")
            if code == 0:
                self.forget()
            time.sleep(1)

    def forget(self) -> None:
        """Deletes a tenth of the cells."""
        cells = sorted(self.folder.glob("results/cells/*/*/*/*/*"))
        for cell in self.rng.sample(cells, max(1, len(cells) // 10)):
            shutil.rmtree(cell, ignore_errors=True)
            self.counts["deleted_cells"] += 1

    def settle(self) -> int:
        """Runs the grid to its end without faults; how many runs that took."""
        for attempt in range(1, ATTEMPTS + 1):
            if self.run is None:
                self.start()
            assert self.run is not None
            code, self.run = self.run.wait(), None
            self.say(f"Snakemake ended with {code}, attempt {attempt} without faults")
            if code == 0:
                return attempt
        raise AssertionError(f"{self.log}: {self.log.read_text()[-4000:]}")


def kill_step(soak: Soak) -> bool:
    steps = processes("/ffp", soak.folder)
    if steps:
        os.kill(soak.rng.choice(steps), signal.SIGKILL)
    return bool(steps)


def cancel_job(soak: Soak) -> bool:
    jobs = queue("-t", "R")
    if jobs:
        subprocess.run(["scancel", soak.rng.choice(jobs)], check=True)
    return bool(jobs)


def kill_snakemake(soak: Soak) -> bool:
    if soak.run is None:
        return False
    soak.run.kill()
    soak.run.wait()
    soak.run = None
    time.sleep(soak.rng.uniform(0, 5))
    return True


def fill_disk(soak: Soak) -> bool:
    with soak.disk.full():
        soak.tend(soak.rng.uniform(3, 15))
    return True


def hang_disk(soak: Soak) -> bool:
    with soak.disk.hanging():
        time.sleep(soak.rng.uniform(3, 15))
    return True


def lose_node(soak: Soak) -> bool:
    node = f"node{soak.rng.randint(1, 4)}"
    cluster("crash", node)
    soak.tend(soak.rng.uniform(3, 30))
    cluster("revive", node)
    return True


KILLS: dict[str, Callable[[Soak], bool]] = {"step": kill_step, "job": cancel_job, "snakemake": kill_snakemake}
FAULTS: dict[str, Callable[[Soak], bool]] = {"full_disk": fill_disk, "hanging_disk": hang_disk, "node": lose_node}


def disturb(soak: Soak, minutes: float, each: int) -> None:
    """Lets every kind of fault happen `each` times, in random order, at random moments of the time given."""
    deck = [*KILLS, *FAULTS] * each
    soak.rng.shuffle(deck)
    moments = sorted(soak.rng.uniform(0, 60 * minutes) for _ in deck)
    begin = time.monotonic()
    for moment in moments:
        soak.tend(max(1.0, begin + moment - time.monotonic()))
        while not (kind := next((kind for kind in dict.fromkeys(deck) if (KILLS | FAULTS)[kind](soak)), None)):
            soak.tend(0.5)  # there was nothing to kill
        deck.remove(kind)
        soak.counts[kind] += 1
        soak.say(f"{kind}, {len(deck)} to come")


def drained() -> int:
    """Waits for jobs of killed runs; how many are in the queue for ever."""
    until = time.monotonic() + DRAIN_S
    while queue() and time.monotonic() < until:
        time.sleep(1)
    return len(queue())


def soak(scratch: Path, whole: Path, cells: int, minutes: float, each: int, seed: int) -> dict[str, Any]:
    """Makes the undisturbed run in `whole`, disturbs one on the cluster, which is up, and compares; the counts."""
    source = scratch / "source"
    tiny.sources(source)
    started = time.monotonic()
    reference(whole, source, cells)
    print(f"{time.monotonic() - started:.0f} s for the undisturbed run in {whole}", flush=True)
    with disk(scratch / "disk", 2000) as small:
        site = small.folder / "site"
        shutil.copytree(source, site)
        configure(site, cells)
        state = Soak(site, small, scratch / "snakemake.log", random.Random(seed))
        try:
            disturb(state, minutes, each)
            attempts = state.settle()
        finally:
            if state.run is not None:
                state.run.kill()
        wall_s = time.monotonic() - state.began
        orphans = drained()
        lost = differences(whole, site, scratch / "compared")
        left = leftovers(site)
        made = len(list(site.glob("results/cells/*/*/*/*/*/scores.json")))
    return {
        "seed": seed, "cells": made, "wall_s": wall_s,
        "kills": {name: state.counts[name] for name in KILLS},
        "faults": {name: state.counts[name] for name in FAULTS}, "starts": state.counts["starts"],
        "deleted_cells": state.counts["deleted_cells"], "undisturbed_runs_at_the_end": attempts,
        "lost": lost, "orphans": orphans, "leftovers": left,
    }  # fmt: skip


def main() -> int:
    """Runs the soak and writes its counts."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=300, help=f"rounded up to whole {PER_SPARSITY}s (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="time in which faults happen (%(default)s)")
    parser.add_argument("--each", type=int, default=12, help="faults of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; their moments also hang on the machine")
    parser.add_argument("--reference", type=Path, help="folder to keep undisturbed runs in, and to find them again")
    parser.add_argument("--out", type=Path, default=COUNTS_FILE, metavar="PATH", help="JSON file (%(default)s)")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="ffp-soak-"))
    try:
        with virtual_cluster():
            code = provenance()  # which every artifact names
            kept = f"{options.cells}-{code.commit}{'-dirty' if code.dirty else ''}"
            whole = (options.reference or scratch / "whole").absolute() / kept
            counts = soak(scratch, whole, options.cells, options.minutes, options.each, options.seed)
    except (pytest.skip.Exception, OSError) as reason:
        print(f"no soak: {reason}", file=sys.stderr)
        return 1
    print(json.dumps(counts, indent=1))
    bad = bool(counts["lost"] or counts["orphans"] or counts["leftovers"])
    if bad:
        print(f"kept: {scratch}", file=sys.stderr)
        return 1
    totals = {name: sum(counts[name].values()) for name in ("kills", "faults")}
    write_section(options.out, "soak", totals, counts)
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
