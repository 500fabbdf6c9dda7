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
from experiments.reading import CellResult, mean_and_stderr, read_grid, score_row
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
    results = read_grid(experiment)
    rows = [score_row(result) for result in results.done]
    settings = {"grid": experiment.grid.title, "model": experiment.grid.models, "evaluation": rows[0]["tokens"]}
    body = {"marks": compare_pairs(results.done), "cells": rows, "missing": results.missing}
    write_marks(options.out, SCHEMA, body, settings)
    print(f"{len(rows)} cells, {len(results.missing)} missing")


def compare_pairs(done: list[CellResult]) -> dict[str, dict[str, list[float]]]:
    """Returns the marks: (mean, standard error) by pair and sparsity, where both cells of a pair are finished."""
    losses = {(r.cell.granularity, r.cell.method, r.cell.sparsity): r.losses for r in done}
    found: dict[str, dict[str, list[float]]] = {}
    for name, (granularity, first, second) in PAIRS.items():
        for kind, method, sparsity in losses:
            if (kind, method) == (granularity, first) and (granularity, second, sparsity) in losses:
                difference = losses[granularity, first, sparsity] - losses[granularity, second, sparsity]
                found.setdefault(name, {})[sparsity] = list(mean_and_stderr(difference))
    return found


if __name__ == "__main__":
    main()
