"""Finds text that methods are fitted to and cells are scored on: documents, and runs of 13 words, in both. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ffp.assets.rows import READERS
from ffp.assets.splits import normalised, shingles
from ffp.config import Experiment, TasksConfig
from ffp.core.errors import ArtifactError
from ffp.store.documents import json_rows
from ffp.store.layout import SPLITS, AssetFiles, Layout
from ffp.store.schemas import DatasetsFile


def leaks(experiment: Experiment) -> Iterator[str]:
    """Yields a line for each pair of texts, or text and task, that share a document or a run of 13 words.

    Compared are the four splits of the text that methods are fitted to, and its calibration, search and selection with
    every other test text and every task.

    Raises:
        ArtifactError: A text or a task is missing or damaged.
    """
    grid, layout = experiment.grid, Layout.from_grid(experiment.grid)
    files = layout.text(grid.calibration_text)
    runs = {name: runs_of(files, name) for name in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        if shared := len(runs[one] & runs[other]):
            what = f"texts {one} and {other} share {shared} documents or runs of 13 words"
            yield f"{files.folder}: {what}. Fetch again."
    seen = set().union(*(runs[name] for name in SPLITS if name != "test"))
    for name in (name for name in grid.test_texts if name != grid.calibration_text):
        path = layout.text(name).documents("test")
        rows = [[str(row["text"])] for row in documents(path)]
        yield from _leaked(path, rows, seen, "leave the text out of texts.test")
    if experiment.tasks:
        yield from task_leaks(experiment.tasks, layout.tasks(str(experiment.tasks_name)), seen)


def task_leaks(tasks: TasksConfig, files: AssetFiles, seen: set[bytes]) -> Iterator[str]:
    """Yields the files of scored documents that share a run of words with texts.

    Args:
        tasks: The set.
        files: Its folder.
        seen: Runs of 13 words of the texts that methods are fitted to.
    """
    for path in _scored_files(tasks, files):
        yield from _leaked(path, [list(_long_strings(row)) for row in documents(path)], seen, "leave the task out")


def _scored_files(tasks: TasksConfig, files: AssetFiles) -> list[Path]:
    """The files that hold the scored documents of a set of tasks: made from sources, or data sets of the hub."""
    paths = [files.documents(name) for name, task in tasks.tasks.items() if task.has_files]
    if len(paths) < len(tasks.tasks):
        kept = [one for entries in DatasetsFile.read(files.datasets).tasks.values() for one in entries]
        paths += [files.folder / one.splits[split] for one in kept for split in one.scored]
    return paths


def runs_of(files: AssetFiles, split: str) -> set[bytes]:
    """Returns hashes of the runs of 13 words in a split of a text, and of its documents as wholes."""
    texts = [normalised(str(row["text"])) for row in documents(files.documents(split))]
    return {run for text in texts for run in shingles(text)} | {text.encode() for text in texts}


def documents(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a jsonl or Arrow file; ArtifactError if it is missing or damaged."""
    try:
        if path.suffix == ".arrow":
            return [dict(row) for row in READERS["arrow"](path)]
        return json_rows(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Fetch it again.") from error


def _leaked(path: Path, rows: list[list[str]], seen: set[bytes], remedy: str) -> Iterator[str]:
    """A line if documents, each given by its strings, share a run of 13 words with what methods are fitted to."""
    leaked = [n for n, texts in enumerate(rows, 1) if any(run in seen for text in texts for run in shingles(text))]
    if leaked:
        yield (
            f"{path}: {len(leaked)} documents, the first in line {leaked[0]}, share a run of 13 words with a text that "
            f"methods are fitted to. Take another corpus, or {remedy}."
        )


def _long_strings(value: Any) -> Iterator[str]:
    """Yields every string of nested plain data that has at least 13 words."""
    if isinstance(value, str):
        if len(value.split()) >= 13:
            yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _long_strings(part)
