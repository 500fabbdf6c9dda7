"""Texts that a user hands over, as files or as strings, split by document into four disjoint texts."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ffp.assets.fetch import local_files
from ffp.assets.rows import rows_of
from ffp.assets.splits import SHINGLE, Document, families, normalised, unit_hash
from ffp.config import LocalSource
from ffp.core.errors import AssetError
from ffp.core.suggest import did_you_mean
from ffp.store.documents import SURROGATE

LOG = logging.getLogger("ffp")
SHARES: Mapping[str, float] = {"calibration": 0.25, "search": 0.25, "selection": 0.15, "test": 0.35}
READERS = {".txt": "txt", ".md": "txt", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
SECTION = 2000  # characters of a .txt file that make a document, at least


def read_text_files(paths: Iterable[Path], column: str = "text") -> list[str]:
    """Returns the documents of .txt, .jsonl (also .gz) and .parquet files.

    A row is a document. A .txt file has none, so that its paragraphs are joined into documents of at least 2,000
    characters. Documents without text are left out.

    Args:
        paths: Files, or folders of such files.
        column: Field of a row that holds the text.

    Raises:
        AssetError: A file is missing, of another format, damaged, or has no such column.
    """
    found: list[str] = []
    for path in paths:
        for file in local_files(LocalSource(kind="local", path=str(path))):
            found += (text for text in _documents(file, column) if text.strip())
    LOG.info("text: %s", _counted(len(found)))
    return found


def _counted(documents: int) -> str:
    return f"{documents} document{'' if documents == 1 else 's'}"


def _documents(file: Path, column: str) -> Iterator[str]:
    reader = READERS.get(Path(file.name.removesuffix(".gz")).suffix)
    if reader is None:
        raise AssetError(
            f"{file} is no text: its name ends in none of {', '.join(READERS)}. Convert it to one of them."
        )
    source = LocalSource(kind="local", path=str(file))
    for row in rows_of(source, reader, scratch=file.parent, downloads=file.parent):
        if reader == "txt":
            yield from sections(str(row["text"]))
        elif column in row:
            yield text_of(row[column], f"column {column!r} of {file}")
        else:
            raise AssetError(f"{file} has no column {column!r} (--text-column): {did_you_mean(column, map(str, row))}")


def text_of(value: object, where: str) -> str:
    """Returns the text of a row, empty where it has none; where: what holds it, for the error.

    Raises:
        AssetError: It is no text: a list of turns, say, whose Python form is no document.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AssetError(f"{where} has a {type(value).__name__}, {str(value)[:40]!r}, and no text. Name another one.")
    return value


def check_documents(texts: Sequence[object], where: str) -> None:
    """Raises AssetError for a document that is no string, or that has half of a surrogate pair; where: what holds it.

    A tokenizer, a hash and a file take characters alone.
    """
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise AssetError(f"a document of {where} is a {type(text).__name__}, {str(text)[:40]!r}. Give strings.")
        if half := SURROGATE.search(text):
            raise AssetError(
                f"document {number} of {where} has {half[0]!a} at character {half.start() + 1}, half of a "
                "surrogate pair, which is no character. Correct it, or leave it out."
            )


def sections(text: str) -> Iterator[str]:
    """Yields consecutive paragraphs of a text, joined until they have at least 2,000 characters."""
    held: list[str] = []
    for paragraph in re.split(r"\n[^\S\n]*\n", text):
        held.append(paragraph)
        if sum(map(len, held)) >= SECTION:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def split_documents(texts: Sequence[str]) -> dict[str, list[str]]:
    """Splits documents into "calibration", "search", "selection" and "test", by their length and a hash of their words.

    Documents that share 13 words in a row stay together; copies are kept once. The same documents give the same split,
    in whatever order they come.

    Raises:
        AssetError: A document is no string or has no UTF-8, or fewer than four of them share nothing.
    """
    check_documents(texts, "the text")
    documents = []
    for position, text in enumerate(texts):
        if text.strip():
            name = hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
            documents.append(Document(name, "", name, text, position=position))
    found = [sorted(family.members, key=lambda d: unit_hash(d.id)) for family in families(documents)]
    found.sort(key=lambda members: unit_hash(members[0].id))
    if len(found) < len(SHARES):
        raise AssetError(
            f"the text has {_counted(len(found))} that share{'s' if len(found) == 1 else ''} no run of {SHINGLE} words "
            f"with another; it is split into {len(SHARES)} parts. Give more documents: a row of .jsonl or .parquet "
            f"is one; a .txt file is cut at blank lines, into documents of at least {SECTION:,} characters."
        )
    left = sum(len(member.text) for members in found for member in members)
    parts: dict[str, list[str]] = {}
    for number, (name, share) in enumerate(SHARES.items()):
        later = len(SHARES) - 1 - number
        wanted, size, count = left * share / sum(list(SHARES.values())[number:]), 0, 0
        while count < len(found) - later and (count == 0 or size < wanted or later == 0):
            size += sum(len(member.text) for member in found[count])
            count += 1
        parts[name] = [member.text for members in found[:count] for member in members]
        found, left = found[count:], left - size
    return parts
