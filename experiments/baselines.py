"""What a grid of baselines gave, and which known orderings it shows.

    make demo GRID=config/grids/baselines.yaml && python benchmarks/baselines.py

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

from ffp.config import Experiment
from ffp.core.problem import FloatArray
from ffp.report.collect import Record, collect
from ffp.store.files import write_json
from ffp.store.provenance import provenance

SCHEMA = "ffp/benchmark/baselines/1"
PAIRS = {
    "owl_minus_uniform": ("owl", "uniform"),
    "owl_m10_minus_uniform": ("owl-m10", "uniform"),
    "owl_minus_uniform_by_sparsegpt": ("owl-sparsegpt", "uniform-sparsegpt"),
    "sparsegpt_minus_wanda": ("uniform-sparsegpt", "uniform"),
    "wanda_minus_magnitude": ("uniform", "uniform-magnitude"),
}


def main() -> None:
    project, records, out = cells_of(__doc__ or "", "baselines")
    done = {(r.cell.granularity, r.cell.sparsity, r.cell.method): r for r in records if r.done}
    marks: dict[str, dict[str, list[float]]] = {}
    for name, (first, second) in PAIRS.items():
        for granularity, sparsity, method in done:
            other = done.get((granularity, sparsity, second))
            if granularity == "unstructured" and method == first and other is not None:
                change = losses(done[granularity, sparsity, first]) - losses(other)
                marks.setdefault(name, {})[sparsity] = list(mean_and_stderr(change))
    rows = [row(record) for record in records if record.done]
    missing = [record.cell.path for record in records if not record.done]
    settings = {"grid": project.grid.title, "model": project.grid.models, "evaluation": rows[0]["tokens"]}
    body = {"marks": marks, "cells": rows, "missing": missing, "provenance": provenance(settings=settings)}
    write_json(out, SCHEMA, body)
    print(json.dumps(marks, indent=1))
    print(f"{len(rows)} cells, {len(missing)} missing")


def cells_of(doc: str, name: str) -> tuple[Experiment, list[Record], Path]:
    """The grid that the command line names, its cells but for skipped ones, and the file for what they gave.

    doc: the text of --help. name: of config/NAME.yaml and benchmarks/results/NAME.json, the defaults.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(f"config/{name}.yaml"))
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    options = parser.parse_args()
    project = Experiment(options.config)
    return project, [record for record in collect(project) if record.row["status"] != "skipped"], options.out


def mean_and_stderr(change: FloatArray) -> tuple[float, float]:
    """Of differences in loss, (windows,): their mean and its standard error."""
    return float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)


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
