"""Takes cells that differ only by their seed together: means, spreads, and the best method of each block."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffp.report.collect import Record

TIE_STDERRS = 2.0
Block = tuple[str, str, str]
_IDENTITY = ("model", "granularity", "sparsity", "method", "seed", "status", "reason")


@dataclass(frozen=True)
class Group:
    """The cells of one method at one model, granularity and sparsity: a row of a comparison.

    Attributes:
        records: One cell per seed.
        row: The mean of each figure over the finished seeds. With two or more of them, the sample standard deviation
            stands beside it as "<figure>_sd". Standard errors of single cells are averaged.
    """

    records: tuple[Record, ...]
    row: Mapping[str, Any]

    @property
    def done(self) -> tuple[Record, ...]:
        """The finished cells."""
        return tuple(record for record in self.records if record.done)

    @property
    def method(self) -> str:
        """The method's name in the grid."""
        return self.records[0].cell.method

    @property
    def block(self) -> Block:
        """Model, granularity and sparsity: groups of the same block may be compared."""
        return self.records[0].block

    @property
    def path(self) -> str:
        """The path of the cells without the seed."""
        return self.records[0].cell.path.rpartition("/")[0]

    def loss_by_window(self) -> list[Sequence[float]]:
        """Returns the losses on the windows of the test text, one sequence per finished cell; empty if unknown."""
        return [record.scores.ppl.loss_by_window for record in self.done if record.scores]


def group(records: Iterable[Record]) -> list[Group]:
    """Groups records by everything but the seed, in the order of their first cell."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record.cell.path.rpartition("/")[0]].append(record)
    return [Group(tuple(members), _row(members)) for members in found.values()]


def _row(records: list[Record]) -> dict[str, Any]:
    done = [record for record in records if record.done]
    row: dict[str, Any] = {key: records[0].row[key] for key in ("model", "granularity", "sparsity", "method")}
    row["seeds"] = len(done)
    row["status"], row["reason"] = _state(records)
    for key in dict.fromkeys(key for record in done for key in record.row if key not in _IDENTITY):
        values: list[Any] = [record.row.get(key) for record in done]
        if all(isinstance(value, int | float) for value in values):
            row[key] = statistics.fmean(values) if len(set(values)) > 1 else values[0]
            if len(values) > 1 and not key.endswith("_stderr"):
                row[f"{key}_sd"] = statistics.stdev(values)
    return row


def _state(records: list[Record]) -> tuple[str, str | None]:
    """The status that all cells share, or how many have which; with the first reason given."""
    states = Counter(record.row["status"] for record in records)
    reason = next((record.row["reason"] for record in records if record.row.get("reason")), None)
    if len(states) == 1:
        return next(iter(states)), reason
    return ", ".join(f"{count} {status}" for status, count in states.items()), reason


def by_block(groups: Iterable[Group]) -> dict[Block, list[Group]]:
    """Returns the groups of each block: same model, granularity and sparsity."""
    blocks: dict[Block, list[Group]] = defaultdict(list)
    for member in groups:
        blocks[member.block].append(member)
    return dict(blocks)


def best_and_ties(groups: Iterable[Group], key: str) -> dict[str, str]:
    """Finds the best group of each block and those that are tied with it.

    A group is tied if it differs from the best by at most TIE_STDERRS standard errors of the difference.

    Args:
        groups: Groups of any blocks; unfinished ones are left out.
        key: The figure to compare: "ppl" (lower is better) or an accuracy (higher is better).

    Returns:
        "best" or "tie" by the group's path; no entry for other groups and for blocks with a single finished group.
    """
    marks = {}
    for block in by_block(g for g in groups if g.done and g.row.get(key) is not None).values():
        if len(block) > 1:
            best = (min if key == "ppl" else max)(block, key=lambda g: float(g.row[key]))
            for member in block:
                if member is best:
                    marks[member.path] = "best"
                elif abs(member.row[key] - best.row[key]) <= TIE_STDERRS * difference_stderr(member, best, key):
                    marks[member.path] = "tie"
    return marks


def difference_stderr(one: Group, other: Group, key: str) -> float:
    """Returns the standard error of the difference between the means of two groups.

    It counts the sample of the test and the seeds. Perplexities of the same windows are compared window by window,
    which is far sharper than two separate errors; other errors add in quadrature. A group with one seed adds nothing
    for seeds, since its spread is unknown.

    Args:
        one: A group.
        other: Another group.
        key: The figure, e.g. "ppl" or "mean_acc".

    Returns:
        The error, infinite if it is unknown (a single window or document): such a difference proves nothing.
    """
    seeds = [float(g.row[f"{key}_sd"]) / math.sqrt(g.row["seeds"]) for g in (one, other) if f"{key}_sd" in g.row]
    terms = [_terms(member) for member in (one, other)] if key == "ppl" else [[], []]
    if len(terms[0]) == len(terms[1]) and len(terms[0]) > 1:
        paired = [a - b for a, b in zip(*terms, strict=True)]
        return math.hypot(statistics.stdev(paired) / math.sqrt(len(paired)), *seeds)
    errors = [member.row.get(f"{key}_stderr") for member in (one, other)]
    return math.hypot(*(math.inf if error is None else error for error in errors), *seeds)


def _terms(member: Group) -> list[float]:
    """The delta method: d(mean PPL) is the mean over seeds of PPL dL, window by window; empty if unknown."""
    losses = member.loss_by_window()
    if not losses or len({len(values) for values in losses}) > 1:
        return []
    values = [[record.row["ppl"] * x for x in row] for record, row in zip(member.done, losses, strict=True)]
    return [statistics.fmean(window) for window in zip(*values, strict=True)]
