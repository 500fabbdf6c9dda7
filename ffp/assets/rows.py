"""Reads files of any format into rows: mappings of column to value."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ffp.assets.fetch import fetch_files, hub, warn_unpinned
from ffp.config import HubSource
from ffp.config.assets import AnySource
from ffp.core.errors import AssetError, reason_of
from ffp.store.documents import parse_line

LOG = logging.getLogger("ffp")
Row = Mapping[str, Any]


def rows_of(source: AnySource, reader: str, *, scratch: Path, downloads: Path) -> Iterator[Row]:
    """Yields the rows of a source, file by file; a hub source without files is loaded by config and split.

    Args:
        source: Where the files come from.
        reader: A key of READERS.
        scratch: Folder for extracted files.
        downloads: Folder that all assets share.
    """
    if isinstance(source, HubSource) and not source.files:
        yield from _dataset(source, downloads)
        return
    paths = fetch_files(source, scratch, downloads)
    LOG.info("reading %s", "/".join(paths[0].parts[-3:]) + (f" and {len(paths) - 1} more" if paths[1:] else ""))
    for path in paths:
        try:
            yield from READERS[reader](path)
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise AssetError(
                f"{path} cannot be read as {reader}: {reason_of(error)}. Correct reader or source."
            ) from error


def _dataset(source: HubSource, downloads: Path) -> Iterator[Row]:
    import datasets

    if source.split is None:
        raise AssetError(f"hub source {source.repo} names neither files nor a split. Give source.split, e.g. train.")
    warn_unpinned(source)
    LOG.info("loading %s %s, split %s", source.repo, source.config or "", source.split)
    where = {"split": source.split, "revision": source.revision, "cache_dir": str(downloads / "datasets")}
    yield from hub(source.repo, source.revision, lambda: datasets.load_dataset(source.repo, source.config, **where))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, gzipped or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        yield from stream


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, gzipped or not, with the numbers of their lines."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                row = parse_line(line, number)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no JSON object")
                yield number, row


def _jsonl(path: Path) -> Iterator[Row]:
    for _, row in _numbered(path):
        yield row


def _txt(path: Path) -> Iterator[Row]:
    """One row for the whole file; its name is a column, which can serve as `group`."""
    yield {"text": "".join(_lines(path)), "file": path.name}


def _olmo_requests(path: Path) -> Iterator[Row]:
    """The documents behind the requests of an oe-eval dump, each once (there is one request per choice)."""
    seen = set()
    for number, row in _numbered(path):
        if not isinstance(row.get("doc"), dict):
            raise ValueError(f"the request in line {number} has no 'doc'")
        key = json.dumps(row["doc"], sort_keys=True)
        if key not in seen:
            seen.add(key)
            yield row["doc"]


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _arrow(path: Path) -> Iterator[Row]:
    """An Arrow IPC stream, as the datasets library caches one."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        for batch in pyarrow.ipc.open_stream(source):
            yield from batch.to_pylist()


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "txt": _txt,
    "parquet": _parquet,
    "arrow": _arrow,
    "olmo-requests": _olmo_requests,
}
