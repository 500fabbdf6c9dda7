"""AlphaPruning: blocks with heavier-tailed spectra keep more (Lu et al., NeurIPS 2024, arXiv:2410.10912).

For each linear, lambda_1 <= ... <= lambda_n the eigenvalues of W^T W and k the number of those from lambda_min up:
    alpha = 1 + k / sum log(lambda_i / lambda_min)                   Hill's estimator
with the lambda_min, among the eigenvalues within [0.95, 1.5] times the peak of their log-histogram, that makes the
largest distance between the empirical and the fitted distribution smallest. A block's alpha is the mean over its
linears, and its sparsity, with c so that the budget holds,
    s_l = c * (1 - epsilon + 2 * epsilon * (alpha_l - min alpha) / (max alpha - min alpha))

Constants: epsilon = 0.3 (the authors' for Wanda; 0.2 for SparseGPT, 0.5 for magnitude), 100 bins. Departs: the
authors' code compares the lower bound's logarithm with eigenvalues, so that nearly all pass it; `parity` does the
same. Sparsities above what a block can give are clipped and made up for by the projection that all methods use.
Eigenvalues come from the smaller Gram matrix, not from singular values, which costs their smallest ones some digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, LinearStats, Reward, SearchBudget, SearchResult
from ffp.allocators.blockwise import allocate_blocks, block_params, by_block
from ffp.allocators.tracker import check_number, check_switch, needed
from ffp.core.problem import FloatArray, PruningProblem

BINS = 100
LOWEST, HIGHEST = 0.95, 1.5


@dataclass(frozen=True)
class AlphaPruning:
    """epsilon: half the width of the relative range of sparsities. parity: see above. Data-free; draws nothing."""

    epsilon: float = 0.3
    parity: bool = False
    name: str = field(default="alphapruning", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "epsilon", self.epsilon, 0, 1)
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

        def mean_alpha(linears: Sequence[LinearStats]) -> float:
            return float(np.mean([hill_alpha(spectrum(x.weight), parity=self.parity) for x in linears]))

        alphas = by_block(problem, needed(stats, self.name, "calibration statistics"), mean_alpha)
        spread = float(np.ptp(alphas))
        relative = 1 - self.epsilon + 2 * self.epsilon * (alphas - alphas.min()) / spread if spread else alphas * 0 + 1
        scale = problem.target / np.average(relative, weights=block_params(problem))
        return SearchResult(allocate_blocks(problem, 1 - scale * relative))


def spectrum(weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> FloatArray:
    """Squared singular values, ascending, those that are not positive left out: (at most min(shape),)."""
    small = weight if weight.shape[0] <= weight.shape[1] else weight.T
    values = np.linalg.eigvalsh(small @ small.T).astype(np.float64)
    positive: FloatArray = values[values > 0]
    return positive


def hill_alpha(values: FloatArray, *, parity: bool = False) -> float:
    """The exponent of the power law that fits the upper end of a spectrum, (n,) ascending and positive.

    Above 1; 1 where no eigenvalue can be a threshold.
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
