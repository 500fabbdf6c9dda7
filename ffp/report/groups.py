"""Cells that differ only by their seed, taken together: means, spreads, and which group is the best of its block."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ffp.report.collect import Record

TIE_STDERRS = 2.0
Block = tuple[str, str, str]
_IDENTITY = ("model", "granularity", "sparsity", "method", "seed", "status", "reason")


@dataclass(frozen=True)
class Group:
    """One row of a comparison. row: each figure's mean over the finished seeds and, from two of them on, its sample
    standard deviation as "<figure>_sd"; standard errors of single cells are averaged. status: that of all cells.
    """

    records: tuple[Record, ...]
    row: Mapping[str, Any]

    @property
    def done(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.done)

    @property
    def method(self) -> str:
        return self.records[0].cell.method

    @property
    def block(self) -> Block:
        return self.records[0].block

    @property
    def path(self) -> str:
        """The cells' path without the seed."""
        return self.records[0].cell.path.rpartition("/")[0]

    def loss_by_window(self) -> list[list[float]]:
        """Per finished cell, the losses of the test windows; empty lists where they are unknown."""
        return [((r.scores or {}).get("ppl") or {}).get("loss_by_window") or [] for r in self.done]


def group(records: Iterable[Record]) -> list[Group]:
    """Records by everything but the seed, in the order of their first cell."""
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
        values = [record.row[key] for record in done]
        if all(isinstance(value, int | float) for value in values):
            row[key] = statistics.fmean(values) if len(set(values)) > 1 else values[0]
            if len(values) > 1 and not key.endswith("_stderr"):
                row[f"{key}_sd"] = statistics.stdev(values)
    return row


def _state(records: list[Record]) -> tuple[str, str | None]:
    """The status that all cells share; otherwise counts, with the first reason given."""
    states = Counter(record.row["status"] for record in records)
    reasons = [record.row.get("reason") for record in records if record.row.get("reason")]
    if len(states) == 1:
        return next(iter(states)), reasons[0] if reasons else None
    return ", ".join(f"{count} {status}" for status, count in states.items()), reasons[0] if reasons else None


def by_block(groups: Iterable[Group]) -> dict[Block, list[Group]]:
    """Groups that may be compared with each other: same model, granularity and target."""
    blocks: dict[Block, list[Group]] = defaultdict(list)
    for member in groups:
        blocks[member.block].append(member)
    return dict(blocks)


def best_and_ties(groups: Iterable[Group], key: str) -> dict[str, str]:
    """Mark by group path: "best" of each block of comparable rows, and "tie" where the difference is within the error.

    key: "ppl" (lower is better) or "mean_acc" (higher). Within the error: at most TIE_STDERRS standard errors of the
    difference. Blocks with one finished row get no mark.
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
    """Standard error of the difference of two means: what the sample of the test leaves open, and the seeds.

    Perplexities of the same windows are compared window by window, which is far sharper than two separate errors;
    everything else adds errors in quadrature. Infinite where an error is unknown (a single window or document): such a
    difference proves nothing. A group with one seed adds nothing for seeds, since its spread is unknown.
    """
    seeds = [float(g.row[f"{key}_sd"]) / math.sqrt(g.row["seeds"]) for g in (one, other) if f"{key}_sd" in g.row]
    terms = [_terms(member) for member in (one, other)] if key == "ppl" else [[], []]
    if len(terms[0]) == len(terms[1]) and len(terms[0]) > 1:
        return math.hypot(_mean_stderr([a - b for a, b in zip(*terms, strict=True)]), *seeds)
    errors = [member.row.get(f"{key}_stderr") for member in (one, other)]
    return math.hypot(*(math.inf if error is None else error for error in errors), *seeds)


def _terms(member: Group) -> list[float]:
    """The delta method: d(mean PPL) is the mean over seeds of PPL dL, window by window; empty where unknown."""
    losses = member.loss_by_window()
    if not losses or len({len(values) for values in losses}) > 1:
        return []
    values = [[record.row["ppl"] * x for x in row] for record, row in zip(member.done, losses, strict=True)]
    return [statistics.fmean(window) for window in zip(*values, strict=True)]


def _mean_stderr(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
