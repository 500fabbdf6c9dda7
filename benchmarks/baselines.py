"""What a grid of baselines gave, and which known orderings it shows.

    make demo GRID=config/baselines.yaml && python benchmarks/baselines.py

Reads the grid's cells and writes every score that is there. In `marks`, by sparsity of single weights: the mean
difference in nats a token over the test windows, and its standard error, of pairs of methods on the same windows:
- `owl_minus_uniform`, `owl_m10_minus_uniform`: allocations, both pruned by Wanda; at most 0 where OWL is no worse;
- `sparsegpt_minus_wanda`: pruners, both under the uniform allocation; below 0 where SparseGPT is better;
- `wanda_minus_magnitude`: likewise.
`missing` lists the cells that have no score yet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ffp.artifacts import provenance, write_json
from ffp.config import Project
from ffp.report.collect import Record, collect
from ffp.types import FloatArray

SCHEMA = "ffp/benchmark/baselines/1"
PAIRS = {
    "owl_minus_uniform": ("owl", "uniform"),
    "owl_m10_minus_uniform": ("owl-m10", "uniform"),
    "owl_minus_uniform_by_sparsegpt": ("owl-sparsegpt", "uniform-sparsegpt"),
    "sparsegpt_minus_wanda": ("uniform-sparsegpt", "uniform"),
    "wanda_minus_magnitude": ("uniform", "uniform-magnitude"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/baselines.yaml"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/baselines.json"))
    options = parser.parse_args()
    project = Project(options.config)
    records = [record for record in collect(project) if record.row["status"] != "skipped"]
    done = {(r.cell.granularity, r.cell.sparsity, r.cell.method): r for r in records if r.done}
    marks: dict[str, dict[str, list[float]]] = {}
    for name, (first, second) in PAIRS.items():
        for granularity, sparsity, method in done:
            other = done.get((granularity, sparsity, second))
            if granularity == "unstructured" and method == first and other is not None:
                difference = _difference(done[granularity, sparsity, first], other)
                marks.setdefault(name, {})[sparsity] = difference
    rows = [row(record) for record in records if record.done]
    missing = [record.cell.path for record in records if not record.done]
    settings = {"grid": project.grid.title, "model": project.grid.models, "evaluation": rows[0]["tokens"]}
    body = {"marks": marks, "cells": rows, "missing": missing, "provenance": provenance(settings=settings)}
    write_json(options.out, SCHEMA, body)
    print(json.dumps(marks, indent=1))
    print(f"{len(rows)} cells, {len(missing)} missing")


def _difference(first: Record, second: Record) -> list[float]:
    """Mean and standard error over windows of the difference in loss."""
    change = losses(first) - losses(second)
    return [float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)]


def losses(record: Record) -> FloatArray:
    """(windows,): mean test loss of each window, nats a token."""
    return np.array((record.scores or {})["ppl"]["loss_by_window"])


def row(record: Record) -> dict[str, Any]:
    ppl = (record.scores or {})["ppl"]
    return {
        "granularity": record.cell.granularity,
        "sparsity": float(record.cell.sparsity),
        "method": record.cell.method,
        "seed": record.cell.seed,
        "block_sparsity": record.row["block_sparsity"],
        "ppl": ppl["value"],
        "stderr": ppl["stderr"],
        "tokens": ppl["n_tokens"],
        "search_tokens": record.row.get("search_tokens"),
    }


if __name__ == "__main__":
    main()
