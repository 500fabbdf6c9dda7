"""AlphaPruning: blocks with heavier-tailed spectra keep more (Lu et al., NeurIPS 2024, arXiv:2410.10912).

For each linear, lambda_1 <= ... <= lambda_n the eigenvalues of W^T W and k the number of those from lambda_min up:
    alpha = 1 + k / sum log(lambda_i / lambda_min)                   Hill's estimator
lambda_min is the eigenvalue, among those within [0.95, 1.5] times the peak of their log-histogram, for which the
largest distance between the empirical and the fitted distribution is smallest. A block's alpha is the mean over its
linears. Its sparsity, with c so that the budget holds, is
    s_l = c * (1 - epsilon + 2 * epsilon * (alpha_l - min alpha) / (max alpha - min alpha))

Constants: epsilon = 0.3 (the authors' for Wanda; 0.2 for SparseGPT, 0.5 for magnitude), 100 bins.

Departures: the authors' code compares the lower bound's logarithm with eigenvalues, so that nearly all pass it;
`parity` does the same. Sparsities above what a block can give are clipped, and the projection makes up for that.
Eigenvalues come from the smaller Gram matrix, not from singular values, so the smallest ones lose some digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ffp.allocators.base import CalibrationStats, Heuristic, LinearStats
from ffp.allocators.blockwise import allocate_blocks, block_params, by_block
from ffp.core.problem import Allocation, FloatArray, PruningProblem

BINS = 100
LOWEST, HIGHEST = 0.95, 1.5


class AlphaPruning(Heuristic):
    """Keeps more of blocks whose weights have heavier-tailed spectra. Reads weights only, no inputs."""

    name: ClassVar[str] = "alphapruning"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "blocks with heavier-tailed spectra keep more"
    citation: ClassVar[str] = "Lu et al., arXiv:2410.10912"
    equation: ClassVar[str] = (
        r"\alpha = 1 + \frac{k}{\sum_{i} \ln(\lambda_i / \lambda_{\min})}, \qquad "
        r"s_l = c\left(1 - \varepsilon + 2\varepsilon\,\frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha}\right)"
    )

    epsilon: float = Field(0.3, ge=0, le=1, description="Half the width of the blocks' range of relative sparsities.")
    parity: bool = Field(False, description="Whether to choose lambda_min as the authors' code does.")

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Turns the mean exponent of each block's spectra into its sparsity."""

        def mean_alpha(linears: Sequence[LinearStats]) -> float:
            return float(np.mean([hill_alpha(spectrum(x.weight), parity=self.parity) for x in linears]))

        alphas = by_block(problem, stats, mean_alpha)
        spread = float(np.ptp(alphas))
        relative = (
            1 - self.epsilon + 2 * self.epsilon * (alphas - alphas.min()) / spread if spread else np.ones_like(alphas)
        )
        scale = problem.target / np.average(relative, weights=block_params(problem))
        return allocate_blocks(problem, 1 - scale * relative)


def spectrum(weight: npt.NDArray[np.float32]) -> FloatArray:
    """Returns the positive squared singular values of a matrix, ascending, (at most min(shape),)."""
    small = weight if weight.shape[0] <= weight.shape[1] else weight.T
    values = np.linalg.eigvalsh(small @ small.T).astype(np.float64)
    positive: FloatArray = values[values > 0]
    return positive


def hill_alpha(values: FloatArray, *, parity: bool = False) -> float:
    """Returns the exponent of the power law that fits the upper end of a spectrum.

    Args:
        values: (n,), ascending and positive.
        parity: Whether to take the authors' lower bound, a logarithm.

    Returns:
        The exponent, above 1; 1 where no eigenvalue can be a threshold.
    """
    logs = np.log10(values)
    counts, edges = np.histogram(logs, BINS)
    peak = 10 ** edges[counts.argmax()]
    lowest = np.log10(LOWEST * peak) if parity else LOWEST * peak
    starts = np.flatnonzero((values[:-1] >= lowest) & (values[:-1] <= HIGHEST * peak))
    best_alpha, best_distance = 1.0, np.inf
    for i in starts:
        tail, n = values[i:], len(values) - i
        total = float(np.log(tail / tail[0]).sum())
        if total <= 0:
            continue
        alpha = 1 + n / total
        distance = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(n) / n).max()
        if distance < best_distance:
            best_alpha, best_distance = alpha, distance
    return best_alpha
