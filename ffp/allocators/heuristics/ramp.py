"""Ramp: the blocks' sparsities are an arithmetic progression (Huang et al., "ATP", arXiv:2502.14770).

    s_l = target + beta * (l - (L + 1) / 2),  l = 1..L

Constants: beta = `slope` / (L - 1), so that the last block loses `slope` more than the first, whatever L is. The
authors search beta on a grid by perplexity on WikiText-2; here it is one fixed number, and other values are variants,
so that the method needs no evaluations. Departs: the middle is the blocks' mean weighted by parameters, and shares
outside [0, 1] are clipped and made up for by the projection that all methods use.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.blockwise import allocate_blocks, block_params
from ffp.allocators.tracker import check_number
from ffp.core.problem import PruningProblem


@dataclass(frozen=True)
class Ramp:
    """slope: sparsity of the last block minus that of the first; negative prunes early blocks more."""

    slope: float = 0.2
    name: str = field(default="ramp", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "slope", self.slope, -2, 2)

    def allocate(
        self,
        problem: PruningProblem,
        *,
        stats: CalibrationStats | None,
        reward: Reward | None,
        budget: SearchBudget,
        seed: int,
    ) -> SearchResult:
        """Answer `problem`; BudgetError if its target is infeasible."""
        params = block_params(problem)
        steps = np.arange(len(params)) / max(len(params) - 1, 1)
        removed = problem.target + self.slope * (steps - np.average(steps, weights=params))
        return SearchResult(allocate_blocks(problem, 1 - removed))
