"""OWL: blocks with more outliers keep more (Yin et al., "Outlier Weighed Layerwise Sparsity", arXiv:2310.05175).

For block l, over all its linears at once:
    A_ij  = |W_ij| * sqrt(mean_t x_tj^2)          a weight times the norm of its input
    D_l   = #{A > M * mean(A)} / #A               the share of outliers
    r_l   = 2 * lambda * (D_l - min D) / (max D - min D)
    keep_l = (1 - target) + r_l - mean(r)         the kept share of every module of the block

Constants: M = 5 (the commands of the authors' README; their argparse default is 3), lambda = 0.08.

Departures: mean(r) is weighted by the blocks' parameters, so that the budget holds for blocks of unequal size. Shares
outside [0, 1] are clipped, and the projection makes up for that (the authors' code replaces a negative sparsity by
0.01 and misses the budget). On the structured granularity keep_l is the kept share of the block's KV groups and of its
channels; this is an adaptation, since the paper defines unstructured and N:M sparsity only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ffp.allocators.base import CalibrationStats, Heuristic, LinearStats
from ffp.allocators.blockwise import allocate_blocks, block_params, by_block, stretch
from ffp.core.problem import Allocation, FloatArray, PruningProblem

CHUNK = 1 << 20


class Owl(Heuristic):
    """Keeps more of blocks with more outliers among weights times input norms."""

    name: ClassVar[str] = "owl"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "blocks with more outliers keep more"
    citation: ClassVar[str] = "Yin et al., arXiv:2310.05175"
    equation: ClassVar[str] = (
        r"A_{ij} = |W_{ij}|\,\lVert x_j \rVert_2, \qquad D_l = \frac{\#\{A > M\,\bar{A}\}}{\#A}"
        "\n"
        r"r_l = 2\lambda\,\frac{D_l - \min D}{\max D - \min D}, \qquad k_l = 1 - s + r_l - \bar{r}"
    )

    outlier_threshold: float = Field(
        5.0, ge=0, le=1e6, description="M: an outlier exceeds M times the mean of its block."
    )
    max_deviation: float = Field(0.08, ge=0, le=0.5, description="lambda: half the range of the blocks' sparsities.")
    parity: bool = Field(False, description="Whether to use the ratios of the authors' code, see published_sparsities.")

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Turns the share of outliers of each block into its kept share."""
        shares = by_block(problem, stats, lambda linears: outlier_share(linears, self.outlier_threshold))
        if self.parity:
            return allocate_blocks(
                problem, 1 - np.array(published_sparsities(shares, self.max_deviation, problem.target))
            )
        ratios = stretch(shares, self.max_deviation)
        # centred first: DLP adds in the other order, which gives other last digits
        return allocate_blocks(
            problem, 1 - problem.target + (ratios - np.average(ratios, weights=block_params(problem)))
        )


def published_sparsities(shares: FloatArray, max_deviation: float, target: float) -> list[float]:
    """Returns each block's sparsity as the authors' code computes it, with a plain mean over blocks.

    What is not positive becomes 0.01. For blocks of unequal size this misses the budget. Where all blocks tie, which is
    0 / 0 there, every block gets the target.

    Args:
        shares: D_l, the shares of outliers, (n_blocks,) in [0, 1].
        max_deviation: lambda.
        target: Sparsity.
    """
    percent = shares * 100
    spread = float(np.ptp(percent))
    ratios = (percent - percent.min()) * (1 / spread * max_deviation * 2) if spread else np.zeros(len(percent))
    density = ratios - np.mean(ratios) + (1 - target)
    return [float(1 - d) if 1 - d > 0 else 0.01 for d in density]


def outlier_share(linears: Sequence[LinearStats], threshold: float) -> float:
    """Returns D_l of one block: the share of entries |W_ij| * ||x_j|| above `threshold` times their mean.

    Reads chunks of about CHUNK float32 entries twice: for the mean over all linears, summed in float64, and to count.
    """
    entries = sum(linear.weight.size for linear in linears)
    mean = math.fsum(chunk.sum(dtype=np.float64) for linear in linears for chunk in _saliency(linear)) / entries
    limit = np.float32(threshold * mean)
    return sum(int(np.count_nonzero(chunk > limit)) for linear in linears for chunk in _saliency(linear)) / entries


def _saliency(linear: LinearStats) -> Iterator[npt.NDArray[np.float32]]:
    """Yields |W_ij| * sqrt(mean_t x_tj^2), some rows at a time."""
    norm = np.sqrt(linear.input_sq_mean).astype(np.float32)
    rows = max(1, CHUNK // linear.weight.shape[1])
    for start in range(0, len(linear.weight), rows):
        yield np.abs(linear.weight[start : start + rows]) * norm
