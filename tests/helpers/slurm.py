"""A real Slurm of virtual nodes on this machine, for the time of a test."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "slurm" / "cluster.sh"


def cluster(*words: str) -> str:
    """Runs cluster.sh, which has to succeed, and returns what it said."""
    done = subprocess.run([SCRIPT, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def queue(*words: str) -> list[str]:
    """Numbers of this user's jobs in the queue; words: further ones of squeue."""
    command = ["squeue", "-h", "--me", "-o", "%A", *words]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout.split()


@contextmanager
def virtual_cluster(**settings: str) -> Iterator[None]:
    """A running cluster, or the reason why there is none; settings: variables of cluster.sh, such as SELECT."""
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("a virtual Slurm needs root on Debian, or a kin of it")
    if any(path.exists() and not path.is_symlink() for path in [Path("/etc/slurm/slurm.conf")]):
        pytest.skip("this machine has a Slurm of its own")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            os.mknod(Path(scratch, "null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("pretended GPUs are devices, which cannot be made here")
    environment = {**os.environ, **settings}
    up = subprocess.run([SCRIPT, "up"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    if up.returncode:
        cluster("down")
        pytest.skip(f"no Slurm can be brought up here: {' '.join(up.stdout.split())[-300:]}")
    try:
        yield
    finally:
        cluster("down")
