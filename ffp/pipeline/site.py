"""Asks a site with one tiny job of each kind whether a grid can run there, before hours are spent."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ffp.config import Experiment, ModelConfig
from ffp.config.assets import JobKind
from ffp.pipeline import cluster
from ffp.pipeline.host import host_cpus
from ffp.store.layout import Layout
from ffp.store.schemas import ProbeFile

# Why Slurm lets a job wait, where waiting does not help.
HOPELESS = {
    "PartitionTimeLimit": "its time limit is above that of the partition. Lower resources.runtime_min",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives",
    "BadConstraints": "no node has what it asks for. Correct constraint or gres",
    "ReqNodeNotAvail": "no node that it may run on is up",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "InvalidAccount": "the account is not valid",
    "InvalidQOS": "the QoS is not valid",
}
LIMIT = re.compile(r"^(QOS|Assoc)\w*PerJob\w*$")
LOGGED = re.compile(r"^ +log: (.+) \(check log file", re.M)
SLURM_ERROR = re.compile(r"^(?:srun|sbatch|slurmstepd): error: (.+)$", re.M)


@dataclass(frozen=True)
class Outcome:
    """What came of one tiny job.

    Attributes:
        model: Whose resources it asked for.
        kind: "search" or "score".
        ok: Whether it ran and found what it needs.
        text: What it found, or what failed.
    """

    model: str
    kind: str
    ok: bool
    text: str

    def __str__(self) -> str:
        """Returns one line."""
        return f"{self.kind} jobs of {self.model}: {'ok' if self.ok else 'failed'}: {self.text}"


def probe(model: ModelConfig) -> ProbeFile:
    """Returns what this process finds where it runs: the node, its cores and GPUs, and whether torch can use those."""
    import torch

    return ProbeFile(
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        cpus=host_cpus(),
        gpus=cluster.gpus() if model.resources.gpu else [],
        cuda=torch.cuda.is_available(),
    )


def check(experiment: Experiment, profile: str, *, wait_s: float) -> Iterator[Outcome]:
    """Yields the outcome of a tiny job for each model and kind, one after the other.

    Args:
        experiment: The grid.
        profile: Snakemake's profile.
        wait_s: How long a job may wait for free resources.
    """
    for name, model in experiment.models.items():
        for kind in get_args(JobKind):
            yield _check_one(experiment, name, model, kind, profile, wait_s)


def _check_one(
    experiment: Experiment, name: str, model: ModelConfig, kind: JobKind, profile: str, wait_s: float
) -> Outcome:
    target = Layout.from_grid(experiment.grid).probe(name, kind)
    target.unlink(missing_ok=True)
    words = ["snakemake", "--profile", profile, "--cores", "all", "--config", f"grid={experiment.file}"]
    words += ["--restart-times", "0", "--force", "--", str(target)]
    started = time.monotonic()
    run = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while True:
        try:
            said, _ = run.communicate(timeout=2.0)
            break
        except subprocess.TimeoutExpired:
            job, reason = _waits(name, kind)
            late = time.monotonic() - started > wait_s
            if reason and (late or _hopeless(reason)):
                _stop(run, job)
                return Outcome(name, kind, False, _describe(reason, wait_s))
    found = ProbeFile.read_if_there(target)
    if found is None:
        return Outcome(name, kind, False, _reason(said))
    text = f"{found.node}, {found.cpus} CPUs" + (f", GPUs {', '.join(found.gpus)}" if found.gpus else "")
    if model.resources.gpu and model.device in ("auto", "cuda") and not found.cuda:
        return Outcome(name, kind, False, f"{text}: torch finds no GPU there, although the model asks for one")
    return Outcome(name, kind, True, text)


def _waits(model: str, kind: str) -> tuple[str, str]:
    """The job's number and why it waits in Slurm's queue, in Slurm's word; empty if it does not."""
    command = ["squeue", "-h", "--me", "-t", "PENDING", "-o", "%A|%r|%k"]
    try:
        listed = subprocess.run(command, text=True, capture_output=True).stdout
    except FileNotFoundError:
        return "", ""
    for line in listed.splitlines():
        job, reason, comment = line.split("|", 2)
        if comment.endswith(f"rule_site_{kind}_wildcards_{model}"):
            return job, reason
    return "", ""


def _hopeless(reason: str) -> bool:
    return reason.partition(",")[0] in HOPELESS or bool(LIMIT.match(reason))


def _describe(reason: str, wait_s: float) -> str:
    known = HOPELESS.get(reason.partition(",")[0])
    if known:
        return f"it would wait for ever ({reason}): {known}."
    if LIMIT.match(reason):
        return f"it would wait for ever ({reason}): it asks for more than the limits of its QoS or account allow."
    return f"it waited {wait_s:.0f} s ({reason}). Try again, or give --wait more seconds."


def _stop(run: subprocess.Popen[str], job: str) -> None:
    """Takes the job back; Snakemake notices that and ends."""
    subprocess.run(["scancel", job], capture_output=True)
    try:
        run.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def _reason(said: str) -> str:
    """The line that says why a job failed: sbatch's, else one of Slurm's in its logs, else the last line of those."""
    if refused := cluster.submission_error(said):
        return refused
    paths = [Path(path) for paths in LOGGED.findall(said) for path in paths.split(", ")]
    logs = [path.read_text() for path in paths if path.is_file()]
    if errors := [error for log in logs for error in SLURM_ERROR.findall(log)]:
        return str(errors[0])
    lines = [line for text in (said, *reversed(logs)) for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "Snakemake said nothing"
