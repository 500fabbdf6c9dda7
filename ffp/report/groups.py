"""Takes cells that differ only by their seed together: means, spreads, and the best method of each block."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ffp.report.collect import Block, Record

TIE_STDERRS = 2.0
_IDENTITY = ("model", "granularity", "sparsity", "method", "seed", "status", "reason")


@dataclass(frozen=True)
class Group:
    """The cells of one method at one model, granularity and sparsity, one per seed: a row of a comparison.

    `row` has the mean of each figure over the finished seeds, of standard errors too. With two or more seeds, the
    sample standard deviation stands beside it as "<figure>_sd".
    """

    path: str  # of the cells, without the seed
    method: str  # its name in the grid
    block: Block
    records: list[Record]
    done: list[Record]  # the finished ones
    row: Mapping[str, Any]

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed: the dense model as it is, or trained as pruned ones are."""
        return self.records[0].cell.is_dense


def group(records: Iterable[Record]) -> list[Group]:
    """Groups records by everything but the seed, in the order of their first cell."""
    found = defaultdict[str, list[Record]](list)
    for record in records:
        found[record.cell.path.rpartition("/")[0]].append(record)
    return [_group(path, members) for path, members in found.items()]


def _group(path: str, records: list[Record]) -> Group:
    done = [record for record in records if record.done]
    row: dict[str, Any] = {key: records[0].row[key] for key in ("model", "granularity", "sparsity", "method")}
    states = Counter(record.row["status"] for record in records)
    mixed = ", ".join(f"{count} {status}" for status, count in states.items())
    row |= {"seeds": len(done), "status": mixed if len(states) > 1 else records[0].row["status"]}
    row["reason"] = next((record.row["reason"] for record in records if record.row.get("reason")), None)
    for key in dict.fromkeys(key for record in done for key in record.row if key not in _IDENTITY):
        values: list[Any] = [record.row.get(key) for record in done]
        if all(isinstance(value, int | float) for value in values):
            row[key] = statistics.fmean(values) if len(set(values)) > 1 else values[0]
            if len(values) > 1 and not key.endswith("_stderr"):
                row[f"{key}_sd"] = statistics.stdev(values)
    return Group(path, records[0].cell.method, records[0].block, records, done, row)


def by_block(groups: Iterable[Group]) -> dict[Block, list[Group]]:
    """Returns the groups of each block."""
    blocks = defaultdict[Block, list[Group]](list)
    for member in groups:
        blocks[member.block].append(member)
    return blocks


def best_and_ties(groups: Iterable[Group], key: str, *, low: bool | None = None) -> dict[str, str]:
    """Returns "best" or "tie" by path for the groups that are the best of their block or tied with it.

    See tied. Low is better for perplexities, high for accuracies, unless `low` says it. Blocks with a single finished
    group have no best one.
    """
    marks, low = {}, key.startswith("ppl") if low is None else low
    for block in by_block(g for g in groups if g.done and g.row.get(key) is not None).values():
        if len(block) > 1:
            best = (min if low else max)(block, key=lambda g: float(g.row[key]))
            for member in block:
                if member is best:
                    marks[member.path] = "best"
                elif tied(member, best, key):
                    marks[member.path] = "tie"
    return marks


@dataclass(frozen=True)
class Winner:
    """The best method of a block, and at what cost.

    Attributes:
        block: Model, granularity and sparsity.
        best: The method of the lowest perplexity.
        ties: Methods tied with it, the lowest perplexity first.
        cheaper: The one of the ties that forwarded the fewest search tokens, if those are fewer than the best one's.
    """

    block: Block
    best: Group
    ties: list[Group]
    cheaper: Group | None


def winners(groups: list[Group]) -> list[Winner]:
    """Returns the outcome of each block in which two methods or more are finished; the dense model is none of them."""
    done = [group for group in groups if group.done and not group.is_dense and group.row.get("ppl") is not None]
    marks, found = best_and_ties(done, "ppl"), []
    for block, members in by_block(done).items():
        level = sorted((group for group in members if group.path in marks), key=lambda group: float(group.row["ppl"]))
        if level:
            cheapest = min(level, key=_tokens)
            cheaper = cheapest if _tokens(cheapest) < _tokens(level[0]) else None
            found.append(Winner(block, level[0], level[1:], cheaper))
    return found


def _tokens(group: Group) -> float:
    return float(group.row.get("search_tokens") or 0)


def tied(one: Group, other: Group, key: str) -> bool:
    """Returns whether a figure of two groups differs by at most TIE_STDERRS standard errors of the difference.

    Where this error is unknown, only equal figures are tied.
    """
    gap, error = abs(one.row[key] - other.row[key]), difference_stderr(one, other, key)
    return bool(gap == 0 or (error is not None and gap <= TIE_STDERRS * error))


def difference_stderr(one: Group, other: Group, key: str) -> float | None:
    """Returns the standard error of the difference between the means of a figure in two groups; None if it is unknown.

    It counts the sample of the test and the seeds. Perplexities of the same windows (text, model's files, context and
    BOS) are compared window by window, which is far sharper than two separate errors; other errors add in quadrature.
    A group with one seed adds nothing for seeds, since its spread is unknown. A single window or document has no error,
    and neither have some metrics of lm-eval.

    Args:
        one: A group.
        other: Another one.
        key: The figure.
    """
    seeds = [float(g.row[f"{key}_sd"]) / math.sqrt(g.row["seeds"]) for g in (one, other) if f"{key}_sd" in g.row]
    same = len({record.windows_of(key) for record in (*one.done, *other.done)}) == 1
    terms = [_terms(member, key) if same else [] for member in (one, other)]
    if len(terms[0]) == len(terms[1]) > 1:
        gaps = [a - b for a, b in zip(*terms, strict=True)]
        return math.hypot(statistics.stdev(gaps) / math.sqrt(len(gaps)), *seeds)
    errors = [member.row[f"{key}_stderr"] for member in (one, other) if member.row.get(f"{key}_stderr") is not None]
    return math.hypot(*errors, *seeds) if len(errors) == 2 else None


def _terms(member: Group, key: str) -> list[float]:
    """The delta method: d(mean PPL) is the mean over seeds of PPL dL, window by window; empty if unknown.

    It is empty for figures that are no perplexity, too.
    """
    found = [record.perplexities.get(key) for record in member.done]
    losses = [(ppl.value, ppl.loss_by_window) for ppl in found if ppl]
    if len({len(windows) for _, windows in losses}) != 1:
        return []
    values = [[ppl * loss for loss in windows] for ppl, windows in losses]
    return [statistics.fmean(window) for window in zip(*values, strict=True)]
