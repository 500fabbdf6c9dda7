"""DLP: blocks with a smaller median saliency keep more (Chen et al., "Dynamic Layerwise Pruning", arXiv:2505.23807).

For block l, over all its linears at once:
    A_ij  = |W_ij| * sqrt(mean_t x_tj^2)            Wanda's score
    u_l   = 1 - median(A) / sum over blocks of it   relative importance
    keep_l = (1 - target) + 2 * alpha * (u_l - min u) / (max u - min u) - mean

Constants: alpha = 0.04, 0.10 and 0.15 at 50, 60 and 70 % (the authors' settings), on straight lines between and level
outside of them. Departs: the mean is weighted by the blocks' parameters, and shares outside [0, 1] are clipped and made
up for by the projection that all methods use (the authors' code replaces a negative sparsity by 0.01). The paper
defines unstructured sparsity; on heads and channels it is an adaptation, like OWL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, LinearStats, Reward, SearchBudget, SearchResult
from ffp.allocators.blockwise import allocate_blocks, by_block, spread_keep
from ffp.allocators.tracker import check_number, needed
from ffp.core.problem import PruningProblem

PUBLISHED = ((0.5, 0.6, 0.7), (0.04, 0.10, 0.15))  # targets, alphas


@dataclass(frozen=True)
class Dlp:
    """strength: alpha, half the width of the range of the blocks' sparsities; 0 for the published one."""

    strength: float = 0.0
    name: str = field(default="dlp", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "strength", self.strength, 0, 0.5)

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
        medians = by_block(problem, needed(stats, self.name, "calibration statistics"), median_saliency)
        strength = self.strength or float(np.interp(problem.target, *PUBLISHED))
        return SearchResult(allocate_blocks(problem, spread_keep(problem, -medians, strength)))


def median_saliency(linears: Sequence[LinearStats]) -> float:
    """The median of |W_ij| * ||x_j|| over all linears; the lower one of two, as torch has it."""
    entries = [(np.abs(x.weight) * np.sqrt(x.input_sq_mean).astype(np.float32)).ravel() for x in linears]
    together = np.concatenate(entries)
    middle = (len(together) - 1) // 2
    return float(np.partition(together, middle)[middle])
