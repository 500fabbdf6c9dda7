"""GPUs of a workstation are shared out, one job each, and come back when a job dies."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pydantic import ValidationError
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_interface_common.exceptions import WorkflowError

from ffp.cli import main
from ffp.config import ModelConfig, TasksConfig, TextConfig, read_part
from ffp.core.errors import ConfigError
from ffp.pipeline import cluster

JOB = """
import logging, os, sys, time
from ffp.pipeline import cluster
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
cluster.claim_gpus(int(sys.argv[1]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(60)
"""


class Workstation:
    """Starts jobs on a machine whose GPUs have these names."""

    def __init__(self, folder: Path, names: str):
        self.environment = {**os.environ, "CUDA_VISIBLE_DEVICES": names, "TMPDIR": str(folder)}
        self.jobs: list[subprocess.Popen[str]] = []

    def start(self, wanted: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", JOB, str(wanted)]
        self.jobs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self.environment))
        return self.jobs[-1]

    def given(self, job: subprocess.Popen[str]) -> str:
        assert job.stdout is not None
        return job.stdout.readline().strip()


@pytest.fixture
def workstation(tmp_path: Path) -> Iterator[Workstation]:
    machine = Workstation(tmp_path, "4,5,7")
    yield machine
    for job in machine.jobs:
        job.kill()
        job.wait()


def test_jobs_get_gpus_of_their_own_and_wait_for_those_of_a_dead_one(workstation: Workstation) -> None:
    first = workstation.start(1)
    assert workstation.given(first) == "4"
    assert workstation.given(workstation.start(2)) == "5,7"
    third = workstation.start(1)
    assert workstation.given(third) == "waiting for a GPU: other jobs of this user hold too many of 4, 5, 7"
    first.kill()
    first.wait()
    assert workstation.given(third) == "4"


GRID = ("--config", "config/grid.yaml")
CELL = (*GRID, "--cell", "tiny/structured/s0.30/fastforward/seed0", "--model-dir", "none")
CALIBRATED = (*CELL, "--calibration", "none", "--out", "out")
HEURISTIC = (*CALIBRATED, "--cell", "tiny/structured/s0.30/owl/seed0")
PRUNE = ("prune", "none", "--sparsity", "0.3", "--text", "docs", "--out", "out")


@pytest.mark.parametrize(
    ("words", "claims"),
    [
        (("validate", *GRID), 0),
        (("cost", *GRID), 0),
        (("preflight", *GRID, "--model", "tiny", "--model-dir", "none", "--text-dir", "none", "--out", "out"), 0),
        (("export", *CELL, "--out", "out"), 0),
        (("allocate", *CALIBRATED, "--reuse", "none"), 0),
        (("allocate", *HEURISTIC), 0),
        ((*PRUNE, "--dry-run"), 0),
        (("allocate", *CALIBRATED), 1),
        (PRUNE, 1),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_a_command_that_computes_nothing_takes_no_gpu(
    words: tuple[str, ...], claims: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a command needs besides is missing here: GPUs are taken before anything is read."""
    (folder / "locks").mkdir()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "locks"))
    grid = folder / "config/models/tiny.yaml"
    grid.write_text(yaml.safe_dump(yaml.safe_load(grid.read_text()) | {"resources": {"gpu": 1}, "device": "auto"}))
    main(words)
    assert len(list((folder / "locks").glob("ffp-*-gpu-*.lock"))) == claims


@pytest.mark.parametrize(("names", "wanted"), [("3", 1), ("3,6", 2), ("3,6", 0), ("", 1)])
def test_nothing_is_chosen_where_nothing_is_left_to_choose(
    names: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of Slurm may both see a GPU 0, each its own: no locks there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cluster.claim_gpus(wanted)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == names
    assert not list(tmp_path.iterdir())


def test_the_gpus_of_a_machine_are_those_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cluster.gpus() == []
    listed = "GPU 0: NVIDIA A (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA A (UUID: GPU-2)\n"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{listed}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert cluster.gpus() == ["0", "1"]


@pytest.mark.parametrize(
    ("reader", "expected"),
    [("txt", ["a.jsonl", "b"]), ("jsonl", ["a.jsonl", "b"]), ("dataset", ["ARC/train.jsonl", "a.jsonl", "b"])],
)
def test_the_files_that_are_watched_are_those_that_an_asset_is_made_of(
    reader: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an ending and, of a data set, in its folders too."""
    for name in ("a.jsonl", "b", ".hidden", "ARC/train.jsonl", "ARC/.cache"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    source = {"kind": "local", "path": "source"}
    part: TextConfig | TasksConfig
    if reader == "txt":
        corpus = {"name": "a", "source": source, "reader": reader, "splits": ["test"]}
        part = TextConfig.model_validate({"title": "t", "sources": [corpus]})
    else:
        task = {"stock": "ai2_arc", "source": source, "reader": reader}
        part = TasksConfig.model_validate({"title": "t", "version": "1", "tasks": {"arc": task}})
    assert cluster.watched_files(part) == [Path("source", name) for name in expected]
    model = ModelConfig.model_validate({"title": "t", "source": source})
    assert cluster.watched_files(model) == [Path("source/a.jsonl")]


def models(**resources: dict[str, object]) -> dict[str, ModelConfig]:
    """Models by name, with these resources."""
    source = {"kind": "local", "path": "nowhere"}
    return {
        name: ModelConfig.model_validate({"title": name, "source": source, "resources": asked})
        for name, asked in resources.items()
    }


def test_slurm_options_are_of_the_kind_of_job_and_the_profile_keeps_the_others():
    score = {"qos": "short", "gres": "gpu:1"}
    found = models(a={"qos": "long", "score": score}, b={"qos": "night", "score": score})
    both = {key: (of("a"), of("b")) for key, of in cluster.slurm_options(found, "search").items()}
    assert both == {"qos": ("long", "night")}
    assert {key: of("b") for key, of in cluster.slurm_options(found, "score").items()} == score


def test_models_whose_cells_share_a_job_ask_alike_for_it():
    found = models(a={"partition": "big"}, b={"partition": "small"})
    assert cluster.slurm_options(found, "search")["slurm_partition"]("b") == "small"
    with pytest.raises(ConfigError, match=r"resources\.partition big and small for cuts and scores.*score\.partition"):
        cluster.slurm_options(found, "score")


def test_a_model_that_leaves_to_the_profile_what_another_names_is_refused():
    with pytest.raises(ConfigError, match=r"model a has resources\.partition for search jobs, and model b has none"):
        cluster.slurm_options(models(a={"partition": "gpu"}, b={}), "search")


@pytest.mark.parametrize("value", ["a b", "gpu; rm", "$(id)", "`id`", "", "x'y"])
@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "gres"])
def test_options_hold_nothing_that_a_shell_reads(key, value):
    with pytest.raises(ValidationError):
        models(a={key: value})


GRES = ["gpu", "gpu:1", "gpu:a100:1", "gpu:1g.10gb:2", "gpu:a100", "tmpdisk:100G", "a_b", "gpu:1T"]
NO_GRES = ["gpu=1", "gpu:a100:1,tmpdisk:100", "gpu:a100-40g:1", "gpu:", "gpu:a:b:1", "gpu:a:1K", ":1", "gpu+1", "gpü:1"]


@pytest.mark.parametrize("value", [*GRES, *NO_GRES])
def test_a_gres_is_refused_where_the_plug_in_would_refuse_it_later(value, tmp_path):
    job = SimpleNamespace(resources=Resources(value))
    file = tmp_path / "tiny.yaml"
    source = {"kind": "local", "path": "nowhere"}
    file.write_text(yaml.safe_dump({"title": "tiny", "source": source, "resources": {"gres": value}}))
    if value in GRES:
        assert set_gres_string(job) == f" --gres={value}"
        assert read_part(ModelConfig, file).resources.gres == value
    else:
        with pytest.raises(WorkflowError, match="Invalid GRES format"):
            set_gres_string(job)
        with pytest.raises(ConfigError, match=r"resources\.gres = .*: no gres that .*: one NAME, .*NAME:TYPE:NUMBER"):
            read_part(ModelConfig, file)


class Resources(dict[str, str]):
    """The resources of a job, as the plug-in reads them."""

    def __init__(self, gres: str):
        super().__init__(gres=gres)
        self.gres = gres


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"gird": "config/grids/paper.yaml"},
            r"--config gird=\.\.\. is unknown: did you mean grid\? Write --config grid=",
        ),
        ({"grid": "a.yaml", "profile": "slurm"}, r"--config profile=\.\.\. is unknown: known: grid\."),
        ({"grid": None}, r"--config grid= names no file\. Write --config grid=config/grids/demo\.yaml"),
        ({"grid": " "}, r"--config grid= +names no file"),
    ],
)
def test_only_a_grid_is_taken_from_snakemakes_config(given, message):
    with pytest.raises(ConfigError, match=message):
        cluster.grid_file(given)


def test_a_workflow_without_a_grid_runs_the_demo():
    assert cluster.grid_file({}) == Path("config/grids/demo.yaml")
    assert cluster.grid_file({"grid": "mine.yaml"}) == Path("mine.yaml")
