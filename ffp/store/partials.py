"""Temporary files and folders beside the ones that they become, locked while their writer lives.

A writer that is killed leaves its temporary file behind. The kernel has released the lock then, so that the next
writer of the same path can tell such a file from that of a writer at work, on whatever node, and removes it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".partial"


@contextmanager
def partial(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yields an empty temporary file or folder beside `path`; afterwards removes it, if it is still there.

    Args:
        path: What it will be renamed to; its folder exists.
        folder: Make a folder.

    Raises:
        OSError: It cannot be made.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{SUFFIX}"):
        _remove_if_left(left)
    handle, made = _make(path, folder)
    try:
        yield made
    finally:
        _remove(made)
        os.close(handle)


def _make(path: Path, folder: bool) -> tuple[int, Path]:
    """Makes and locks a temporary file or folder; again, if a writer took it for one that was left."""
    while True:
        prefix = f".{path.name}."
        if folder:
            made = Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=path.parent))
            handle = os.open(made, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=SUFFIX, dir=path.parent)
            made = Path(name)
        if _lock(handle) is not False and made.exists():
            return handle, made
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Locks an open file or folder until it is closed: whether that worked; None on a disk without such locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):  # another writer removed or finished it, or it is somebody else's
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            if _lock(handle):
                _remove(path)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
