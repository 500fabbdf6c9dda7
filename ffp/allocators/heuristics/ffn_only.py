"""FFN-only: attention stays whole and every FFN keeps the same share. A heuristic that is hard to beat on small models.

Where the FFNs cannot give enough, attention gives too: see ffp.budget for how wishes off the budget move together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import project_shares

STARTS = ("uniform", "ffn-only")


def ffn_only_allocation(problem: PruningProblem) -> Allocation:
    """Kept share 1 of every attention, and of every FFN what the budget leaves."""
    attention = np.array([decision.module == "attention" for decision in problem.decisions])
    params = problem.n_units * problem.params_per_unit
    given = problem.target * problem.total_params / max(int(params[~attention].sum()), 1)
    return project_shares(problem, np.where(attention, 1.0, 1.0 - given))


def starting_allocation(problem: PruningProblem, start: str) -> Allocation:
    """Where a search begins: one of STARTS; ConfigError otherwise."""
    if start not in STARTS:
        raise ConfigError(f"start = {start!r} is none of {', '.join(STARTS)}. Correct it in the grid's variants.")
    return uniform_allocation(problem) if start == "uniform" else ffn_only_allocation(problem)


@dataclass(frozen=True)
class FfnOnly:
    """Nothing is evaluated or drawn."""

    name: str = field(default="ffn-only", init=False)
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
        return SearchResult(ffn_only_allocation(problem))
