"""The workflow on a real Slurm of virtual nodes: where jobs run, what they are given, and what survives a fault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers import tiny
from tests.helpers.slurm import cluster, queue, virtual_cluster
from tests.helpers.tiny import ROOT

pytestmark = pytest.mark.slurm
COMMAND = ("--cores", "all", "--profile", "slurm")
CELLS = "results/cells/tiny/structured/s0.30"
# Notes where a command runs and which GPU it was given, then becomes the command.
NOTE = """#!/bin/sh
[ "$1" = report ] && exec {ffp} "$@"
echo "${{SLURMD_NODENAME:-here}} ${{CUDA_VISIBLE_DEVICES:-none}} $*" >> {folder}/places.txt
exec {ffp} "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    """The cluster of these tests."""
    with virtual_cluster():
        yield


def site(folder: Path, source: Path, **resources: int) -> Path:
    """A checkout whose default grid is the tiny one, with more to do, for GPU nodes."""
    for name in ("Snakefile", "workflow", "profiles", "ffp", "environment.yml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "slurm").symlink_to("profiles/slurm")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    grid = tiny.configure(folder)
    body = yaml.safe_load(grid.read_text())
    body["methods"], body["seeds"] = ["owl", "evolutionary", "fastforward", "fastforward-guided"], [0, 1]
    (folder / "config/grids").mkdir()
    (folder / "config/grids/demo.yaml").write_text(yaml.safe_dump(body))
    model = folder / "config/models/tiny.yaml"
    asked = {"threads": 1, "mem_mb": 1500, "gpu": 1, "runtime_min": 10, **resources}
    model.write_text(yaml.safe_dump({**yaml.safe_load(model.read_text()), "resources": asked}))
    real = Path(sys.executable).with_name("ffp")
    (folder / "bin").mkdir()
    (folder / "bin/ffp").write_text(NOTE.format(ffp=real, folder=folder))
    (folder / "bin/ffp").chmod(0o755)
    return folder


def snakemake(folder: Path) -> subprocess.Popen[str]:
    """Start the documented command."""
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "snakemake.log").open("w") as log:
        return subprocess.Popen(
            [Path(sys.executable).with_name("snakemake"), *COMMAND], cwd=folder, text=True, env=environment,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def finish(folder: Path, run: subprocess.Popen[str]) -> str:
    """Wait for the end of a run; what it said."""
    code = run.wait(timeout=1500)
    said = (folder / "snakemake.log").read_text()
    assert code == 0, said[-5000:]
    return said


def accounted(since: str, *fields: str) -> list[list[str]]:
    """What Slurm's accounting says of the jobs since a time; of one that was started again, each time."""
    command = ["sacct", "-X", "-D", "-n", "-P", "-S", since, "-o", ",".join(fields)]
    listed = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return [line.split("|") for line in listed.splitlines()]


def now() -> str:
    time.sleep(1.1)  # accounting counts in seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_source: Path) -> tuple[Path, str]:
    """A folder in which the literal command has run to its end, and when it began."""
    folder, since = site(tmp_path_factory.mktemp("slurm"), tiny_source), now()
    finish(folder, snakemake(folder))
    return folder, since


def places(folder: Path) -> list[tuple[str, str, str, str]]:
    """(node, GPU, command, cell) of every command that ran, without the table of costs at the end of a run."""
    found = []
    for line in (folder / "places.txt").read_text().splitlines():
        node, gpu, command, *words = line.split()
        cell = words[words.index("--cell") + 1] if "--cell" in words else ""
        if command != "cost":
            found.append((node, gpu, command, cell))
    return found


def test_all_that_reads_weights_runs_on_nodes_and_cheap_rules_here(finished: tuple[Path, str]) -> None:
    seen = places(finished[0])
    assert len(seen) == 2 + 1 + 1 + 7 + 7 + 8
    for node, gpu, command, cell in seen:
        if command in ("asset", "preflight"):
            assert (node, gpu) == ("here", "none"), (command, cell)
        else:
            gpus = ("none",) if command == "allocate" and "/owl/" in cell else ("0", "1")
            assert node.startswith("node") and gpu in gpus, (node, gpu, command)
    at_once = [(node, gpu) for node, gpu, command, cell in seen if command == "allocate" and "/owl/" not in cell]
    assert len({node for node, _ in at_once}) >= 3
    assert len(set(at_once)) == len(at_once) == 6, "two searches shared a GPU while others stood idle"


def test_accounting_names_what_each_job_asked_for_and_short_cells_share_jobs(finished: tuple[Path, str]) -> None:
    jobs = accounted(finished[1], "state", "alloctres", "elapsedraw", "comment")
    assert {state for state, *_ in jobs} == {"COMPLETED"}
    given = [(tres, "allocate_heuristic" in comment) for _, tres, _, comment in jobs]
    assert all(("cpu=1,mem=1500M" if on_host else "cpu=1,gres/gpu=1,mem=1500M") in tres for tres, on_host in given)
    assert sum("allocate_search" in comment for *_, comment in jobs) == 6
    grouped = [comment for *_, comment in jobs if "rule" not in comment or "score" in comment]
    assert 2 <= len(grouped) <= 3, "eight cells, four to a job"
    assert len(jobs) == 1 + 1 + 6 + len(grouped)


def test_every_job_left_its_log_and_its_cost(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    for name in ("evolutionary", "fastforward", "fastforward-guided"):
        for seed in (0, 1):
            cost = json.loads((folder / CELLS / name / f"seed{seed}/search.cost.json").read_text())
            assert cost["evaluations"] > 0 and cost["wall_s"] > 0 and cost["peak_mem_bytes"] > 1e8
            log = folder / f"logs/allocate/tiny/structured/s0.30/{name}/seed{seed}.log"
            assert "tokens, best" in log.read_text()
            assert log.with_suffix(".benchmark.tsv").exists()


def test_the_cluster_gives_what_one_machine_gives(finished: tuple[Path, str], tiny_grid: Path) -> None:
    for name in ("owl", "fastforward", "fastforward-guided"):
        here, there = (
            json.loads((folder / CELLS / name / "seed0/allocation.json").read_text())
            for folder in (tiny_grid, finished[0])
        )
        assert here["keep"] == there["keep"]


def test_a_second_run_does_nothing(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    before = len(places(folder))
    assert "Nothing to be done" in finish(folder, snakemake(folder))
    assert len(places(folder)) == before


def dvc(folder: Path, *words: str) -> str:
    """A command of DVC that has to succeed, with Slurm as the site; what it said."""
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["dvc", *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**environment, "SNAKEMAKE_PROFILE": "slurm", "DVC_NO_ANALYTICS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_dvc_repro_brings_a_missing_cell_from_the_cluster(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    before = len(places(folder))
    for name in ("constraints.txt", ".dvcignore", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    dvc(folder, "init", "--no-scm", "-q")
    (folder / CELLS / "evolutionary/seed1/scores.json").unlink()
    dvc(folder, "repro")
    ((node, _, command, cell),) = places(folder)[before:]
    assert node.startswith("node") and command == "evaluate" and cell.endswith("evolutionary/seed1")
    assert "up to date" in dvc(folder, "repro")


def running(folder: Path, what: str) -> list[list[str]]:
    """(job, node) of running jobs whose comment names `what`."""
    command = ["squeue", "-h", "-t", "R", "-o", "%A|%N|%k"]
    listed = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return [line.split("|")[:2] for line in listed.splitlines() if what in line]


def wait_for(found: object, run: subprocess.Popen[str]) -> list[list[str]]:
    while run.poll() is None:
        if jobs := found():  # type: ignore[operator]
            return jobs  # type: ignore[no-any-return]
        time.sleep(0.3)
    raise AssertionError("the run ended too soon")


def partition(state: str) -> None:
    """Lets jobs of the partition start (UP) or not (DOWN); those that run go on."""
    subprocess.run(["scontrol", "update", "PartitionName=gpu", f"State={state}"], check=True)


@pytest.mark.fault
def test_the_next_start_cancels_what_a_killed_run_left_in_the_queue(
    finished: tuple[Path, str], tmp_path: Path, tiny_source: Path
) -> None:
    """Both would compute the same otherwise. Jobs of other folders, and jobs that are no run's, stay."""
    folder, since = site(tmp_path, tiny_source), now()
    run = snakemake(folder)
    wait_for(lambda: running(folder, "calibrate"), run)
    partition("DOWN")
    try:
        wait_for(lambda: len(queue("-t", "PD")) == 7, run)
        run.kill()
        run.wait()
        idle = ["sbatch", "--parsable", "--begin", "now+1hour", "--partition", "gpu", "--mem", "10"]
        words = (["--comment", "rule_allocate_search", "--chdir", "/"], ["--comment", "mine"])
        others = [
            subprocess.run([*idle, *each, "--wrap", "true"], cwd=folder, text=True, stdout=-1, check=True).stdout
            for each in words
        ]
        run = snakemake(folder)
        wait_for(lambda: "cancelled in Slurm's queue: 7." in (folder / "snakemake.log").read_text(), run)
    finally:
        partition("UP")
    finish(folder, run)
    assert sorted(queue()) == sorted(number.strip() for number in others)
    subprocess.run(["scancel", *queue()], check=True)
    searches = [state for state, comment in accounted(since, "state", "comment") if "allocate_search" in comment]
    assert searches.count("COMPLETED") == 6


@pytest.mark.long
@pytest.mark.fault
def test_preempted_jobs_go_on_when_slurm_starts_them_again(
    finished: tuple[Path, str], tmp_path: Path, tiny_source: Path
) -> None:
    """A job of another partition takes all nodes; Slurm starts what it took them from again after some two minutes."""
    folder, since = site(tmp_path, tiny_source), now()
    run = snakemake(folder)
    wait_for(lambda: list((folder / CELLS).rglob("journal.txt")), run)
    words = ["--partition", "urgent", "--nodes", "4", "--exclusive", "--mem", "10", "--wrap", "sleep 1"]
    subprocess.run(["sbatch", *words], cwd=folder, check=True)
    finish(folder, run)
    states = [state for state, comment in accounted(since, "state", "comment") if "allocate_search" in comment]
    assert "PREEMPTED" in states and states.count("COMPLETED") == 6, states
    assert any("resuming: " in log.read_text() for log in (folder / "logs/allocate").rglob("*.log"))
    for name in ("evolutionary", "fastforward", "fastforward-guided"):
        files = [root / CELLS / name / "seed0/allocation.json" for root in (finished[0], folder)]
        assert json.loads(files[0].read_text())["keep"] == json.loads(files[1].read_text())["keep"]
    assert "Nothing to be done" in finish(folder, snakemake(folder))


@pytest.mark.long
@pytest.mark.fault
def test_out_of_memory_scancel_and_a_crashed_node_end_in_the_same_report(
    finished: tuple[Path, str], tmp_path: Path, tiny_source: Path
) -> None:
    """All three in one run: too little memory for every job, a job cancelled, a node killed with its jobs."""
    folder, since = site(tmp_path, tiny_source, mem_mb=400), now()
    run = snakemake(folder)
    job, _ = wait_for(lambda: running(folder, "allocate_search"), run)[0]
    subprocess.run(["scancel", job], check=True)
    _, node = wait_for(lambda: [pair for pair in running(folder, "allocate_search") if pair[0] != job], run)[-1]
    cluster("crash", node)
    try:
        said = finish(folder, run)
    finally:
        cluster("revive", node)
    states = {state.split()[0] for state, *_ in accounted(since, "state")}
    assert "CANCELLED" in states and states & {"NODE_FAIL", "FAILED"}, states
    assert "Trying to restart" in said
    memory = {
        tres.split("mem=")[1].split("M")[0] for _, tres in accounted(since, "jobid", "alloctres") if "mem=" in tres
    }
    assert {"400", "800"} <= memory, "no job was given more memory after it failed"
    for name in ("evolutionary", "fastforward", "fastforward-guided"):
        for seed in (0, 1):
            files = [root / CELLS / name / f"seed{seed}/allocation.json" for root in (finished[0], folder)]
            assert json.loads(files[0].read_text())["keep"] == json.loads(files[1].read_text())["keep"]
    assert "Nothing to be done" in finish(folder, snakemake(folder))
