"""One run of the workflow at a time in a folder, by a lock that the kernel releases when its holder dies.

Snakemake's own lock is a set of files. A killed run leaves them behind, and the next run is refused until somebody
types --unlock. The kernel's lock tells the files of a dead run from those of a live one, so that they can be removed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ffp.core.errors import ConfigError

STATE = Path(".snakemake")
_held: list[FileLock] = []  # released when this process ends


def try_lock(path: Path) -> FileLock | None:
    """Takes a lock that the kernel releases when this process dies.

    Args:
        path: Lock file; created if missing, and never removed.

    Returns:
        The lock, which is released when the last reference to it is gone; None if another process holds it.
    """
    lock = FileLock(path, blocking=False, mode=0o600, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def clear_stale(state: Path = STATE) -> None:
    """Removes the lock files that a dead run left in Snakemake's folder `state`; those of a live run stay."""
    if (state / "locks").is_dir() and (lock := try_lock(state / "ffp.lock")) is not None:
        shutil.rmtree(state / "locks", ignore_errors=True)
        lock.release()


def hold(state: Path = STATE) -> None:
    """Keeps other runs out of this folder until the process ends.

    Raises:
        ConfigError: A run is at work here already.
    """
    state.mkdir(exist_ok=True)
    file = state / "ffp.lock"
    lock = try_lock(file)
    if lock is None:
        raise ConfigError(
            f"another run (process {file.read_text() or 'unknown'}) is at work in {Path.cwd()}. "
            "Wait for its end, or run in another folder."
        )
    file.write_text(str(os.getpid()))
    _held.append(lock)


def holder(state: Path = STATE) -> str | None:
    """Returns the process number of the run that is at work in this folder, or None; creates nothing."""
    file = state / "ffp.lock"
    if not file.exists():
        return None
    process = file.read_text() or "unknown"
    with suppress(PermissionError):
        lock = try_lock(file)
        if lock is not None:
            lock.release()
        return process if lock is None else None
    return process if Path("/proc", process).exists() else None  # another user's folder: nothing else can be checked
