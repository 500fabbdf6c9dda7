"""Times a compensated candidate of a search against an uncompensated one at the same widths, in one run.

    snakemake --cores all --profile profiles/local --config grid=config/grids/second-order.yaml -- calibrated
    python -m benchmarks.compensated

Both score the same tokens in turn. A time is that of switching to a candidate and of its forward.

- `neighbour_over_plain`: median ratio of the two times over candidates that differ from the one before by a mutation
  of evolution, which moves a few decisions.
- `fresh_over_plain`: the same over candidates in which every decision has another width.
- `gradient_over_plain`: the same for a gradient step (forward and backward) at fresh candidates.
- `curves_over_plain`: a compensated step of `guided-knapsack` over a plain gradient step at the same candidates.
- `factorise_s`: time to order the units and to factorise all modules, once a search.
- `refit_bytes`: what the factors and the weights at anchors take at the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch

from benchmarks.common import make_parser, open_model, seconds, write_marks
from ffp import api
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.searches.evolutionary import default_step, mutate
from ffp.config import Experiment
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import logits_of, project
from ffp.measure.loss import token_losses
from ffp.measure.reward import ModelReward
from ffp.measure.text import Text
from ffp.models.sliced import SlicedModel
from ffp.pruning.cuts import StructuredCut

SCHEMA = "ffp/benchmark/compensated/1"
SPARSITY = 0.3


@torch.no_grad()
def main() -> None:
    """Times both kinds of candidates and writes the JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    views: dict[bool, SlicedModel] = {}
    for compensated in (False, True):
        prunable, calibration = open_model(Experiment(options.config), options.model)
        cut = StructuredCut("wanda", "ridge", compensated)
        started = time.perf_counter()
        views[compensated] = cut.candidates(calibration.statistics)
    factorise = time.perf_counter() - started  # of the second one, ordering included
    problem = prunable.problem(SPARSITY)
    rng = np.random.default_rng(0)
    neighbours, fresh = _neighbours(problem, options.candidates, rng), _fresh(problem, options.candidates, rng)
    ids = calibration.windows.search[: options.windows]
    marks = {
        "neighbour_over_plain": _forward_ratio(views, neighbours, ids),
        "fresh_over_plain": _forward_ratio(views, fresh, ids),
        **_gradient_ratios(views, fresh, calibration, options.windows),
        "factorise_s": factorise,
        "refit_bytes": sum(refit.nbytes for refit in views[True].refits.values()),
    }
    settings = {"model": options.model, "tokens": ids.numel(), "sparsity": SPARSITY, "threads": options.threads}
    write_marks(options.out, SCHEMA, {"marks": marks}, {**settings, "candidates": options.candidates})


def _options() -> argparse.Namespace:
    parser = make_parser("benchmarks.compensated", __doc__, grid="second-order")
    parser.add_argument("--model", default="smollm2-135m", help="model of the grid (%(default)s)")
    parser.add_argument("--windows", type=int, default=4, help="windows of the search text behind a candidate")
    parser.add_argument("--candidates", type=int, default=8, help="candidates of each kind (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser.parse_args()


def _neighbours(problem: PruningProblem, count: int, rng: np.random.Generator) -> list[Allocation]:
    """A chain of mutations, each of the one before."""
    found = [ffn_only_allocation(problem)]
    for _ in range(count):
        found.append(mutate(problem, found[-1], default_step(problem), 2, rng))
    return found


def _fresh(problem: PruningProblem, count: int, rng: np.random.Generator) -> list[Allocation]:
    centre = logits_of(problem, ffn_only_allocation(problem))
    return [project(problem, centre + 0.5 * rng.normal(size=len(centre))) for _ in range(count + 1)]


def _forward_ratio(views: dict[bool, SlicedModel], candidates: list[Allocation], ids: torch.Tensor) -> float:
    """Median ratio of compensated to plain; the first candidate warms up."""
    ratios = []
    for candidate in candidates:
        times = {}
        for kind, view in views.items():

            def score(view: SlicedModel = view, candidate: Allocation = candidate) -> None:
                view.set_allocation(candidate)
                token_losses(view.model, ids)

            times[kind] = seconds(score)
        ratios.append(times[True] / times[False])
    return statistics.median(ratios[1:])


def _gradient_ratios(
    views: dict[bool, SlicedModel], candidates: list[Allocation], calibration: api.Calibration, windows: int
) -> dict[str, float]:
    """Median ratios of the steps of two searches to a plain step; the first candidate warms up."""
    assert calibration.windows.search is not None
    text = Text("search", calibration.windows.search, calibration.dense_loss["search"])
    plain, refitted = (ModelReward(views[kind], text, text, batch_tokens=api.BATCH_TOKENS) for kind in (False, True))
    steps = {
        "plain": plain.marginal_utility,
        "gradient_over_plain": refitted.marginal_utility,
        "curves_over_plain": refitted.cost_curves,
    }
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for candidate in candidates:
        times = {name: seconds(partial(step, candidate, windows=range(windows))) for name, step in steps.items()}
        for name, taken in times.items():
            ratios[name].append(taken / times["plain"])
    return {name: statistics.median(found[1:]) for name, found in ratios.items() if name != "plain"}


if __name__ == "__main__":
    main()
