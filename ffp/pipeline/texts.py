"""The text that one model is pruned on: a name, files or strings become four texts, and those become windows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffp.allocators.base import Search
from ffp.api import Windows
from ffp.assets.documents import check_documents, read_text_files, split_documents
from ffp.assets.text import fetch_text
from ffp.config import TextConfig, read_part
from ffp.config.catalog import entries, find_entry
from ffp.config.pruning import PruneSettings
from ffp.core.errors import ConfigError
from ffp.core.plain import one_line
from ffp.core.suggest import did_you_mean
from ffp.measure.windows import later_windows, token_windows
from ffp.store.documents import read_documents
from ffp.store.layout import SPLITS, Layout

log = logging.getLogger("ffp")
DEFAULT_TEXT = "embedded"  # in wheels, so that no hub is needed
AnyText = str | Path | Sequence[str] | Sequence[Path] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class SplitText:
    """A text in four parts that share no document.

    Attributes:
        title: What it is called in tables.
        documents: Documents of "calibration", "search", "selection" and "test".
    """

    title: str
    documents: Mapping[str, Sequence[str]]


def open_text(text: AnyText | None, *, data: Path, column: str = "text") -> SplitText:
    """Returns a text, fetched and split.

    Args:
        text: The name of a text of the catalog, a file or files (.txt, .jsonl, .parquet), documents as strings, or
            lists of documents by part, already disjoint. None for the default text.
        data: Folder to fetch texts of the catalog into.
        column: Field of a row that holds the text, for files.

    Raises:
        ConfigError: There is no such name or file, files stand beside strings, or a part is no list.
        AssetError: It cannot be fetched or read, or a document is no string of characters.
    """
    if isinstance(text, Mapping):
        return SplitText("given text", _parts(text))
    if text is None or isinstance(text, str):
        entry = find_entry("texts", text or DEFAULT_TEXT)
        if entry is not None:
            return _fetched(entry, data)
        if not _is_file(str(text)):
            shown = repr(text) if len(str(text)) < 100 else f"{str(text)[:60]!r}..."
            raise ConfigError(
                f"text {shown} is no file, and no known text: {did_you_mean(str(text)[:100], entries('texts'))} "
                "Documents are given as a list of strings."
            )
        text = Path(str(text))
    if isinstance(text, Path):
        text = [text]
    if not isinstance(text, Iterable):
        raise ConfigError(f"text is a {type(text).__name__}. Give a list of strings, files, or the name of a text.")
    given: list[Any] = list(text)
    files = _files(given)
    title = one_line(" + ".join(file.name for file in files)) or "given text"
    return SplitText(title, split_documents(read_text_files(files, column) if files else given))


def _files(given: list[Any]) -> list[Path]:
    """The files, where files are given and no strings; ConfigError where what is given would be lost or misread."""
    files = [each for each in given if isinstance(each, Path)]
    others = [each for each in given if not isinstance(each, Path)]
    if files and others:
        raise ConfigError(
            f"text has the file {files[0]} and a {type(others[0]).__name__}, {str(others[0])[:40]!r}. Give files alone "
            "(pathlib.Path), or strings alone."
        )
    if others and all(isinstance(each, str) and _is_file(each) for each in others):
        raise ConfigError(
            f"text is a list of strings that name files, as {others[0]!r}: a string is a document. Give files as "
            "pathlib.Path."
        )
    return files


def _parts(text: Mapping[Any, Any]) -> dict[str, list[str]]:
    """The documents of each part that is given; an FfpError where one is no list of strings."""
    found = {}
    for name, documents in text.items():
        if name not in SPLITS:
            raise ConfigError(f"text has a part {name!r}: {did_you_mean(str(name), SPLITS)}")
        if isinstance(documents, str | Path) or not isinstance(documents, Iterable):
            raise ConfigError(
                f"part {name!r} of text is a {type(documents).__name__}, {str(documents)[:40]!r}. Give a list of "
                "strings, each a document."
            )
        found[name] = list(documents)
        check_documents(found[name], f"part {name!r} of the text")
    return found


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # no name of a file: too long, or with a zero byte
        return False


def _fetched(entry: Path, data: Path) -> SplitText:
    """A text of the catalog."""
    config, files = read_part(TextConfig, entry), Layout(data, data).text(entry.stem)
    if config.test_only:
        raise ConfigError(
            f"text {entry.stem} is a test text as a whole: nothing can be calibrated on it. Take another."
        )
    fetch_text(config, files.folder)
    return SplitText(config.title, {name: read_documents(files.documents(name)) for name in SPLITS})


def cut_windows(tokenizer: Any, text: SplitText, settings: PruneSettings) -> Windows:
    """Returns the windows that a method needs; a heuristic needs no search and no selection text.

    Raises:
        ConfigError: A text is shorter than one window, or the search text than an evaluation.
    """
    sizes = {"calibration": (settings.calibration.context, settings.calibration.windows)}
    if isinstance(settings.method, Search):
        search = settings.search
        sizes |= {"search": (search.context, search.windows), "selection": (search.context, search.selection_windows)}
    found = {name: _windows(tokenizer, text, name, *size, settings.bos) for name, size in sizes.items()}
    if "search" in found and len(found["search"]) < settings.search.windows_per_evaluation:
        raise ConfigError(
            f"the search text has {len(found['search'])} windows of {settings.search.context} tokens, fewer than the "
            f"{settings.search.windows_per_evaluation} of one evaluation. Give a longer text."
        )
    return Windows(**found)


def cut_test_windows(tokenizer: Any, text: SplitText, settings: PruneSettings) -> torch.Tensor:
    """Returns the windows of the test text."""
    asked = settings.evaluation
    return _windows(tokenizer, text, "test", asked.context, asked.windows, settings.bos)


def cut_recovery_windows(tokenizer: Any, text: SplitText, settings: PruneSettings) -> torch.Tensor | None:
    """Returns the windows that recovery trains on: of the calibration text, behind what calibration uses.

    None where nothing is trained.

    Raises:
        ConfigError: No document is left.
    """
    if not settings.recover.wanted:
        return None
    used = settings.calibration
    return later_windows(
        tokenizer, text.documents.get("calibration", ()), used_tokens=used.windows * used.context, context=used.context,
        windows=max(1, settings.recover.tokens // used.context), name=f"calibration text ({text.title})",
        bos=settings.bos,
    )  # fmt: skip


def _windows(tokenizer: Any, text: SplitText, name: str, context: int, count: int, bos: str) -> torch.Tensor:
    """At most `count` windows of a part of the text; says so where there are fewer."""
    documents, title = text.documents.get(name, ()), f"{name} text ({text.title})"
    if not documents:
        raise ConfigError(f"the {title} has no document. Give more documents, so that each part of the text gets some.")
    found = token_windows(tokenizer, documents, context=context, windows=count, name=title, at_most=True, bos=bos)
    if len(found) < count:
        log.warning(
            "the %s has %d windows of %d tokens, fewer than %d: all are used", title, len(found), context, count
        )
    return found
