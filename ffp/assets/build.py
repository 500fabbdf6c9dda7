"""Puts an asset's folder in place whole, or keeps the one that is there."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ffp.core.errors import ArtifactError, AssetError
from ffp.store.files import crc32, digest, folder_behind, sha256, swap_folder
from ffp.store.layout import AssetFiles, downloads_of
from ffp.store.schemas import AssetFile

LOG = logging.getLogger("ffp")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
SUFFIXES = frozenset({".arrow", ".json", ".jsonl", ".safetensors", ".txt", ".model", ".jinja"})


def build(out: Path, *, kind: str, source: Mapping[str, Any], make: Callable[[Path], None]) -> None:
    """Makes an asset in a folder beside `out`, and renames the folder to `out` once it is complete.

    Args:
        out: The asset's folder, or a link to it. One that was made from the same source and whose files are unchanged
            is kept.
        kind: "model", "text" or "tasks".
        source: Plain JSON data that determines the content.
        make: Fills the folder that it is given.

    Raises:
        AssetError: Something failed; `out` is as it was before.
    """
    lock = downloads_of(out) / f".{kind}-{Path(out).absolute().name}.lock"
    out = folder_behind(out)
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(out), locked(lock):
        if _is_complete(out, kind, source):
            return
        _refuse_foreign(out)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            make(partial)
            _seal(partial, kind, source)
            swap_folder(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    LOG.info("%s %s is complete", kind, out)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path` against other processes; the file stays behind, empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        LOG.info("waiting for another process that holds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_space(folder: Path, needed: int, what: str) -> None:
    """Checks that a folder's disk has room.

    Args:
        folder: It exists.
        needed: Bytes that will be written.
        what: What they are, for the error.

    Raises:
        AssetError: The disk has fewer bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise AssetError(
            f"{what} takes {needed / 1e6:,.1f} MB, but the disk of {folder} has {free / 1e6:,.1f} MB free. Free space "
            "there, or give a folder on a larger disk."
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, above all a full disk, into one AssetError about `path`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in DISK_FULL:
            raise AssetError(
                f"disk full while writing {where} for {path}. Free space there, or give a folder on a larger disk; "
                "nothing half-written was left, and complete downloads are kept."
            ) from error
        raise AssetError(
            f"cannot read or write {where} for {path}: {error.strerror or error}. Check that it exists and its rights."
        ) from error


def _is_complete(out: Path, kind: str, source: Mapping[str, Any]) -> bool:
    """Whether `out` holds the asset made from this source, unchanged. Logs why, if there is a folder at all."""
    try:
        found = AssetFile.read_if_there(AssetFiles(out).manifest)
    except ArtifactError as error:
        LOG.info("%s; building the asset again", error)
        return False
    if found is None:
        return False
    if found.kind != kind or found.source != source:
        LOG.info("%s was made from another source or configuration; building it again", out)
        return False
    for name, expected in found.files.items():
        if not (out / name).is_file() or sha256(out / name) != expected:
            LOG.info("%s is missing or changed; building the asset again", out / name)
            return False
    LOG.info("%s %s is complete and unchanged, kept", kind, out)
    return True


def _refuse_foreign(out: Path) -> None:
    """Raise AssetError if `out` holds anything that no asset has, since it would be deleted."""
    if not out.exists():
        return
    if not out.is_dir():
        raise AssetError(f"{out} is a file; an asset is a folder. Give another --out.")
    for path in sorted(out.iterdir()):
        if path.is_dir() or path.suffix not in SUFFIXES:
            raise AssetError(f"folder {out} holds {path.name!r}, which is no part of an asset. Give an empty --out.")


def _seal(partial: Path, kind: str, source: Mapping[str, Any]) -> None:
    """Flush every file to disk, then write asset.json, the last file."""
    files, crcs = {}, {}
    for path in sorted(partial.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files[path.name], crcs[path.name] = sha256(path), crc32(path)
    manifest = AssetFile(kind=kind, source=dict(source), files=files, crc32=crcs, digest=digest(files))
    manifest.write(AssetFiles(partial).manifest)
