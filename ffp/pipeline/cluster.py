"""Where the workflow runs: what a site must offer is checked before the first job, and GPUs are shared out."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from ffp.core.errors import ConfigError

_claimed: list[int] = []  # locks, open for as long as this process lives


def check(executor: str) -> None:
    """ConfigError where the profile hands jobs to a Slurm that this machine cannot reach."""
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "profile slurm needs Slurm, but this machine has no sbatch. Run on a node from which jobs can be "
            "submitted, or run here with --profile profiles/local."
        )


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without it, all of the machine."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number, _ in enumerate(re.findall(r"^GPU \d+:", told, re.MULTILINE))]


def claim_gpus(wanted: int) -> None:
    """Take `wanted` GPUs that no other job of this user has, until the process ends; wait until so many are free.

    Sets CUDA_VISIBLE_DEVICES, so it has to come before CUDA starts. Nothing is left to choose where Slurm, or the user,
    has named no more than that, or the machine has no more.
    """
    known = gpus()
    if not 0 < wanted < len(known):
        return
    while len(mine := _free(known, wanted)) < wanted:
        time.sleep(1)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # that of nvidia-smi
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)


def _free(known: list[str], wanted: int) -> list[str]:
    """Lock GPUs that are free; the names of `wanted` of them, or none where there are fewer."""
    locked: dict[str, int] = {}
    for name in known:
        if len(locked) < wanted:
            path = Path(tempfile.gettempdir(), f"ffp-{os.getuid()}-gpu-{name}.lock")
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked[name] = handle
            except BlockingIOError:
                os.close(handle)
    if len(locked) < wanted:
        for handle in locked.values():
            os.close(handle)
        return []
    _claimed.extend(locked.values())
    return list(locked)
