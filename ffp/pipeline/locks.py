"""One run of the workflow at a time in a folder, by a lock that the kernel takes back when its holder dies.

Snakemake's own lock is a set of files, which kill -9 or a power loss leaves behind, so that the next run is refused
until somebody types --unlock. With a lock of the kernel beside it, the files of a dead run are told from those of a
live one, and can be removed unattended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from ffp.core.errors import ConfigError

STATE = Path(".snakemake")
_held: list[int] = []  # open for as long as this process lives


def clear_stale(state: Path = STATE) -> None:
    """Remove the lock files that a dead run left in `state`; those of a live run stay."""
    if not (state / "locks").is_dir():
        return
    handle = _open(state)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(state / "locks", ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(handle)


def hold(state: Path = STATE) -> None:
    """Keep other runs out of this folder until the process ends; ConfigError if one is already running."""
    handle = _open(state)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode() or "unknown"
        os.close(handle)
        raise ConfigError(
            f"another run (process {holder}) is at work in {Path.cwd()}. Wait for its end, or run in another folder."
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    _held.append(handle)


def holder(state: Path = STATE) -> str | None:
    """The process that is at work in this folder, or None: nothing is created, and no lock is left behind."""
    try:
        handle = os.open(state / "ffp.lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 20, 0).decode() or "unknown"
    finally:
        os.close(handle)
    return None


def _open(state: Path) -> int:
    state.mkdir(exist_ok=True)
    return os.open(state / "ffp.lock", os.O_RDWR | os.O_CREAT, 0o666)
