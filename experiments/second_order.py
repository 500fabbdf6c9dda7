"""Which units go, and what a search should know of the compensation behind it: every row is compensated by ridge.

    make demo GRID=config/grids/second-order.yaml && python -m experiments.second_order

Reads the grid's cells. `cells` lists every score, `missing` the cells without one.

- `marks.test_ppl`, by model and sparsity: perplexity of the test text by row.
- `marks.minus_default`, by the same: the difference of the loss from that of `fastforward-guided` on the same windows
  in nats per token, and its standard error over windows. Below 0 the row is better.
- `marks.tokens`, by the same: tokens that the search forwarded; 0 for a heuristic.

The plot beside the JSON shows the first of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.drawing import pyplot, save
from experiments.reading import CellResult, mean_and_stderr, read_marks

SCHEMA = "ffp/experiment/second-order/1"
DEFAULT = "fastforward-guided"
Table = dict[str, dict[str, Any]]  # by "model sparsity" and row


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
    """Returns the three tables of finished cells."""
    cells: dict[str, dict[str, CellResult]] = {}
    for result in (result for result in done if not result.cell.is_dense):
        panel = f"{result.cell.model} {float(result.cell.sparsity):.0%}"
        cells.setdefault(panel, {})[result.cell.method] = result
    return {
        "test_ppl": {panel: {row: c.scores.ppl.value for row, c in rows.items()} for panel, rows in cells.items()},
        "minus_default": {panel: _differences(rows) for panel, rows in cells.items()},
        "tokens": {panel: {row: _tokens(c) for row, c in rows.items()} for panel, rows in cells.items()},
    }


def _differences(rows: dict[str, CellResult]) -> dict[str, Any]:
    """Of every row from the default, [mean, standard error]; nothing while the default is missing."""
    if DEFAULT not in rows:
        return {}
    return {row: list(mean_and_stderr(cell.losses - rows[DEFAULT].losses)) for row, cell in rows.items()}


def _tokens(result: CellResult) -> int:
    cost = result.cost
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
