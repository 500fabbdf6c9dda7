"""DLP: blocks with a smaller median saliency keep more (Chen et al., "Dynamic Layerwise Pruning", arXiv:2505.23807).

For block l, over all its linears at once:
    A_ij  = |W_ij| * sqrt(mean_t x_tj^2)            Wanda's score
    u_l   = 1 - median(A) / sum over blocks of it   relative importance
    keep_l = (1 - target) + 2 * alpha * (u_l - min u) / (max u - min u) - mean

Constants: alpha = 0.04, 0.10 and 0.15 at 50, 60 and 70 % (the authors' settings), interpolated linearly between and
constant outside.

Departures: the mean is weighted by the blocks' parameters. Shares outside [0, 1] are clipped, and the projection makes
up for that (the authors' code replaces a negative sparsity by 0.01). The paper defines unstructured sparsity; on heads
and channels the method is an adaptation, like OWL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import CalibrationStats, Heuristic, LinearStats
from ffp.allocators.blockwise import allocate_blocks, block_params, by_block, stretch
from ffp.core.problem import Allocation, PruningProblem

PUBLISHED = ((0.5, 0.6, 0.7), (0.04, 0.10, 0.15))  # targets, alphas


class Dlp(Heuristic):
    """Keeps more of blocks whose median saliency is smaller."""

    name: ClassVar[str] = "dlp"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "blocks with a smaller median saliency keep more"
    citation: ClassVar[str] = "Chen et al., arXiv:2505.23807"
    equation: ClassVar[str] = (
        r"A_{ij} = |W_{ij}|\,\lVert x_j \rVert_2, \qquad "
        r"u_l = 1 - \frac{\mathrm{median}(A_l)}{\sum_m \mathrm{median}(A_m)}"
        "\n"
        r"k_l = 1 - s + 2\alpha\,\frac{u_l - \min u}{\max u - \min u} - \text{mean}"
    )

    max_deviation: float = Field(
        0.0, ge=0, le=0.5, description="alpha: half the range of the blocks' sparsities; 0 for the published value."
    )

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Turns the median saliency of each block into its kept share."""
        medians = by_block(problem, stats, median_saliency)
        ratios = stretch(-medians, self.max_deviation or float(np.interp(problem.target, *PUBLISHED)))
        keep = 1 - problem.target + ratios - np.average(ratios, weights=block_params(problem))
        return allocate_blocks(problem, keep)


def median_saliency(linears: Sequence[LinearStats]) -> float:
    """Returns the median of |W_ij| * ||x_j|| over all linears; the lower one of two, as in torch."""
    entries = [(np.abs(x.weight) * np.sqrt(x.input_sq_mean).astype(np.float32)).ravel() for x in linears]
    together = np.concatenate(entries)
    middle = (len(together) - 1) // 2
    return float(np.partition(together, middle)[middle])
