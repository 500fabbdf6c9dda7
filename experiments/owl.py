"""Where OWL's constants come out: the loss of Wanda under OWL's allocation against that under uniform, by M and lambda.

    python benchmarks/owl.py --config config/grids/baselines.yaml

Needs the grid's model and calibration. The texts are the selection windows and as many of the search windows; no score
of a report is from them. Weights go by Wanda's score on the dense statistics. M and lambda are those of the paper's
grid. In `marks`, by sparsity and "M, lambda": the mean difference in nats a token and its standard error over windows,
OWL minus uniform, so that below zero OWL is better. `relief` says why: what the loss at uniform gains, in nats, when
one block (every third of them) keeps 10 points more, and by M the correlation of that with OWL's shares of outliers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ffp.allocators.base import LinearStats, SearchBudget
from ffp.allocators.blockwise import blocks_of
from ffp.allocators.heuristics.owl import Owl, outlier_share
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.config import Experiment
from ffp.core.problem import FloatArray
from ffp.measure.loss import window_losses
from ffp.models.checkpoint import load_model
from ffp.models.prunable import PrunableModel
from ffp.pipeline.steps import open_calibration, read_windows
from ffp.pruning.masked import MaskedModel
from ffp.pruning.statistics import Calibration
from ffp.store.files import write_json
from ffp.store.provenance import provenance

SCHEMA = "ffp/benchmark/owl/1"
MULTIPLES, STRENGTHS = (3, 5, 7, 10), (0.02, 0.05, 0.08, 0.1, 0.2)
BATCH = 4
EVERY, MORE = 3, 0.1  # blocks that are tried alone, and what each keeps more


class Dense:
    """The statistics of a model as it was before anything was removed from it."""

    def __init__(self, stats: Calibration):
        self.n_blocks = stats.n_blocks
        self._blocks = [list(stats.linears(block)) for block in range(stats.n_blocks)]

    def linears(self, block: int) -> Iterator[LinearStats]:
        return iter(self._blocks[block])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/baselines.yaml"))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.6, 0.7])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/owl.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(options.config)
    name, data = experiment.grid.models[0], Path(experiment.grid.data)
    config, folder = experiment.models[name], data / "calibration" / name
    prunable = PrunableModel(load_model(data / "models" / name, config), min_keep=config.min_keep)
    stats = open_calibration(prunable, folder, "unstructured")
    selection = read_windows(folder, "selection")
    windows = torch.cat([selection, read_windows(folder, "search")[: len(selection)]])
    dense = Dense(stats)
    candidates = MaskedModel(prunable, granularity="unstructured", pruner="wanda", sq_means=stats.sq_means)
    settings = {"model": name, "windows": list(windows.shape), "sparsities": options.sparsities}
    body: dict[str, dict[str, object]] = {}
    for sparsity in options.sparsities:
        body[str(sparsity)] = _sweep(candidates, dense, windows, sparsity)
        marks = {key: found["owl_minus_uniform"] for key, found in body.items()}
        write_json(options.out, SCHEMA, {"marks": marks, **body, "provenance": provenance(settings=settings)})
    print(json.dumps(marks, indent=1))


def _sweep(candidates: MaskedModel, stats: Dense, windows: torch.Tensor, sparsity: float) -> dict[str, object]:
    problem = candidates.prunable.problem(sparsity, "unstructured")
    candidates.set_allocation(uniform_allocation(problem))
    uniform = _losses(candidates, windows)
    differences = {}
    for multiple in MULTIPLES:
        for strength in STRENGTHS:
            method = Owl(outlier_threshold=multiple, strength=strength)
            result = method.allocate(problem, stats=stats, reward=None, budget=SearchBudget(1, 1), seed=0)  # type: ignore[arg-type]
            candidates.set_allocation(result.allocation)
            change = _losses(candidates, windows) - uniform
            key = f"{multiple}, {strength}"
            differences[key] = [float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)]
            print(sparsity, key, differences[key], flush=True)
    relief = _relief(candidates, stats, windows, sparsity, float(uniform.mean()))
    return {"uniform_loss": float(uniform.mean()), "owl_minus_uniform": differences, "relief": relief}


def _relief(
    candidates: MaskedModel, stats: Dense, windows: torch.Tensor, sparsity: float, uniform: float
) -> dict[str, object]:
    problem = candidates.prunable.problem(sparsity, "unstructured")
    keep, blocks = np.array(uniform_allocation(problem).keep), blocks_of(problem)
    tried = list(range(0, stats.n_blocks, EVERY))
    gains = []
    for block in tried:
        more = np.where(blocks == block, (problem.n_units * (1 - sparsity + MORE)).astype(np.int64), keep)
        candidates.set_keep(more.tolist())
        gains.append(uniform - float(_losses(candidates, windows).mean()))
    shares = {m: [outlier_share(list(stats.linears(block)), m) for block in tried] for m in MULTIPLES}
    return {
        "blocks": tried,
        "gain": gains,
        "outlier_share": {str(m): share for m, share in shares.items()},
        "correlation": {str(m): float(np.corrcoef(share, gains)[0, 1]) for m, share in shares.items()},
    }


@torch.no_grad()
def _losses(candidates: MaskedModel, windows: torch.Tensor) -> FloatArray:
    """Mean loss of each window, nats a predicted token."""
    parts = [window_losses(candidates.model, windows[i : i + BATCH]).cpu() for i in range(0, len(windows), BATCH)]
    found: FloatArray = torch.cat(parts).numpy().astype(np.float64)
    return found


if __name__ == "__main__":
    main()
