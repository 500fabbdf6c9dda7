"""Compares two sets of results: which cells changed, by how much against the noise, and what differs behind them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ffp.config import Cell
from ffp.core.errors import ConfigError
from ffp.report.collect import Record, add_mean_accuracy, read_cell
from ffp.report.details import flat
from ffp.report.groups import TIE_STDERRS, difference_stderr, group
from ffp.store.layout import CellFiles
from ffp.store.schemas import CompareFile

Figure = tuple[float | None, float | None, float | None]  # A, B, standard error of the difference
FIGURES = (
    "ppl", "ppl_before", "mean_acc", "model_sparsity", "search_tokens", "search_evaluations", "recover_tokens",
)  # fmt: skip
RESULTS = ("masks", "updates", "recovered", "allocation")  # digests of what a step made: they follow from the rest
# From the best verdict to the worst.
IDENTICAL, ROUNDING, NOISE, CHANGED = VERDICTS = ("identical", "rounding", "within noise", "changed")
LOST, NEW = "only in A", "only in B"


@dataclass(frozen=True)
class Difference:
    """What became of one cell."""

    cell: str  # its path
    verdict: str  # one of VERDICTS, LOST or NEW
    figures: Mapping[str, Figure]  # by name, where A and B differ
    allocation: bool = False  # whether the allocations differ
    status: tuple[str, str] = ("done", "done")  # in A and in B


@dataclass(frozen=True)
class Comparison:
    """All cells of two sets of results."""

    cells: list[Difference]  # identical cells included
    provenance: Mapping[str, Mapping[str, int]]  # by setting, version or digest: the number of cells by "A -> B"

    @property
    def changed(self) -> bool:
        """Whether a reader would draw other conclusions: a cell changed beyond the noise or was lost."""
        return any(difference.verdict in (CHANGED, LOST) for difference in self.cells)


def compare(before: Path, after: Path, *, tolerance: float = 1e-4) -> Comparison:
    """Compares the cells below two folders.

    A relative difference of a figure up to `tolerance` is rounding: another machine sums in another order. One is
    within noise if it is at most TIE_STDERRS standard errors of the difference; for perplexities of the same windows
    that is the error of the paired losses. Figures without an error (tokens, sparsity) have no noise.
    """
    ours, theirs = read(before), read(after)
    cells, changes = [], defaultdict[str, Counter[str]](Counter)
    for path in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(path), theirs.get(path)
        if a is None or b is None:
            cells.append(Difference(path, LOST if b is None else NEW, {}))
            continue
        cells.append(_difference(a, b, tolerance))
        for key, change in _provenance(a, b):
            changes[key][change] += 1
    return Comparison(cells, changes)


def read(folder: Path) -> dict[str, Record]:
    """Returns the cells below a results folder (or its folder `cells`) by path; ConfigError if it holds none."""
    root = folder / "cells" if (folder / "cells").is_dir() else folder
    found = {}
    for place in sorted(root.glob("*/*/s*/*/seed*")):
        cell = Cell.parse(place.relative_to(root).as_posix())
        found[cell.path] = read_cell(cell, CellFiles(place))
        add_mean_accuracy(found[cell.path])
    if not found:
        raise ConfigError(f"{folder} holds no cells. Name a results folder, such as results.")
    return found


def _difference(a: Record, b: Record, tolerance: float) -> Difference:
    states = (str(a.row["status"]), str(b.row["status"]))
    keep = [record.allocation and record.allocation.keep for record in (a, b)]
    figures: dict[str, Figure] = {}
    verdicts = [IDENTICAL if states[0] == states[1] else CHANGED]
    for key in FIGURES:
        x, y = a.row.get(key), b.row.get(key)
        if x != y:
            known = key in ("ppl", "ppl_before", "mean_acc") and a.done and b.done and None not in (x, y)
            error = difference_stderr(group([a])[0], group([b])[0], key) if known else None
            figures[key] = (x, y, error)
            verdicts.append(_verdict(x, y, error, tolerance))
    return Difference(a.cell.path, max(verdicts, key=VERDICTS.index), figures, keep[0] != keep[1], states)


def _verdict(x: float | None, y: float | None, error: float | None, tolerance: float) -> str:
    if x is None or y is None:
        return CHANGED
    if abs(x - y) <= tolerance * max(abs(x), abs(y)):
        return ROUNDING
    return NOISE if error is not None and abs(x - y) <= TIE_STDERRS * error else CHANGED


def _provenance(a: Record, b: Record) -> Iterator[tuple[str, str]]:
    """Yields ("evaluation commit", "A -> B") for each setting and each part of the provenance that differs."""
    for step, ours, theirs in (("search", a.allocation, b.allocation), ("evaluation", a.scores, b.scores)):
        if ours and theirs:
            before, after = (
                dict(flat({**body.provenance.model_dump(mode="json"), "settings": body.settings}))
                for body in (ours, theirs)
            )
            for key in {**before, **after}:
                old, new = before.get(key, "absent"), after.get(key, "absent")
                if old != new and key not in RESULTS:
                    yield f"{step} {key}", f"{old[:40]} -> {new[:40]}"


def lines(found: Comparison, before: Path, after: Path) -> Iterator[str]:
    """Yields the comparison as text: totals, the cells that differ, and what differs behind them."""
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
    """Writes the comparison as JSON; an unknown (infinite) standard error becomes null."""
    cells = [asdict(difference) for difference in found.cells]
    for cell in cells:
        for name, values in cell["figures"].items():
            cell["figures"][name] = [value if value is None or math.isfinite(value) else None for value in values]
    provenance = {key: dict(changes) for key, changes in found.provenance.items()}
    CompareFile(changed=found.changed, cells=cells, provenance=provenance).write(path)
