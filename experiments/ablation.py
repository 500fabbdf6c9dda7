"""What each part of the FastForward searches is worth: every variant of a grid against the method that it varies.

    make demo GRID=config/grids/ablation.yaml && python benchmarks/ablation.py

Reads the grid's cells. A variant is compared with its method on the same test windows and under the same seed:
- `marks.change`: by sparsity and variant: the mean over windows and seeds of the difference in loss, nats a token, its
  standard error over windows, and the difference under each seed. Above 0 the method is better than its variant.
- `marks.test_ppl`: by sparsity and method, the median over seeds.
`missing` lists the cells that have no score yet. The plot, beside the JSON, shows the differences.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from baselines import cells_of, losses, mean_and_stderr, row
from drawing import pyplot, save

from ffp.config import Experiment
from ffp.report.collect import Record
from ffp.store.files import write_json
from ffp.store.provenance import provenance

SCHEMA = "ffp/benchmark/ablation/1"
LINEAR, TICKS = 0.1, (-3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3)  # nats, of an axis that is logarithmic beyond LINEAR


def main() -> None:
    project, records, out = cells_of(__doc__ or "", "ablation")
    body = {
        "marks": marks(project, [record for record in records if record.done]),
        "command": "python benchmarks/ablation.py",
        "cells": [row(record) for record in records if record.done],
        "missing": [record.cell.path for record in records if not record.done],
        "provenance": provenance(settings=project.grid.model_dump(mode="json")),
    }
    write_json(out, SCHEMA, body)
    _plot(body["marks"]["change"], out.with_suffix(".svg"))
    print(json.dumps(body["marks"], indent=1))
    print(f"{len(body['cells'])} cells, {len(body['missing'])} missing")


def marks(project: Experiment, done: list[Record]) -> dict[str, Any]:
    """See the module's text; the dense model, at sparsity 0, is left out."""
    by_method: dict[str, dict[str, dict[int, Record]]] = {}
    for record in (record for record in done if record.cell.method != "dense"):
        seeds = by_method.setdefault(record.cell.sparsity, {}).setdefault(record.cell.method, {})
        seeds[record.cell.seed] = record
    found: dict[str, Any] = {"change": {}, "test_ppl": {}}
    for sparsity, methods in by_method.items():
        found["test_ppl"][sparsity] = {
            method: statistics.median((record.scores or {})["ppl"]["value"] for record in seeds.values())
            for method, seeds in methods.items()
        }
        found["change"][sparsity] = {
            variant: change(methods[variant], methods[project.method(variant).name])
            for variant in project.grid.variants
            if variant in methods and project.method(variant).name in methods
        }
    return found


def change(variant: dict[int, Record], method: dict[int, Record]) -> dict[str, Any]:
    """The difference between two methods' records, by seed, on the same windows."""
    by_seed = {seed: losses(variant[seed]) - losses(method[seed]) for seed in variant if seed in method}
    mean, stderr = mean_and_stderr(np.mean(list(by_seed.values()), axis=0))
    return {
        "mean": mean,
        "stderr": stderr,
        "by_seed": {str(seed): float(difference.mean()) for seed, difference in by_seed.items()},
    }


def _plot(changes: dict[str, dict[str, Any]], path: Path) -> None:
    """A row a variant, a panel a sparsity: the mean, two standard errors, and each seed."""
    plt = pyplot()
    names = list(dict.fromkeys(name for of in changes.values() for name in of))[::-1]
    size = (3 + 4 * len(changes), 1 + 0.28 * len(names))
    figure, axes = plt.subplots(1, len(changes), figsize=size, sharey=True, squeeze=False)
    for axis, (sparsity, of) in zip(axes[0], changes.items(), strict=True):
        for at, name in enumerate(names):
            if name in of:
                seeds = list(of[name]["by_seed"].values())
                axis.plot(seeds, [at] * len(seeds), "|", color="grey", ms=8)
                axis.errorbar(of[name]["mean"], at, xerr=2 * of[name]["stderr"], fmt="o", ms=4, color="C0")
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
