"""Checks of tasks for `ffp verify`: their figures against each other, and their documents against the texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ffp.assets.rows import READERS
from ffp.assets.splits import shingles
from ffp.config import TasksConfig
from ffp.core.errors import ArtifactError
from ffp.store.layout import AssetFiles
from ffp.store.schemas import DatasetsFile
from ffp.store.task_scores import TaskScores

Faults = Iterator[str]
TOLERANCE = 1e-9  # relative; figures are stored exactly, only sums may be ordered differently


def task_faults(where: str, result: TaskScores) -> Faults:
    """Yields what does not agree in a task's scores: shares of n documents, and what a group makes of its tasks."""
    n = result.n
    if not 0 < n <= result.n_total:
        yield f"{where}.n is {n}, outside 1..{result.n_total}."
    if result.subtasks:
        yield from _group_faults(where, result)
        return
    for metric, figure in result.metrics.items():
        if figure.counts:
            share = figure.value
            yield from equal(f"{where}.{metric}", share, round(share * n) / n)
            stderr = math.sqrt(max(0.0, share * (1 - share)) / (n - 1)) if n > 1 else None
            yield from equal(f"{where}.{metric} stderr", figure.stderr, stderr)


def _group_faults(where: str, result: TaskScores) -> Faults:
    for name, part in result.subtasks.items():
        yield from task_faults(f"{where}.{name}", part)
    tasks = list(_leaves(result))
    yield from equal(f"{where}.n", result.n, sum(task.n for task in tasks))
    for metric, figure in result.metrics.items():
        known = [(task.metrics[metric].value, task.n) for task in tasks if metric in task.metrics]
        if not known:
            yield f"{where}.{metric} is of no task in it. Evaluate again."
            continue
        means = (sum(v * n for v, n in known) / sum(n for _, n in known), sum(v for v, _ in known) / len(known))
        if not any(math.isclose(figure.value, mean, rel_tol=TOLERANCE, abs_tol=1e-12) for mean in means):
            yield from equal(f"{where}.{metric}", figure.value, means[0])


def _leaves(result: TaskScores) -> Iterator[TaskScores]:
    for part in result.subtasks.values():
        yield from _leaves(part) if part.subtasks else [part]


def task_leaks(tasks: TasksConfig, files: AssetFiles, seen: set[bytes]) -> Faults:
    """Yields the files of scored documents that share a run of words with texts.

    Args:
        tasks: The set.
        files: Its folder.
        seen: Runs of 13 words of the texts that methods are fitted to.
    """
    paths = [files.documents(name) for name, task in tasks.tasks.items() if task.has_files]
    if len(paths) < len(tasks.tasks):
        kept = [one for entries in DatasetsFile.read(files.datasets).tasks.values() for one in entries]
        paths += [files.folder / one.splits[split] for one in kept for split in one.scored]
    for path in paths:
        leaked = [
            number
            for number, row in enumerate(documents(path), 1)
            if any(run in seen for text in _long_strings(row) for run in shingles(text))
        ]
        if leaked:
            yield (
                f"{path}: {len(leaked)} documents, the first in line {leaked[0]}, share a run of 13 words with a "
                "text that methods are fitted to. Take another corpus, or leave the task out."
            )


def documents(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a jsonl or Arrow file; ArtifactError if it is missing or damaged."""
    try:
        if path.suffix == ".arrow":
            return [dict(row) for row in READERS["arrow"](path)]
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Fetch it again.") from error


def _long_strings(value: Any) -> Iterator[str]:
    """Yields every string of nested plain data that has at least 13 words."""
    if isinstance(value, str):
        if len(value.split()) >= 13:
            yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _long_strings(part)


def equal(what: str, found: Any, expected: Any) -> Faults:
    """Yields a fault unless both are equal, floats up to TOLERANCE."""
    both = found, expected
    if all(isinstance(value, int | float) for value in both):
        same = math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=1e-12)
    else:
        same = found == expected
    if not same:
        yield f"{what} is {_short(found)}, expected {_short(expected)}."


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."
