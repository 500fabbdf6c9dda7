"""Measures what each part of the FastForward searches is worth: every variant against the method that it varies.

    make demo GRID=config/grids/ablation.yaml && python -m experiments.ablation

Reads the grid's cells. `cells` lists every score, `missing` the cells without one. A variant and its method are
compared on the same test windows and under the same seed:

- `marks.change`, by sparsity and variant: the mean difference of the loss over windows and seeds in nats per token, its
  standard error over windows, and the difference under each seed. Above 0 the method is better than its variant.
- `marks.test_ppl`, by sparsity and method: the median over seeds.

The plot beside the JSON shows the differences.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import make_parser, write_marks
from experiments.drawing import pyplot, save
from experiments.reading import CellResult, add_redraw, by_seed, read_grid, score_row, seed_differences
from ffp.config import Experiment
from ffp.store.files import read_json

SCHEMA = "ffp/benchmark/ablation/1"
LINEAR, TICKS = 0.1, (-3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3)  # nats; the axis is logarithmic beyond LINEAR


def main() -> None:
    """Reads the grid, and writes the JSON and the plot."""
    parser = make_parser("experiments.ablation", __doc__, grid="ablation")
    add_redraw(parser)
    options = parser.parse_args()
    if options.redraw:
        _, body = read_json(options.out, (SCHEMA,))
    else:
        results = read_grid(Experiment(options.config))
        body = {
            "marks": compare_variants(results.experiment, results.done),
            "command": "python -m experiments.ablation",
            "cells": [score_row(result) for result in results.done],
            "missing": results.missing,
        }
        write_marks(options.out, SCHEMA, body, results.settings)
        print(f"{len(body['cells'])} cells, {len(body['missing'])} missing")
    _plot(body["marks"]["change"], options.out.with_suffix(".svg"))


def compare_variants(experiment: Experiment, done: list[CellResult]) -> dict[str, Any]:
    """Returns the marks; the dense model is left out."""
    pruned = [result for result in done if result.cell.method != "dense"]
    seeds = by_seed(pruned, lambda result: (result.cell.sparsity, result.cell.method))
    found: dict[str, Any] = {"change": {}, "test_ppl": {}}
    for sparsity in dict.fromkeys(sparsity for sparsity, _ in seeds):
        methods = {method: results for (of, method), results in seeds.items() if of == sparsity}
        base = {variant: experiment.method(variant).name for variant in experiment.grid.variants}
        found["test_ppl"][sparsity] = {
            method: statistics.median(result.scores.ppl.value for result in results.values())
            for method, results in methods.items()
        }
        found["change"][sparsity] = {
            variant: compare_seeds(methods[variant], methods[method])
            for variant, method in base.items()
            if methods.get(variant, {}).keys() & methods.get(method, {}).keys()
        }
    return found


def compare_seeds(variant: dict[int, CellResult], method: dict[int, CellResult]) -> dict[str, Any]:
    """Returns the difference in loss between a variant and its method over the seeds of both, on the same windows."""
    mean, stderr = seed_differences(variant, method)
    shared = [seed for seed in variant if seed in method]
    return {
        "mean": mean,
        "stderr": stderr,
        "by_seed": {str(seed): float((variant[seed].losses - method[seed].losses).mean()) for seed in shared},
    }


def _plot(changes: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each sparsity, a row for each variant: the mean, two standard errors, and each seed."""
    plt = pyplot()
    names = list(dict.fromkeys(name for variants in changes.values() for name in variants))[::-1]
    size = (3 + 4 * len(changes), 1 + 0.28 * len(names))
    figure, axes = plt.subplots(1, len(changes), figsize=size, sharey=True, squeeze=False)
    for axis, (sparsity, variants) in zip(axes[0], changes.items(), strict=True):
        for row, change in ((row, variants[name]) for row, name in enumerate(names) if name in variants):
            seeds = list(change["by_seed"].values())
            axis.plot(seeds, [row] * len(seeds), "|", color="grey", ms=8)
            axis.errorbar(change["mean"], row, xerr=2 * (change["stderr"] or 0), fmt="o", ms=4, color="C0")
        axis.axvline(0, color="black", lw=0.8)
        axis.set_xscale("symlog", linthresh=LINEAR)
        axis.set_xlim(-5, 5)
        axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.minorticks_off()
        axis.set(title=f"{float(sparsity):.0%} sparsity", xlabel="test loss over the method's (nats per token)")
    axes[0][0].set_yticks(range(len(names)), names)
    save(figure, path)


if __name__ == "__main__":
    main()
