"""What a unit of attention should be: whole KV groups, a query head of every group, or single query heads.

    make demo GRID=config/grids/units.yaml && python -m experiments.units

Reads the grid's cells. `cells` lists every score, `missing` the cells without one.

- `marks.test_ppl`, by model and sparsity: perplexity of the test text by allocation ("uniform-ridge") and unit
  ("query-heads"), median over seeds.
- `marks.minus_kv_groups`, by the same: the difference of the loss from that of whole KV groups on the same windows in
  nats per token, and its standard error over windows. Below 0 the unit is better.

The plot beside the JSON shows the first of them.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from experiments.drawing import pyplot, save
from experiments.reading import CellResult, GridResults, read_marks, seed_differences
from ffp.config import Experiment

SCHEMA = "ffp/experiment/units/1"
GROUPS = "kv-groups"
UNITS = {
    GROUPS: "whole KV groups",
    "query-heads": "a query head of every group",
    "single-query-heads": "single query heads",
}
Table = dict[str, dict[str, dict[str, Any]]]  # by "model sparsity", allocation and unit


def main() -> None:
    """Reads the grid, and writes the JSON and the plot."""
    marks, out = read_marks("experiments.units", __doc__, grid="units", schema=SCHEMA, summarize=_marks)
    _plot(marks["test_ppl"], out.with_suffix(".svg"))


def _marks(results: GridResults) -> dict[str, Any]:
    cells = tabulate(results.experiment, results.done)
    return {
        "test_ppl": _map(cells, lambda seeds, _: statistics.median(r.scores.ppl.value for r in seeds.values())),
        "minus_kv_groups": _map(cells, lambda seeds, groups: seed_differences(seeds, groups) or None),
    }


def tabulate(experiment: Experiment, done: list[CellResult]) -> Table:
    """Returns the finished cells by what they share, unit and seed; a variant's unit is the end of its name."""
    found: Table = {}
    for result in (result for result in done if not result.cell.is_dense):
        units = experiment.model(result.cell).attention_units
        allocation = result.cell.method.removesuffix("-heads").removesuffix("-single")
        panel = f"{result.cell.model} {float(result.cell.sparsity):.0%}"
        found.setdefault(panel, {}).setdefault(allocation, {}).setdefault(units, {})[result.cell.seed] = result
    return found


def _map(cells: Table, figure: Any) -> Table:
    """The same table of figures, each of the cells of all seeds and of those with whole KV groups."""
    return {
        panel: {
            allocation: {units: figure(seeds, by_unit.get(GROUPS, {})) for units, seeds in by_unit.items()}
            for allocation, by_unit in allocations.items()
        }
        for panel, allocations in cells.items()
    }


def _plot(table: Table, path: Path) -> None:
    """A panel for each model and sparsity: perplexity by allocation, a mark for each unit."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(table), figsize=(4.6 * len(table), 3.6), sharey=True, squeeze=False)
    for ax, (panel, allocations) in zip(axes[0], table.items(), strict=True):
        names = list(allocations)
        for marker, (units, label) in zip("os^", UNITS.items(), strict=True):
            shown = [(values[units], row) for row, values in enumerate(allocations.values()) if units in values]
            ax.plot(*zip(*shown, strict=True), marker, label=label, alpha=0.8)
        ax.set_yticks(range(len(names)), names)
        ax.set_xscale("log")
        ax.set_xlabel("perplexity of the test text")
        ax.set_title(panel)
        ax.grid(axis="x", which="both", alpha=0.3)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(fontsize="small")
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    main()
