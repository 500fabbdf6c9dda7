"""Checks of tasks for `ffp verify`: their figures against each other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

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
