r"""Compares every method on one small model, and shows which published orderings hold there.

    make demo GRID=config/grids/baselines.yaml && python -m experiments.baselines
    make demo GRID=config/grids/unit-searches.yaml
    python -m experiments.baselines --config config/grids/unit-searches.yaml \
        --out experiments/results/unit_searches.json

Reads the grid's cells. `cells` lists every score, `missing` the cells without one. `marks` compares pairs of methods
at each sparsity of single weights or of units: the mean difference of the loss on the same test windows in nats per
token, and its standard error over windows. Below 0 the first method of the pair is better.

- `owl_minus_uniform`, `owl_m10_minus_uniform`: OWL's allocation (M = 5 and M = 10) and the uniform one, by Wanda.
- `owl_minus_uniform_by_sparsegpt`: the same allocations, pruned by SparseGPT.
- `sparsegpt_minus_wanda`, `wanda_minus_magnitude`: pruners, all under the uniform allocation.
- `taylor_global_minus_guided`, `flap_minus_guided`: of units, all with ridge.
"""

from __future__ import annotations

from benchmarks.common import make_parser, write_marks
from experiments.reading import CellResult, by_seed, read_grid, score_row, seed_differences
from ffp.config import Experiment

SCHEMA = "ffp/benchmark/baselines/1"
PAIRS = {
    "owl_minus_uniform": ("unstructured", "owl", "uniform"),
    "owl_m10_minus_uniform": ("unstructured", "owl-m10", "uniform"),
    "owl_minus_uniform_by_sparsegpt": ("unstructured", "owl-sparsegpt", "uniform-sparsegpt"),
    "sparsegpt_minus_wanda": ("unstructured", "uniform-sparsegpt", "uniform"),
    "wanda_minus_magnitude": ("unstructured", "uniform", "uniform-magnitude"),
    "taylor_global_minus_guided": ("structured", "taylor-global-ridge", "fastforward-guided-ridge"),
    "flap_minus_guided": ("structured", "flap-ridge", "fastforward-guided-ridge"),
}


def main() -> None:
    """Reads the grid and writes the JSON."""
    options = make_parser("experiments.baselines", __doc__, grid="baselines").parse_args()
    experiment = Experiment(options.config)
    if len(experiment.grid.models) > 1:
        raise SystemExit(f"{experiment.file} has {len(experiment.grid.models)} models. Give a grid of one.")
    results = read_grid(experiment)
    rows = [score_row(result) for result in results.done]
    settings = {"grid": experiment.grid.title, "model": experiment.grid.models, "evaluation": rows[0]["tokens"]}
    body = {"marks": compare_pairs(results.done), "cells": rows, "missing": results.missing}
    write_marks(options.out, SCHEMA, body, settings)
    print(f"{len(rows)} cells, {len(results.missing)} missing")


def compare_pairs(done: list[CellResult]) -> dict[str, dict[str, list[float | None]]]:
    """Returns the marks: (mean, standard error) by pair and sparsity, over the seeds that both of a pair have."""
    cells = by_seed(done, lambda result: (result.cell.granularity, result.cell.method, result.cell.sparsity))
    found: dict[str, dict[str, list[float | None]]] = {}
    for name, (granularity, first, second) in PAIRS.items():
        for (kind, method, sparsity), seeds in cells.items():
            difference = seed_differences(seeds, cells.get((granularity, second, sparsity), {}))
            if (kind, method) == (granularity, first) and difference:
                found.setdefault(name, {})[sparsity] = difference
    return found


if __name__ == "__main__":
    main()
