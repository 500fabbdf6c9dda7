"""Uniform: every decision keeps the same share. The yardstick that an allocation has to beat."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import project_shares


def uniform_allocation(problem: PruningProblem) -> Allocation:
    """The same kept share, 1 - target, of every decision, up to whole units."""
    return project_shares(problem, np.full(len(problem.decisions), 1 - problem.target))


@dataclass(frozen=True)
class Uniform:
    """keep_i / n_i = 1 - target for every decision i; nothing is evaluated or drawn."""

    name: str = field(default="uniform", init=False)
    version: str = field(default="1", init=False)

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
        return SearchResult(uniform_allocation(problem))
