"""Shows which constants of OWL pay: Wanda's loss under OWL's allocation minus that under uniform, by M and lambda.

    snakemake --cores all --profile profiles/local --config grid=config/grids/baselines.yaml -- calibrated
    python -m experiments.owl

The texts are the selection windows and as many of the search windows; no score of a report is from them. Weights are
removed by Wanda's score on the dense model's statistics. M and lambda are those of the paper's grid.

- `marks`, by sparsity and "M, lambda": the mean difference of the loss in nats per token, OWL minus uniform, and its
  standard error over windows. Below 0 OWL is better.
- `relief`, by sparsity, says why: `gain` is what the loss under uniform falls by, in nats per token, when one block
  (every third is tried) keeps 10 points more; `correlation`, by M, is that of the gains with OWL's outlier shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.common import make_parser, open_model, write_marks
from experiments.reading import mean_and_stderr
from ffp import api
from ffp.allocators import create
from ffp.allocators.blockwise import blocks_of
from ffp.allocators.heuristics.owl import outlier_share
from ffp.config import Experiment
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.measure.loss import window_losses
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import Cut, make_cut

SCHEMA = "ffp/benchmark/owl/1"
THRESHOLDS, DEVIATIONS = (3, 5, 7, 10), (0.02, 0.05, 0.08, 0.1, 0.2)  # M and lambda
BATCH = 4  # windows in one forward
EVERY, MORE = 3, 0.1  # blocks that are tried alone, and what each keeps more
Losses = Callable[[Allocation], FloatArray]


@dataclass(frozen=True)
class Plan:
    """What is scored at one sparsity, computed on the dense weights before any of them is switched off.

    Attributes:
        problem: Of single weights.
        uniform: The uniform allocation.
        owl: OWL's allocations by "M, lambda".
        shares: OWL's outlier shares by M, of the blocks that are tried.
        tried: Numbers of those blocks.
    """

    problem: PruningProblem
    uniform: Allocation
    owl: dict[str, Allocation]
    shares: dict[str, list[float]]
    tried: list[int]


def main() -> None:
    """Scores every allocation and writes the JSON after each sparsity."""
    parser = make_parser("experiments.owl", __doc__, grid="baselines")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.6, 0.7], help="of single weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(options.config)
    name = experiment.grid.models[0]
    prunable, calibration = open_model(experiment, name)
    selection = calibration.windows.selection
    windows = torch.cat([selection, calibration.windows.search[: len(selection)]])
    cut = make_cut("unstructured", score="wanda", compensation="none", pruner="wanda")
    plans = {sparsity: _plan(prunable, calibration, cut, sparsity) for sparsity in options.sparsities}
    candidates = cut.candidates(calibration.statistics.for_granularity("unstructured"))

    def losses(allocation: Allocation) -> FloatArray:
        candidates.set_allocation(allocation)
        found = window_losses(prunable.model, windows, batch_tokens=BATCH * windows.shape[1])
        return np.asarray(found, dtype=np.float64)

    settings = {"model": name, "windows": list(windows.shape), "sparsities": options.sparsities}
    body: dict[str, Any] = {"marks": {}}
    for sparsity, plan in plans.items():
        found = _score(plan, losses)
        body["marks"][str(sparsity)] = found["owl_minus_uniform"]
        body[str(sparsity)] = found
        write_marks(options.out, SCHEMA, body, settings)


def _plan(prunable: PrunableModel, calibration: api.Calibration, cut: Cut, sparsity: float) -> Plan:
    def allocate(method: str, **parameters: float) -> api.AllocationResult:
        made = create(method, parameters)
        return api.allocate(prunable, calibration, made, sparsity=sparsity, cut=cut, granularity="unstructured")

    uniform, statistics = allocate("uniform"), calibration.statistics
    tried = list(range(0, statistics.n_blocks, EVERY))
    return Plan(
        uniform.problem,
        uniform.allocation,
        {
            f"{m}, {deviation}": allocate("owl", outlier_threshold=m, max_deviation=deviation).allocation
            for m in THRESHOLDS
            for deviation in DEVIATIONS
        },
        {str(m): [outlier_share(list(statistics.linears(block)), m) for block in tried] for m in THRESHOLDS},
        tried,
    )


def _score(plan: Plan, losses: Losses) -> dict[str, Any]:
    uniform = losses(plan.uniform)
    differences = {}
    for key, allocation in plan.owl.items():
        differences[key] = list(mean_and_stderr(losses(allocation) - uniform))
        print(plan.problem.target, key, differences[key], flush=True)
    mean = float(uniform.mean())
    return {"uniform_loss": mean, "owl_minus_uniform": differences, "relief": _relieve(plan, losses, mean)}


def _relieve(plan: Plan, losses: Losses, uniform: float) -> dict[str, Any]:
    """What the loss falls by when one block after the other keeps MORE."""
    problem, blocks = plan.problem, blocks_of(plan.problem)
    more = (problem.n_units * (1 - problem.target + MORE)).astype(np.int64)
    gains = []
    for block in plan.tried:
        relieved = Allocation.of(problem, np.where(blocks == block, more, plan.uniform.keep))
        gains.append(uniform - float(losses(relieved).mean()))
    return {
        "blocks": plan.tried,
        "gain": gains,
        "outlier_share": plan.shares,
        "correlation": {m: float(np.corrcoef(shares, gains)[0, 1]) for m, shares in plan.shares.items()},
    }


if __name__ == "__main__":
    main()
