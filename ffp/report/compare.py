"""Two result sets side by side: which cells changed, by how much against the noise, and what differs behind them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ffp.config import Cell
from ffp.core.errors import ConfigError
from ffp.report.collect import Record, mean_accuracy, read_cell
from ffp.report.groups import TIE_STDERRS, difference_stderr, group
from ffp.store.files import write_json

SCHEMA = "ffp/compare/1"
FIGURES = ("ppl", "mean_acc", "model_sparsity", "search_tokens", "search_evaluations")
RESULTS = ("masks", "updates", "allocation")  # digests of what a step made: they follow from the rest
# From the best verdict to the worst.
IDENTICAL, ROUNDING, NOISE, CHANGED, LOST, NEW = (
    "identical",
    "rounding",
    "within noise",
    "changed",
    "only in A",
    "only in B",
)


@dataclass(frozen=True)
class Difference:
    """One cell. figures: by name (A, B, standard error of the difference or None); allocation: whether it differs."""

    cell: str
    verdict: str
    figures: Mapping[str, tuple[float | None, float | None, float | None]]
    allocation: bool = False
    status: tuple[str, str] = ("done", "done")


@dataclass(frozen=True)
class Comparison:
    """provenance: by fact, how many cells went from one value to another, as {"A -> B": cells}."""

    cells: list[Difference]
    provenance: Mapping[str, Mapping[str, int]]

    @property
    def changed(self) -> bool:
        """Whether a reader would draw other conclusions: a cell changed beyond the noise, or was lost."""
        return any(difference.verdict in (CHANGED, LOST) for difference in self.cells)


def compare(before: Path, after: Path, *, tolerance: float = 1e-4) -> Comparison:
    """Compare the cells below two folders; ConfigError if one holds none.

    tolerance: relative difference of a figure that counts as rounding (another machine sums in another order).
    Within noise: at most TIE_STDERRS standard errors of the difference, which for perplexities of the same windows is
    that of the paired losses. Figures without an error (tokens, sparsity) have no noise.
    """
    ours, theirs = read(before), read(after)
    cells, facts = [], defaultdict[str, Counter[str]](Counter)
    for path in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(path), theirs.get(path)
        if a is None or b is None:
            cells.append(Difference(path, LOST if b is None else NEW, {}))
            continue
        cells.append(_difference(a, b, tolerance))
        for key, change in _provenance(a, b):
            facts[key][change] += 1
    return Comparison(cells, facts)


def read(folder: Path) -> dict[str, Record]:
    """The cells below a results folder (or its cells/) by path, in alphabetical order."""
    root = folder / "cells" if (folder / "cells").is_dir() else folder
    found = {}
    for place in sorted(root.glob("*/*/s*/*/seed*")):
        model, granularity, sparsity, method, seed = place.relative_to(root).parts
        cell = Cell(model, granularity, sparsity[1:], method, int(seed[4:]))
        found[cell.path] = read_cell(cell, place)
        mean_accuracy(found[cell.path], list(found[cell.path].tasks))
    if not found:
        raise ConfigError(f"{folder} holds no cells. Name a results folder, such as results.")
    return found


def _difference(a: Record, b: Record, tolerance: float) -> Difference:
    states = (str(a.row["status"]), str(b.row["status"]))
    keep = [(record.allocation or {}).get("keep") for record in (a, b)]
    figures: dict[str, tuple[float | None, float | None, float | None]] = {}
    verdicts = [IDENTICAL if states[0] == states[1] else CHANGED]
    for key in FIGURES:
        x, y = a.row.get(key), b.row.get(key)
        if x != y:
            error = _error(a, b, key) if a.done and b.done and None not in (x, y) else None
            figures[key] = (x, y, error)
            verdicts.append(_verdict(x, y, error, tolerance))
    order = (IDENTICAL, ROUNDING, NOISE, CHANGED)
    return Difference(a.cell.path, max(verdicts, key=order.index), figures, keep[0] != keep[1], states)


def _error(a: Record, b: Record, key: str) -> float | None:
    if key not in ("ppl", "mean_acc"):
        return None
    return difference_stderr(group([a])[0], group([b])[0], key)


def _verdict(x: float | None, y: float | None, error: float | None, tolerance: float) -> str:
    if x is None or y is None:
        return CHANGED
    if abs(x - y) <= tolerance * max(abs(x), abs(y)):
        return ROUNDING
    return NOISE if error is not None and abs(x - y) <= TIE_STDERRS * error else CHANGED


def _provenance(a: Record, b: Record) -> Iterator[tuple[str, str]]:
    """("evaluation commit", "A -> B") for each fact of provenance or settings that differs."""
    bodies = {"search": (a.allocation, b.allocation), "evaluation": (a.scores, b.scores)}
    for step, (ours, theirs) in bodies.items():
        if ours and theirs:
            flat = [dict(_flat({k: body.get(k) or {} for k in ("provenance", "settings")})) for body in (ours, theirs)]
            for key in dict.fromkeys([*flat[0], *flat[1]]):
                values = [str(part.get(key, "absent")) for part in flat]
                if values[0] != values[1] and key not in RESULTS:
                    yield f"{step} {key}", " -> ".join(value[:40] for value in values)


def _flat(body: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in body.items():
        name = "" if key == "provenance" else f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}." if name else "")
        else:
            yield name, value


def lines(found: Comparison, before: Path, after: Path) -> Iterable[str]:
    """The comparison for a terminal or a log: totals, the cells that differ, what differs behind them."""
    totals = Counter(difference.verdict for difference in found.cells)
    yield f"A {before}, B {after}: " + ", ".join(f"{count} {verdict}" for verdict, count in totals.items())
    for difference in found.cells:
        if difference.verdict != IDENTICAL:
            yield f"{difference.verdict:12}  {difference.cell}  {'; '.join(_parts(difference))}".rstrip()
    for key, changes in found.provenance.items():
        yield f"differs: {key}: " + "; ".join(f"{change} ({count} cells)" for change, count in changes.items())


def _parts(difference: Difference) -> Iterator[str]:
    if difference.status[0] != difference.status[1]:
        yield f"status {difference.status[0]} -> {difference.status[1]}"
    for key, (x, y, error) in difference.figures.items():
        if x is None or y is None:
            yield f"{key} {x} -> {y}"
        else:
            noise = f", {abs(y - x) / error:.1f} standard errors" if error else ""
            yield f"{key} {x:.6g} -> {y:.6g} ({y - x:+.3g}{noise})"
    if difference.allocation:
        yield "another allocation"


def write(found: Comparison, path: Path) -> None:
    """The same as JSON; an infinite standard error (unknown) becomes null."""
    body = json.loads(json.dumps({"cells": [asdict(d) for d in found.cells], "provenance": found.provenance}),
                      parse_constant=lambda _: None)  # fmt: skip
    write_json(path, SCHEMA, {"changed": found.changed, **body})
