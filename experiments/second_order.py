"""Which units go, and what a search should know of the compensation behind it: every row is compensated by ridge.

    make demo GRID=config/grids/second-order.yaml && python -m experiments.second_order

Reads the grid's cells. `cells` lists every score, `missing` the cells without one.

- `marks.test_ppl`, by model and sparsity: perplexity of the test text by row, median over seeds.
- `marks.minus_default`, by the same: the difference of the loss from that of `fastforward-guided` with the same seed on
  the same windows in nats per token, mean over seeds, and its standard error over windows. Below 0 the row is better.
- `marks.seeds`, by the same: how many seeds a row has.
- `marks.tokens`, by the same: tokens that the search forwarded; 0 for a heuristic.

The plot beside the JSON shows the first of them.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from experiments.drawing import pyplot, save
from experiments.reading import CellResult, by_seed, read_marks, seed_differences

SCHEMA = "ffp/experiment/second-order/1"
DEFAULT = "fastforward-guided"
Table = dict[str, dict[str, Any]]  # by "model sparsity" and row
Rows = dict[str, dict[int, CellResult]]  # by row and seed


def main() -> None:
    """Reads the grid, and writes the JSON and the plot."""
    marks, out = read_marks(
        "experiments.second_order",
        __doc__,
        grid="second-order",
        schema=SCHEMA,
        summarize=lambda results: summarize(results.done),
    )
    _plot(marks["test_ppl"], out.with_suffix(".svg"))


def summarize(done: list[CellResult]) -> dict[str, Table]:
    """Returns the four tables of finished cells."""
    cells: dict[str, Rows] = {}
    for (panel, row), seeds in by_seed([result for result in done if not result.cell.is_dense], _place).items():
        cells.setdefault(panel, {})[row] = seeds
    return {
        "test_ppl": {panel: {row: _perplexity(seeds) for row, seeds in rows.items()} for panel, rows in cells.items()},
        "minus_default": {panel: _differences(rows) for panel, rows in cells.items()},
        "tokens": {panel: {row: _tokens(seeds) for row, seeds in rows.items()} for panel, rows in cells.items()},
        "seeds": {panel: {row: len(seeds) for row, seeds in rows.items()} for panel, rows in cells.items()},
    }


def _place(result: CellResult) -> tuple[str, str]:
    """The panel and the row of a cell."""
    return f"{result.cell.model} {float(result.cell.sparsity):.0%}", result.cell.method


def _perplexity(seeds: dict[int, CellResult]) -> float:
    """Median over seeds."""
    return statistics.median(result.scores.ppl.value for result in seeds.values())


def _differences(rows: Rows) -> dict[str, Any]:
    """Of every row from the default, [mean, standard error], over the seeds that both have; nothing without any."""
    default = rows.get(DEFAULT, {})
    return {row: found for row, seeds in rows.items() if (found := seed_differences(seeds, default))}


def _tokens(seeds: dict[int, CellResult]) -> int:
    cost = next(iter(seeds.values())).cost
    return cost.n_tokens - cost.selection_tokens


def _plot(table: Table, path: Path) -> None:
    """A panel for each model and sparsity: perplexity by row."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    plt = pyplot()
    figure, axes = plt.subplots(1, len(table), figsize=(4.6 * len(table), 3.4), squeeze=False)
    for ax, (panel, rows) in zip(axes[0], table.items(), strict=True):
        for row, ppl in rows.items():
            ax.plot(ppl, row, "o", color="C1" if row == DEFAULT else "C0")
            ax.annotate(f"{ppl:.1f}", (ppl, row), (6, 0), textcoords="offset points", va="center")
        span = max(rows.values()) / min(rows.values())
        ax.set_xscale("log")
        ax.set_xlim(min(rows.values()) / span**0.1, max(rows.values()) * span**0.35)  # room for the numbers
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if span > 3 else MaxNLocator(4))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(axis="y", alpha=0.3)
        ax.set_xlabel("perplexity of the test text")
        ax.set_title(panel)
        ax.invert_yaxis()
        if ax is not axes[0][0]:
            ax.set_yticklabels([])
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    main()
