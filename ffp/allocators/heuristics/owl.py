"""OWL: blocks with more outliers keep more (Yin et al., "Outlier Weighed Layerwise Sparsity", arXiv:2310.05175).

For block l, over all its linears at once:
    A_ij  = |W_ij| * sqrt(mean_t x_tj^2)          an entry of weight times the norm of its input
    D_l   = #{A > M * mean(A)} / #A               the share of outliers
    r_l   = 2 * lambda * (D_l - min D) / (max D - min D)
    keep_l = (1 - target) + r_l - mean(r)         the kept share of every module of the block

Constants: M = 5 (the commands of the authors' README; their argparse default is 3), lambda = 0.08.

Departures: mean(r) is weighted by the blocks' parameters, so that the budget holds for blocks of unequal size, and
shares outside [0, 1] are clipped and made up for by the projection that all methods use (the authors' code replaces
a negative sparsity by 0.01 and misses the budget). "OWL-struct adaptation": on the structured granularity keep_l is
the kept share of the block's KV groups and of its channels; the paper defines unstructured and N:M sparsity only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, LinearStats, Reward, SearchBudget, SearchResult
from ffp.allocators.tracker import check_number, check_switch, needed
from ffp.core.errors import ArtifactError
from ffp.core.problem import FloatArray, PruningProblem
from ffp.core.projection import project_shares

CHUNK = 1 << 20


@dataclass(frozen=True)
class Owl:
    """One pass over the statistics; nothing is evaluated or drawn.

    outlier_threshold: M, an outlier exceeds M times its block's mean. strength: lambda, half the width of the range
    of the blocks' sparsities. parity: wish for the ratios of the authors' code (see published_sparsities) instead of
    those that meet the budget; the projection then mends what they miss. `ffp parity owl` shows them unmended.
    """

    outlier_threshold: float = 5.0
    strength: float = 0.08
    parity: bool = False
    name: str = field(default="owl", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "outlier_threshold", self.outlier_threshold, 0, math.inf)
        check_number(self.name, "strength", self.strength, 0, 0.5)
        check_switch(self.name, "parity", self.parity)

    def allocate(
        self,
        problem: PruningProblem,
        *,
        stats: CalibrationStats | None,
        reward: Reward | None,
        budget: SearchBudget,
        seed: int,
    ) -> SearchResult:
        """Answer `problem`; BudgetError if its target is infeasible, ArtifactError if `stats` lack a decision."""
        known = needed(stats, self.name, "calibration statistics")
        block_of: dict[str, int] = {}
        shares = np.zeros(known.n_blocks)
        for block in range(known.n_blocks):
            linears = list(known.linears(block))
            block_of.update((linear.decision, block) for linear in linears)
            shares[block] = outlier_share(linears, self.outlier_threshold)
        if lost := [decision.name for decision in problem.decisions if decision.name not in block_of]:
            raise ArtifactError(f"calibration statistics have no linear of {lost[0]}. Calibrate this model again.")
        blocks = np.array([block_of[decision.name] for decision in problem.decisions])
        params = np.bincount(blocks, [float(decision.params) for decision in problem.decisions], known.n_blocks).astype(np.float64)
        keep = 1 - problem.target + owl_keep_scores(shares, self.strength, params)
        if self.parity:
            keep = 1 - np.array(published_sparsities(shares, self.strength, problem.target))
        return SearchResult(project_shares(problem, np.clip(keep, 0, 1)[blocks]))


def owl_keep_scores(outlier_share: FloatArray, strength: float, params: FloatArray) -> FloatArray:
    """Turn outlier shares into centred keep scores.

    outlier_share: (n_blocks,) in [0, 1]. strength: lambda. params: (n_blocks,) parameters that the budget counts.
    Returns (n_blocks,) with range 2*strength and a mean, weighted by params, of 0; zeros if every block ties.
    """
    spread = float(np.ptp(outlier_share))
    if spread == 0:
        return np.zeros(len(outlier_share))
    scores = (outlier_share - outlier_share.min()) / spread * 2 * strength
    centred: FloatArray = scores - np.average(scores, weights=params)
    return centred


def published_sparsities(outlier_share: FloatArray, strength: float, target: float) -> list[float]:
    """Each block's sparsity as the authors' code has it: a plain mean over blocks, and 0.01 for what is not positive.

    Undefined (0 / 0 there) where all blocks tie; then the target. Misses the budget for unequal blocks.
    """
    percent = outlier_share * 100
    spread = float(np.ptp(percent))
    ratios = (percent - percent.min()) * (1 / spread * strength * 2) if spread else np.zeros(len(percent))
    density = ratios - np.mean(ratios) + (1 - target)
    return [float(1 - d) if 1 - d > 0 else 0.01 for d in density]


def outlier_share(linears: Sequence[LinearStats], multiple: float) -> float:
    """D_l of one block: the share of entries |W_ij| * ||x_j|| above `multiple` times their mean over all linears.

    Two passes in chunks of about CHUNK float32 entries: the mean (summed in float64), then the count.
    """
    entries = sum(linear.weight.size for linear in linears)
    mean = math.fsum(chunk.sum(dtype=np.float64) for linear in linears for chunk in _saliency(linear)) / entries
    limit = np.float32(multiple * mean)
    return sum(int(np.count_nonzero(chunk > limit)) for linear in linears for chunk in _saliency(linear)) / entries


def _saliency(linear: LinearStats) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """|W_ij| * sqrt(mean_t x_tj^2), some rows at a time."""
    norm = np.sqrt(linear.input_sq_mean).astype(np.float32)
    rows = max(1, CHUNK // linear.weight.shape[1])
    for start in range(0, len(linear.weight), rows):
        yield np.abs(linear.weight[start : start + rows]) * norm
