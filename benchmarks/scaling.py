"""Measures how the workflow scales: planning 3,600 cells, and how busy it keeps the nodes of a Slurm cluster.

    python -m benchmarks.scaling [--slurm]

Only planning and orchestration are real here. The starts of jobs, some five seconds of a core each, share the cores of
one machine.

- `dag_s`, `dag_peak_mem_bytes`: a dry run of 10 models x 10 sparsities x 12 methods x 3 seeds with the workstation's
  profile; the median of three, and the peak of them all.
- `busy_share`, with --slurm and a running cluster (tests/slurm/cluster.sh up): CPU seconds held by jobs over CPU
  seconds of the cluster from the first job's start to the last one's end, for a grid whose commands sleep.
  `busy.work_share` counts the sleeping alone.
- `job_cpu_s`: CPU seconds for each of 240 jobs that only sleep, so Snakemake's own, with the workstation's profile;
  `jobs.ilp` is the same with Snakemake's default scheduler.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import write_marks
from ffp.store.layout import AssetFiles, CalibrationFiles, CellFiles

ROOT = Path(__file__).parents[1]
WHEEL = {"kind": "wheel", "package": "x", "version": "1", "sha256": "0" * 64, "members": ["m.gguf"]}
SEARCH_S, OTHER_S, SHORT_S = 30, 5, 0.5
REPEATS = 3
CALIBRATION, CELL = CalibrationFiles(Path()), CellFiles(Path())
WRITTEN = {
    "asset": [AssetFiles(Path()).manifest],
    "calibrate": [CALIBRATION.tokens, CALIBRATION.stats, CALIBRATION.cost],
    "grams": [CALIBRATION.grams, CALIBRATION.grams_cost],
    "allocate": CELL.searched,
    "apply": CELL.cut,
}
# Sleeps as long as a search or another step might take, then writes what the step would write.
SLEEPER = """#!{python}
import sys, time
from pathlib import Path
command, words = sys.argv[1], sys.argv[2:]
out = Path(words[words.index("--out") + 1])
time.sleep({{"allocate": {search}, "asset": 0}}.get(command, {other}))
files = {written}
for path in [out / name for name in files[command]] if command in files else [out]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(command)
"""


def configure(folder: Path, *, models: int, sparsities: int, methods: int, seeds: int) -> int:
    """Writes a grid of searches and returns its number of cells, the dense ones not counted."""
    parts: dict[str, Any] = {
        f"models/m{i}": {"title": f"M{i}", "source": WHEEL, "resources": {"mem_mb": 500, "gpu": 1, "runtime_min": 10}}
        for i in range(models)
    }
    shares = dict.fromkeys(("calibration", "search", "selection", "test"), 0.25)
    parts["texts/t"] = {"title": "T", "sources": [{"name": "c", "source": WHEEL}], "shares": shares}
    variants = {
        f"v{i}": {"use": "evolutionary", "params": {"offspring": 8 + i}} for i in range(methods)
    }  # no two alike
    parts["grid"] = {
        "title": "Scale", "models": [f"m{i}" for i in range(models)], "text": "t", "methods": list(variants),
        "sparsities": [round(0.05 * (i + 1), 2) for i in range(sparsities)], "seeds": list(range(seeds)),
        "variants": variants,
    }  # fmt: skip
    for name, body in parts.items():
        path = folder / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(body))
    return models * sparsities * methods * seeds


def snakemake(folder: Path, *words: str) -> list[str]:
    """Returns the command line of a run in `folder`."""
    return [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "all", *words,
            "--directory", str(folder), "--config", "grid=config/grid.yaml"]  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """Returns variables under which `ffp` is the sleeper, if `folder` has one."""
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}


def plan(folder: Path) -> dict[str, Any]:
    """Plans the large grid REPEATS times: median seconds, and the peak memory of them all."""
    cells = configure(folder, models=10, sparsities=10, methods=12, seeds=3)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        done = subprocess.run(
            snakemake(folder, "--dry-run", "--profile", str(ROOT / "profiles/local")),
            cwd=folder, env=environment(folder), capture_output=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stdout[-2000:]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cells": cells,
        "dag_s": statistics.median(seconds),
        "dag_peak_mem_bytes": spent.ru_maxrss * 1024,
        "seconds": seconds,
        "cpu_s": (spent.ru_utime + spent.ru_stime) / REPEATS,  # far below dag_s where the machine had other work
    }


def install_sleeper(folder: Path, *, search: float, other: float) -> None:
    """Puts an `ffp` into `folder` that sleeps so many seconds."""
    sleeper = folder / "bin/ffp"
    sleeper.parent.mkdir()
    written = json.dumps({command: [str(path) for path in paths] for command, paths in WRITTEN.items()})
    sleeper.write_text(SLEEPER.format(python=f"{sys.executable} -IS", search=search, other=other, written=written))
    sleeper.chmod(0o755)


def run_through(folder: Path, *words: str) -> dict[str, Any]:
    """Runs many searches that only sleep on this machine; CPU seconds for each of them."""
    cells = configure(folder, models=1, sparsities=10, methods=12, seeds=2)
    install_sleeper(folder, search=SHORT_S, other=0)
    profile = ["--profile", str(ROOT / "profiles/local"), "--quiet", "all", "--until", "allocate_search", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(snakemake(folder, *profile), cwd=folder, env=environment(folder), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cells": cells, "job_cpu_s": cpu_s / cells}


def keep_busy(folder: Path) -> dict[str, Any]:
    """Runs a grid of sleeping commands on the cluster; the share of its CPU seconds that jobs held."""
    cells = configure(folder, models=1, sparsities=4, methods=6, seeds=1)
    install_sleeper(folder, search=SEARCH_S, other=OTHER_S)
    since = time.strftime("%Y-%m-%dT%H:%M:%S")
    profile = ["--profile", str(ROOT / "profiles/slurm"), "--quiet", "all", "--until", "evaluate"]
    subprocess.run(snakemake(folder, *profile), cwd=folder, env=environment(folder), check=True)
    fields = ["sacct", "-X", "-n", "-P", "-S", since, "-o", "start,end,elapsedraw"]
    listed = subprocess.run(fields, text=True, capture_output=True, check=True).stdout.split()
    jobs = [line.split("|") for line in listed]
    moments = [[time.mktime(time.strptime(job[i], "%Y-%m-%dT%H:%M:%S")) for job in jobs] for i in (0, 1)]
    nodes = subprocess.run(["sinfo", "-h", "-o", "%D %c"], text=True, capture_output=True, check=True).stdout.split()
    capacity = int(nodes[0]) * int(nodes[1]) * (max(moments[1]) - min(moments[0]))
    work = cells * (SEARCH_S + 2 * OTHER_S) + 2 * OTHER_S  # the dense cell is evaluated, its model calibrated
    return {
        "cells": cells,
        "jobs": len(jobs),
        "wall_s": max(moments[1]) - min(moments[0]),
        "busy_share": sum(float(job[2]) for job in jobs) / capacity,
        "work_share": work / capacity,
    }


def main() -> None:
    """Plans, keeps the cluster busy where asked, and writes the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slurm", action="store_true", help="also keep a running cluster busy (two minutes)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scaling.json", help="JSON file")
    options = parser.parse_args()
    if options.slurm and (not shutil.which("squeue") or subprocess.run(["squeue"], capture_output=True).returncode):
        parser.error("--slurm needs a running cluster. Bring a virtual one up: tests/slurm/cluster.sh up")
    scratch = Path(tempfile.mkdtemp(prefix="ffp-scaling-"))
    try:
        planned = plan(scratch / "plan")
        jobs = {"profile": run_through(scratch / "profile"), "ilp": run_through(scratch / "ilp", "--scheduler", "ilp")}
        busy = keep_busy(scratch / "busy") if options.slurm else {}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    marks = {name: planned[name] for name in ("dag_s", "dag_peak_mem_bytes")}
    marks |= {"job_cpu_s": jobs["profile"]["job_cpu_s"]} | ({"busy_share": busy["busy_share"]} if busy else {})
    write_marks(
        options.out, "ffp/benchmark-scaling/1", {"marks": marks, "plan": planned, "jobs": jobs, "busy": busy}, None
    )


if __name__ == "__main__":
    main()
