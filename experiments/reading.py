"""What the experiments share: the finished cells of a grid, their losses, and paired differences."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.common import make_parser, write_marks
from ffp.config import Cell, Experiment
from ffp.core.problem import FloatArray
from ffp.store.files import read_json
from ffp.store.layout import Layout
from ffp.store.schemas import AllocationFile, AnswersFile, CostFile, ScoresFile

Marks = dict[str, Any]
GROWS = {"title", "models", "sparsities", "own_sparsities", "methods", "seeds", "variants"}  # what says which cells
T = TypeVar("T")


@dataclass(frozen=True)
class SearchedCell:
    """A cell and what its search saved; the dense model has none of it."""

    cell: Cell
    allocation: AllocationFile | None
    cost: CostFile | None
    answers: AnswersFile | None


@dataclass(frozen=True)
class CellResult(SearchedCell):
    """A finished cell."""

    scores: ScoresFile

    @property
    def losses(self) -> FloatArray:
        """Mean test loss of each window, (windows,), nats per token."""
        return np.array(self.scores.ppl.loss_by_window)


@dataclass(frozen=True)
class GridResults:
    """A grid and what has been computed of it.

    Attributes:
        experiment: The grid.
        done: Cells with a score, in the grid's order.
        searched: Cells without one whose search has ended.
        missing: Paths of the cells without a score.
    """

    experiment: Experiment
    done: list[CellResult]
    searched: list[SearchedCell]
    missing: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        """The grid as plain data."""
        return self.experiment.grid.model_dump(mode="json")


def read_grid(experiment: Experiment) -> GridResults:
    """Reads every finished cell of a grid.

    Raises:
        SystemExit: No cell is finished.
    """
    layout = Layout.from_grid(experiment.grid)
    done, searched, missing = [], [], []
    for cell in experiment.cells():
        files = layout.cell(cell)
        scores, allocation = read_scores(experiment, cell), AllocationFile.read_if_there(files.allocation)
        cost, answers = CostFile.read_if_there(files.search_cost), AnswersFile.read_if_there(files.answers)
        if scores is not None:
            done.append(CellResult(cell, allocation, cost, answers, scores))
            continue
        missing.append(cell.path)
        if allocation is not None:
            searched.append(SearchedCell(cell, allocation, cost, answers))
    if not done:
        raise SystemExit(f"no cell of {experiment.file} is finished. Run `make demo GRID={experiment.file}` first.")
    return GridResults(experiment, done, searched, missing)


def read_scores(experiment: Experiment, cell: Cell) -> ScoresFile | None:
    """Returns the scores of a cell with `ppl` on the grid's first test text; None without scores on this text."""
    scores = ScoresFile.read_if_there(Layout.from_grid(experiment.grid).cell(cell).scores)
    found = scores.by_column(experiment.grid.test_texts[0]) if scores else {}
    if scores is None or "ppl" not in found:
        return None
    further = {key.removeprefix("ppl_on_"): ppl for key, ppl in found.items() if key.startswith("ppl_on_")}
    return scores.model_copy(
        update={"ppl": found["ppl"], "ppl_further": further, "ppl_before": found.get("ppl_before")}
    )


def mean_and_stderr(differences: FloatArray) -> tuple[float, float | None]:
    """Returns the mean of paired differences, (windows,), and its standard error over windows; None of one window."""
    n = len(differences)
    return float(differences.mean()), float(differences.std(ddof=1) / n**0.5) if n > 1 else None


def seed_differences(first: dict[int, CellResult], second: dict[int, CellResult]) -> list[float | None]:
    """Returns [mean, standard error over windows] of the first's loss minus the second's, over the seeds of both.

    Args:
        first: Results by seed.
        second: Others, on the same windows.

    Returns:
        Nothing where no seed is shared.
    """
    gaps = [first[seed].losses - second[seed].losses for seed in sorted(first.keys() & second.keys())]
    return list(mean_and_stderr(np.mean(gaps, axis=0))) if gaps else []


def tokens_to_reach(curve: Iterable[tuple[int, float]], goal: float) -> float:
    """Returns the tokens of the first (tokens, loss) at or below the goal; infinite where there is none."""
    return next((tokens for tokens, loss in curve if loss <= goal), math.inf)


def median_or_none(values: Iterable[float]) -> float | None:
    """Returns the median; None where it is not finite."""
    middle = statistics.median(values)
    return middle if math.isfinite(middle) else None


def by_tokens(curves: Sequence[Iterable[tuple[int, T]]]) -> dict[int, list[T]]:
    """Returns what all curves have at the tokens that each of them has, ascending."""
    found: dict[int, list[T]] = {}
    for tokens, value in itertools.chain.from_iterable(curves):
        found.setdefault(tokens, []).append(value)
    return {tokens: values for tokens, values in sorted(found.items()) if len(values) == len(curves)}


def score_row(result: CellResult) -> dict[str, Any]:
    """Returns a cell's figures as the JSON files list them."""
    ppl = result.scores.ppl
    return {
        "granularity": result.cell.granularity,
        "sparsity": float(result.cell.sparsity),
        "method": result.cell.method,
        "seed": result.cell.seed,
        "block_sparsity": result.scores.block_sparsity,
        "ppl": ppl.value,
        "stderr": ppl.stderr,
        "tokens": ppl.n_tokens,
        "search_tokens": result.cost.n_tokens if result.cost else None,
    }


def read_marks(
    module: str, doc: str | None, *, grid: str, schema: str, summarize: Callable[[GridResults], Marks],
    merge: Callable[[Marks, Marks], Marks] | None = None,
) -> tuple[Marks, Path]:  # fmt: skip
    """Reads a grid and writes its marks and cells as JSON, or reads the JSON again where --redraw is given.

    Args:
        module: See make_parser, as the next two.
        doc: The module's docstring.
        grid: Name of the default grid.
        schema: Tag of the JSON.
        summarize: Makes the marks of the finished cells.
        merge: Joins the marks of an earlier JSON and of the finished cells; the command has --keep then.

    Returns:
        The marks, and the JSON's path.
    """
    parser = make_parser(module, doc, grid=grid)
    add_redraw(parser)
    if merge:
        add_keep(parser)
    options = parser.parse_args()
    if options.redraw:
        return read_json(options.out, (schema,))[1]["marks"], options.out
    results = read_grid(Experiment(options.config))
    rows = [{"model": cell.cell.model, **score_row(cell)} for cell in results.done]
    body = {"marks": summarize(results), "cells": rows, "missing": results.missing}
    if merge and options.keep:
        body = _keep(read_json(options.out, (schema,))[1], body, merge, results)
    write_marks(options.out, schema, body, results.settings)
    return body["marks"], options.out


def _keep(
    earlier: dict[str, Any], body: dict[str, Any], merge: Callable[[Marks, Marks], Marks], results: GridResults
) -> dict[str, Any]:
    """Returns the JSON's body with what an earlier one has of the same grid beyond it.

    Raises:
        SystemExit: The earlier grid had other settings.
    """
    check_same_settings(earlier, results.settings)
    here = {(row["model"], row["sparsity"]) for row in body["cells"]}
    kept = [row for row in earlier["cells"] if (row["model"], row["sparsity"]) not in here]
    had = {
        Cell(row["model"], row["granularity"], f"{row['sparsity']:.2f}", row["method"], row["seed"]).path
        for row in kept
    }
    return {
        "marks": merge(earlier["marks"], body["marks"]),
        "cells": kept + body["cells"],
        "missing": [path for path in body["missing"] if path not in had],
        "kept": by_commit(earlier, had),
    }


def check_same_settings(earlier: dict[str, Any], settings: Marks) -> None:
    """Raises SystemExit where an earlier JSON is of other settings than those given, so that it would mix the two.

    A grid may have got further models, sparsities, methods and seeds, or lost some, since.
    """
    then = earlier["provenance"]["settings"]
    variants, before = settings.get("variants", {}), then.get("variants", {})
    keys = {key for key in {*then, *settings} - GROWS if then.get(key) != settings.get(key)}
    keys |= {f"variants.{name}" for name in variants.keys() & before.keys() if variants[name] != before[name]}
    if keys:
        raise SystemExit(
            f"the JSON at --out is of other settings ({', '.join(sorted(keys))}). Give another --out, or delete it."
        )


def by_commit(earlier: dict[str, Any], kept: Iterable[str]) -> dict[str, list[str]]:
    """Returns the cells that are kept of an earlier JSON by the commit that ran them.

    It is the first that the JSON names in its own "kept", else that of its provenance.
    """
    named, commit = earlier.get("kept", {}), earlier["provenance"]["commit"]
    first = {path: by for by, paths in reversed(named.items()) for path in paths}
    found: dict[str, list[str]] = {}
    for path in sorted(kept):
        found.setdefault(first.get(path, commit), []).append(path)
    return found


def add_keep(parser: argparse.ArgumentParser) -> None:
    """Adds --keep to the options of an experiment whose grid is run in parts."""
    parser.add_argument("--keep", action="store_true", help="keep what only the JSON at --out has")


def add_redraw(parser: argparse.ArgumentParser) -> None:
    """Adds --redraw to the options of an experiment that draws a plot beside its JSON."""
    parser.add_argument("--redraw", action="store_true", help="only draw the plot again, from the JSON at --out")


def by_seed(results: list[CellResult], key: Callable[[CellResult], Any]) -> dict[Any, dict[int, CellResult]]:
    """Groups results by a key, and within a group by seed."""
    found: dict[Any, dict[int, CellResult]] = {}
    for result in results:
        found.setdefault(key(result), {})[result.cell.seed] = result
    return found
