"""Reads and writes files: whole or not at all, and only with the right schema tag and checksum.

Every JSON and safetensors artifact carries a checksum of its content, and parquet one of each page, so that a flipped
bit or an edited figure is found by whoever reads the file. A file without a checksum is accepted, except by `verify`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ffp.core.errors import ArtifactError, ConfigError, FfpError, is_out_of_memory, reason_of
from ffp.store.layout import ExportFiles
from ffp.store.partials import partial

T = TypeVar("T")
CHECKSUM = "checksum"
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in errors of safetensors, which has a type of its own for a disk's


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it into place when the block succeeds.

    The file is flushed to disk first, so that it appears under its final name complete or not at all.

    Raises:
        FfpError: The disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        folder_behind(path.parent).mkdir(parents=True, exist_ok=True)
        with partial(path) as made:
            yield made
            with made.open("rb") as written:
                os.fsync(written.fileno())
            made.chmod(0o666 & ~_umask())
            made.replace(path)
    except Exception as error:
        if (fault := _disk_fault(error)) is None:
            raise
        raise FfpError(f"cannot write {path}: {fault}. Free the disk or make the folder writable.") from error


def _disk_fault(error: Exception) -> str | None:
    """Returns what the disk says in an error of a library; None where it is not the disk's."""
    if isinstance(error, OSError):
        return error.strerror or reason_of(error)
    found = OS_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return os.strerror(int(found[1])) if found else None


def folder_behind(path: Path) -> Path:
    """Returns the folder that a path names, made or to be made: where its links lead, so that they stay as they are.

    A folder is made beside its final place and renamed, which puts it on the disk that a link leads to.

    Raises:
        ConfigError: A link leads to itself, or to a place whose own folder does not exist, as on a disk that is absent.
    """
    path = Path(path)
    for link in (each for each in (path, *path.parents) if each.is_symlink() and not each.exists()):
        target = Path(os.path.realpath(link))
        if target.is_symlink() or not target.parent.is_dir():
            why = "it leads to itself" if target.is_symlink() else f"there is no folder {target.parent}"
            raise ConfigError(
                f"{link} is a link to {link.readlink()}, which cannot be made: {why}. Make that folder (or attach "
                "its disk), or remove the link."
            )
    return Path(os.path.realpath(path))


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, and renames it into place when the block succeeds.

    Args:
        path: The folder to make, or a link to it.
        overwrite: Replace a folder that is there, if ffp wrote it (it holds ffp.json).

    Raises:
        FfpError: `path` exists, the disk is full or the folder cannot be written.
    """
    check_new_folder(path, overwrite=overwrite)
    path = folder_behind(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial(path, folder=True) as made:
            yield made
            for file in (file for file in made.rglob("*") if file.is_file()):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                file.chmod(0o666 & ~_umask())
            made.chmod(0o777 & ~_umask())
            swap_folder(made, path)
    except Exception as error:
        if (fault := _disk_fault(error)) is None:
            raise
        raise FfpError(f"cannot write {path}: {fault}. Free the disk or make the folder writable.") from error


def swap_folder(partial: Path, out: Path) -> None:
    """Renames `partial` to `out`, in place of a folder that is there, which comes back if that fails."""
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


def check_new_folder(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Checks that a folder can be made, or replaced.

    Args:
        path: The folder.
        overwrite: Replace a folder that ffp wrote.
        inputs: What is read while it is replaced.

    Raises:
        FfpError: It is there and must not be overwritten, the current folder or an input lies in it, or it is a link
            that leads nowhere.
    """
    folder = folder_behind(path)
    if not folder.exists():
        return
    if not overwrite:
        raise FfpError(f"{path} exists and is not overwritten. Give another --out, or delete it.")
    for each in (Path.cwd(), *inputs):
        if each.resolve().is_relative_to(folder.resolve()):
            raise FfpError(f"{path} would be replaced as a whole, but {each} lies in it. Give another --out.")
    if not ExportFiles(folder).manifest.is_file():
        raise FfpError(f"{path} exists and was not written by ffp (it has no ffp.json). Give another --out.")


@functools.cache
def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def visible_files(folder: Path, *, nested: bool = False, ending: str = "") -> list[Path]:
    """Returns the visible files of a folder by name.

    Args:
        folder: It exists.
        nested: Whether files of the folder's own folders are wanted, too.
        ending: A pattern of what they end in, such as ".*".
    """
    found = folder.rglob("*") if nested else folder.iterdir()
    return sorted(file for file in found if file.is_file() and fnmatchcase(file.name, f"[!.]*{ending}"))


def sha256(path: Path) -> str:
    """Returns the hex digest of a file's bytes; ArtifactError if it is missing."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Run the rule that makes it again.") from error


def digest(value: Any) -> str:
    """Returns a short digest of plain JSON data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def checksum(content: Any, tensors: Mapping[str, Any] | None = None) -> str:
    """Returns 128 bits, in hex, over plain JSON data and over arrays with their names, types and shapes."""
    state = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16)
    for name, array in sorted((tensors or {}).items()):
        state.update(f"{name} {array.dtype} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def crc32(path: Path) -> int:
    """Returns the CRC-32 of a file's bytes: ten times as fast as sha256, for what every job reads again."""
    crc = 0
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _compare(path: Path, expected: str | None, found: str, sealed: bool) -> None:
    if expected != found and (sealed or expected is not None):
        raise ArtifactError(
            f"{path} is damaged or was edited: its checksum is {found}, expected {expected or 'one inside it'}. "
            "Delete it and run the rule again."
        )


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with whole(path) as made:
        made.write_text(text, encoding="utf-8")


def write_json(path: Path, tag: str, body: Mapping[str, Any]) -> None:
    """Writes `body` with its schema tag and checksum as indented JSON, keys in the order given, floats exact."""
    content = {"schema": tag, **body}
    write_text(path, json.dumps({**content, CHECKSUM: checksum(content)}, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, tags: Sequence[str], *, sealed: bool = False) -> tuple[str, dict[str, Any]]:
    """Reads a JSON artifact.

    Args:
        path: The file.
        tags: The schema tags that the caller understands, the newest first.
        sealed: Refuse a file without a checksum too.

    Returns:
        The tag that was found, and the content without tag and checksum.

    Raises:
        ArtifactError: The file is missing, damaged or of another schema.
    """
    body = _guarded(path, lambda: json.loads(Path(path).read_text()))
    found = body.get("schema") if isinstance(body, dict) else None
    _check_tag(path, found, tags)
    _compare(path, body.pop(CHECKSUM, None), checksum(body), sealed)
    return body.pop("schema"), body


def _check_tag(path: Path, found: Any, tags: Sequence[str]) -> None:
    if found not in tags:
        raise ArtifactError(f"{path} has schema {found!r}, expected {tags[0]!r}. Delete it and run the rule again.")


def write_tensors(path: Path, tag: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes numpy arrays as safetensors; `meta` is kept as JSON in the header beside the schema tag."""
    from safetensors.numpy import save_file

    header = {"schema": tag, "meta": json.dumps(meta, sort_keys=True)}
    with whole(path) as made:
        save_file(dict(tensors), made, {**header, CHECKSUM: checksum(header, tensors)})
        _sort_metadata(made)


def _sort_metadata(path: Path) -> None:
    """Sorts a safetensors header's metadata by key, in place, since safetensors writes it in a random order."""
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        stream.seek(8)
        stream.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def read_tensors(path: Path, tag: str, *, sealed: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads (arrays, meta) of a safetensors artifact; ArtifactError as read_json raises it."""
    from safetensors import safe_open

    def load() -> tuple[dict[str, Any], dict[str, str]]:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}

    tensors, header = _guarded(path, load)
    _check_tag(path, header.get("schema"), [tag])
    _compare(path, header.pop(CHECKSUM, None), checksum(header, tensors), sealed)
    return tensors, json.loads(header["meta"])


def read_header(path: Path, tag: str) -> tuple[dict[str, Any], str | None]:
    """Reads the metadata of a safetensors artifact and the checksum in it, unchecked; ArtifactError as read_json."""
    from safetensors import safe_open

    def load() -> dict[str, str]:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}

    header = _guarded(path, load)
    _check_tag(path, header.get("schema"), [tag])
    return dict(json.loads(header["meta"])), header.get(CHECKSUM)


def write_table(path: Path, rows: list[Mapping[str, Any]], columns: list[str]) -> None:
    """Writes rows as parquet with exactly these columns."""
    import pandas as pd

    with whole(path) as made:
        pd.DataFrame(rows, columns=columns).to_parquet(made, index=False, write_page_checksum=True)


def read_table(path: Path) -> Any:
    """Reads a parquet table as a DataFrame; ArtifactError if it is missing or damaged."""
    import pandas as pd

    return _guarded(path, lambda: pd.read_parquet(path, page_checksum_verification=True))


def sealed_line(body: Mapping[str, Any]) -> str:
    """Returns one line of an append-only file: JSON behind its checksum."""
    text = json.dumps(body)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def sealed_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of an append-only file up to the first damaged one; none where there is no file."""
    lines = []
    for raw in path.read_bytes().splitlines() if path.exists() else []:
        crc, _, text = raw.partition(b" ")
        if crc != f"{zlib.crc32(text):08x}".encode():
            break
        lines.append(json.loads(text))
    return lines


def _guarded(path: Path, load: Callable[[], T]) -> T:
    """Runs a reader and turns whatever a damaged file makes it raise into one ArtifactError."""
    try:
        return load()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Run the rule that makes it again.") from error
    except Exception as error:
        if is_out_of_memory(error):  # the file may be sound
            raise
        raise ArtifactError(f"{path} cannot be read: {reason_of(error)}. Delete it and run the rule again.") from error
