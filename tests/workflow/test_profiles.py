"""What profiles hand to schedulers: jobs of models that differ; grids, with plug-ins that are not in the lock."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.sbatch import writing_down
from tests.helpers.site import Site, make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sge", "cluster-generic"])
def test_a_profile_plans_the_grid(name, tiny_source, tmp_path):
    plugin = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages"]
    installed = subprocess.run([*plugin, f"snakemake-executor-plugin-{name}"], text=True, capture_output=True)
    if installed.returncode:
        pytest.skip(f"the plug-in cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    tiny.configure(tmp_path)
    (tmp_path / "source").symlink_to(tiny_source / "source")
    (tmp_path / "docs.jsonl").symlink_to(tiny_source / "docs.jsonl")
    profile, snakefile = tiny.ROOT / "profiles" / name, tiny.ROOT / "Snakefile"
    words = ["--snakefile", str(snakefile), "--cores", "all", "--profile", str(profile), "--dry-run"]
    done = tiny.run(
        tmp_path, "snakemake", *words, "--config", "grid=config/grid.yaml", path=Path(tmp_path / "packages"), fork=False
    )
    assert done.returncode == 0 and "calibrate tiny" in done.output, done.output


def submitted(site: Site, *targets: str, **others: str) -> tuple[list[dict[str, str]], str]:
    """The options of each `sbatch` of a run, which refuses its job, and what the run printed.

    targets: what the run is asked for. others: commands of further programs of Slurm.
    """
    programs, said = writing_down(site.folder, **others)
    places = [programs, site.folder / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    words = ["--cores", "2", "--profile", str(tiny.ROOT / "profiles/slurm"), "--restart-times", "0", "--keep-going"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", str(tiny.ROOT / "Snakefile"), *words, "--config",
         "grid=config/grid.yaml", *targets],
        cwd=site.folder, text=True, capture_output=True,
        env={**os.environ, "PATH": os.pathsep.join(map(str, places)), "PYTHONPATH": str(tiny.ROOT), "FAIL": "no cell",
             "SAID": str(said)},
    )  # fmt: skip
    assert done.returncode
    calls = [file.read_text().split("\0")[:-1] for file in said.iterdir()]
    options = [dict(pairwise([part for word in words for part in word.split("=", 1)])) for words in calls]
    return options, done.stdout + done.stderr


@pytest.mark.slow
def test_jobs_of_models_that_differ_ask_for_what_their_models_say(tmp_path):
    site = make(tmp_path)
    asked = {"tiny": {"mem_mb": 100, "threads": 1, "gpu": 0, "runtime_min": 20},
             "other": {"mem_mb": 300, "threads": 2, "gpu": 1, "runtime_min": 30}}  # fmt: skip
    for name, resources in asked.items():
        body = {**site.read("models/tiny.yaml"), "title": name, "resources": {**resources, "account": "it.is=+me"}}
        site.write(f"models/{name}.yaml", body)
    site.write("grid.yaml", {**site.read("grid.yaml"), "models": list(asked)})
    calls, printed = submitted(site, "--until", "calibrate")
    assert len(calls) == 2, printed
    for value in calls:
        resources = asked[value["--comment"].rpartition("_")[2]]
        assert (value["-t"], value["--mem"], value["--cpus-per-task"]) == (
            str(resources["runtime_min"]), str(resources["mem_mb"]), str(resources["threads"])
        )  # fmt: skip
        assert "--requeue" in value
        assert value.get("--gpus") == (str(resources["gpu"]) if resources["gpu"] else None)


@pytest.mark.slow
@pytest.mark.parametrize("resources", [{"gpu": 1}, {"gpu": 1, "gres": "gpu:a100:1"}], ids=["by number", "by gres"])
def test_a_heuristic_that_reads_weights_is_a_job_without_a_gpu(resources, tmp_path):
    site = make(tmp_path)
    site.write("grid.yaml", {**site.read("grid.yaml"), "sparsities": [0.2]})
    assert site.snakemake("--until", "calibrate").returncode == 0
    resources = {**resources, "account": "it.is=+me"}
    site.write("models/tiny.yaml", {**site.read("models/tiny.yaml"), "resources": resources})
    calls, printed = submitted(site, "--until", "apply")
    assert len(calls) == 3, printed
    for value in calls:
        searches, asks = "allocate_search" in value["--comment"], {"--gpus", "--gres"} & value.keys()
        assert searches or "allocate_heuristic" in value["--comment"]
        assert len(asks) == searches, value
    by_cell = [words[words.index("--cell") + 1] for words in site.commands() if words[0] == "allocate"]
    assert by_cell == ["tiny/structured/s0.20/uniform/seed0"], "what reads no weights runs here"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "cancelled"),
    [("logs/site/tiny/search.json", ""), ("results/cells/tiny/structured/s0.20/owl/seed0/allocation.json", "7\n")],
    ids=["a probe of the site", "a cell"],
)
def test_jobs_of_a_killed_run_are_taken_back_by_runs_that_repeat_them_alone(target, cancelled, tmp_path):
    site = make(tmp_path)
    site.write("models/tiny.yaml", {**site.read("models/tiny.yaml"), "resources": {"account": "it.is=+me"}})
    squeue = f"echo '7|rule_allocate_search_wildcards_tiny|{tmp_path}'"
    calls, printed = submitted(site, "--", target, squeue=squeue, scancel=f'echo "$@" >> {tmp_path}/cancelled')
    assert len(calls) == 1, printed
    done = tmp_path / "cancelled"
    assert (done.read_text() if done.exists() else "") == cancelled, printed
    assert ("cancelled in Slurm's queue: 1. This run submits again what it needs of them;" in printed) == bool(
        cancelled
    )
