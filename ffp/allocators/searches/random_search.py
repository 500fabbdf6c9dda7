"""Random search: Gaussian perturbations of the starting logits, projected, the best of all. The floor for any search.

Every candidate is an independent draw a = a_0 + spread * N(0, I), scored on the same windows, drawn once; what it
cannot do is learn from what it has seen. Source: Bergstra and Bengio (JMLR 2012), on a budgeted allocation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.heuristics.ffn_only import starting_allocation
from ffp.allocators.tracker import Exhausted, Tracker, best_first, check_number, needed
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import logits_of, project


@dataclass(frozen=True)
class RandomSearch:
    """spread: standard deviation of the logits around the start. start: "uniform" or "ffn-only"."""

    spread: float = 0.5
    start: str = "uniform"
    name: str = field(default="random-search", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "spread", self.spread, 1e-6, math.inf)

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
        tracker = Tracker(problem, needed(reward, self.name, "a reward"), budget, method=self.name)
        rng = np.random.default_rng(seed)
        windows = tracker.draw(rng, budget.windows)
        first = starting_allocation(problem, self.start)
        centre = logits_of(problem, first)
        seen: list[Allocation] = []
        scores: list[float] = []
        candidate = first
        for _ in range(tracker.max_rounds):
            try:
                scores += tracker.score([candidate], windows, stage="sample")
            except Exhausted:
                break
            seen.append(candidate)
            tracker.answer(seen[best_first(scores)[0]])
            candidate = project(problem, centre + self.spread * rng.normal(size=len(centre)))
        return tracker.result([seen[i] for i in best_first(scores)])
