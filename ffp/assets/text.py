"""Makes a text: reads corpora, drops copies, and splits by document into calibration, search, selection and test."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ffp.assets.build import build
from ffp.assets.documents import text_of
from ffp.assets.fetch import identity_of
from ffp.assets.rows import Row, rows_of
from ffp.assets.splits import Document, normalised, split, unit_hash
from ffp.config import CorpusConfig, TextConfig
from ffp.core.errors import AssetError
from ffp.core.suggest import did_you_mean
from ffp.store.layout import SPLITS, AssetFiles, downloads_of

LOG = logging.getLogger("ffp")
CONVERSION = "1"


def fetch_text(config: TextConfig, out: Path) -> None:
    """Makes `out` a folder with {calibration,search,selection,test}.jsonl, lines of {"id", "source", "text"}.

    A text that is all test has test.jsonl alone.

    "id" is the corpus and a hash of the document's words, "source" the corpus. See build() for what is kept and what is
    made again.

    Raises:
        AssetError: A source cannot be fetched, or a split would be empty.
    """
    downloads = downloads_of(out)

    def make(into: Path) -> None:
        scratch = into / ".source"
        documents: list[Document] = []
        for number, corpus in enumerate(config.sources):
            rows = rows_of(corpus.source, corpus.reader, scratch=scratch / corpus.name, downloads=downloads)
            documents += _documents(rows, corpus, number)
        shutil.rmtree(scratch, ignore_errors=True)
        texts = split(documents, config.shares or {"test": 1.0})
        for name in ("test",) if config.test_only else SPLITS:
            _write(AssetFiles(into).documents(name), texts[name], config.order)
        LOG.info("%d documents read, %d kept", len(documents), sum(map(len, texts.values())))

    sources = [corpus.source for corpus in config.sources]
    build(out, kind="text", source=identity_of(config, sources, CONVERSION), make=make)


def _documents(rows: Iterable[Row], corpus: CorpusConfig, number: int) -> list[Document]:
    """The documents of a corpus without blank ones; at most corpus.documents, those of the smallest hash."""

    def all_documents() -> Iterator[Document]:
        for position, (text, group) in enumerate(_texts(rows, corpus)):
            if text.strip():
                name = f"{corpus.name}-{hashlib.sha256(normalised(text).encode()).hexdigest()[:16]}"
                key = f"{corpus.name} {name if group is None else group}"
                yield Document(name, corpus.name, key, text, corpus.splits or SPLITS, number, position)

    limit = corpus.documents
    found = heapq.nsmallest(limit, all_documents(), key=lambda d: unit_hash(d.id)) if limit else list(all_documents())
    if not found:
        raise AssetError(f"corpus {corpus.name!r} has no document with text. Correct its source, reader or text field.")
    return found


def _texts(rows: Iterable[Row], corpus: CorpusConfig) -> Iterator[tuple[str, str | None]]:
    """(text, group) of each document of a corpus."""
    where = f"field {corpus.text!r} of corpus {corpus.name!r}"
    pairs = ((_cut(text_of(_field(row, corpus.text, corpus), where), corpus), row) for row in rows)
    if corpus.begins is None:
        for text, row in pairs:
            yield text, None if corpus.group is None else str(_field(row, corpus.group, corpus))
        return
    paragraphs = (part for text, _ in pairs for part in (_paragraphs(text) if corpus.reader == "txt" else [text]))
    for text in _joined(paragraphs, re.compile(corpus.begins)):
        yield text, None


def _field(row: Row, name: str, corpus: CorpusConfig) -> object:
    if name not in row:
        raise AssetError(f"a row of corpus {corpus.name!r} has no field {name!r}: {did_you_mean(name, map(str, row))}")
    return row[name]


def _cut(text: str, corpus: CorpusConfig) -> str:
    """The part of a text between the corpus's marks, or all of it."""
    if corpus.between is None:
        return text
    start, end = corpus.between
    first, last = text.find(start), text.rfind(end)
    if first < 0 or last < first + len(start):
        raise AssetError(
            f"a row of corpus {corpus.name!r} has nothing between {start!r} and {end!r}: {text[:50]!r}. Correct it."
        )
    return text[first + len(start) : last]


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n[^\S\n]*\n", text)


def _joined(rows: Iterable[str], begins: re.Pattern[str]) -> Iterator[str]:
    """Rows joined by blank lines into documents; each row that matches begins a new one.

    Joining the documents by blank lines again gives the rows joined by blank lines.
    """
    held: list[str] = []
    for row in rows:
        if begins.fullmatch(row.strip()) and any(part.strip() for part in held):
            yield "\n\n".join(held)
            held = []
        held.append(row)
    yield "\n\n".join(held)


def _write(path: Path, documents: list[Document], order: str) -> None:
    """One JSON line per document, by the hash of its id or by its place in the sources."""
    if not documents:
        raise AssetError(
            f"split {path.stem!r} got no document. Add documents, let more corpora go there (splits), raise its share, "
            "or cut the corpora into smaller documents (begins)."
        )
    by_hash = order == "hash"
    documents = sorted(documents, key=lambda d: (unit_hash(d.id), d.id) if by_hash else (d.corpus, d.position))
    with path.open("w", encoding="utf-8") as stream:
        for document in documents:
            line = {"id": document.id, "source": document.source, "text": document.text}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    words = sum(len(document.text.split()) for document in documents)
    LOG.info("%s: %d documents, %d words", path.stem, len(documents), words)
