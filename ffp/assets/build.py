"""Put an asset's folder in place whole, or keep the one that is there."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ffp.core.errors import ArtifactError, AssetError
from ffp.store.files import crc32, digest, read_json, sha256, write_json

LOG = logging.getLogger("ffp")
SCHEMA = "ffp/asset/1"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
SUFFIXES = frozenset({".json", ".jsonl", ".safetensors", ".txt", ".model", ".jinja"})


def downloads_of(out: Path) -> Path:
    """The folder, shared by all assets of a data folder, that keeps what was downloaded."""
    return Path(out).absolute().parent.parent / "downloads"


def build(out: Path, *, kind: str, source: Mapping[str, Any], make: Callable[[Path], None]) -> None:
    """Have `make` fill a folder beside `out`, describe it in asset.json, and rename it to `out`.

    source: plain JSON facts that determine the content; an `out` made from the same facts whose files still have
    their digests is kept. Whatever goes wrong raises AssetError and leaves `out` as it was.
    """
    out = Path(out).absolute()
    partial = out.with_name(f".{out.name}.partial")
    with disk_faults(out), locked(downloads_of(out) / f".{kind}-{out.name}.lock"):
        if _is_complete(out, kind, source):
            return
        _refuse_foreign(out)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            make(partial)
            _seal(partial, kind, source)
            _swap(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    LOG.info("%s %s is complete", kind, out)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes; the file stays behind, empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("waiting for another process that holds %s", path)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, above all a full disk, into one AssetError about `path`."""
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
    """Whether `out` holds the asset of these facts, unharmed; logs the reason either way if there is one."""
    if not (out / "asset.json").exists():
        return False
    try:
        body = read_json(out / "asset.json", SCHEMA)
    except ArtifactError as error:
        LOG.info("%s; building the asset again", error)
        return False
    if body.get("kind") != kind or body.get("source") != source:
        LOG.info("%s was made from another source or configuration; building it again", out)
        return False
    for name, expected in body["files"].items():
        if not (out / name).is_file() or sha256(out / name) != expected:
            LOG.info("%s is missing or changed; building the asset again", out / name)
            return False
    LOG.info("%s %s is complete and unchanged, kept", kind, out)
    return True


def _refuse_foreign(out: Path) -> None:
    """Raise AssetError if `out` holds anything that no asset has: it would be deleted."""
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
    facts = {"kind": kind, "source": source, "files": files, "crc32": crcs, "digest": digest(files)}
    write_json(partial / "asset.json", SCHEMA, facts)


def _swap(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`, in place of an outdated one, which comes back if that fails."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
