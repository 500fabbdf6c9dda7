"""CMA-ES with a diagonal covariance over the logits, from the `cmaes` package: the standard black-box optimiser.

Each generation is scored on fresh windows of its own, shared by its members (ranks are all that CMA-ES uses). The
mean is the answer's first candidate, since single samples of the last generation carry the sampling noise.
Source: Ros and Hansen (PPSN 2008), separable CMA-ES, which suits 2L decisions and few evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from cmaes import SepCMA

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.heuristics.ffn_only import starting_allocation
from ffp.allocators.tracker import Exhausted, Tracker, best_first, check_number, needed
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import logits_of, project


@dataclass(frozen=True)
class CmaEs:
    """sigma: initial standard deviation of the logits. population: candidates a generation, 0 for the package's own
    4 + 3 ln(n_decisions). start: "uniform" or "ffn-only".
    """

    sigma: float = 0.3
    population: int = 0
    start: str = "uniform"
    name: str = field(default="cma-es", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "sigma", self.sigma, 1e-6, math.inf)
        check_number(self.name, "population", self.population, 0, 10_000, whole=True)

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
        first = starting_allocation(problem, self.start)
        optimiser = SepCMA(logits_of(problem, first), self.sigma, seed=seed, population_size=self.population or None)
        winners: list[Allocation] = [first]
        for _ in range(tracker.max_rounds):
            actions = [optimiser.ask() for _ in range(optimiser.population_size)]
            candidates = [project(problem, action) for action in actions]
            try:
                scores = tracker.score(candidates, tracker.draw(rng, budget.windows), stage="generation")
            except Exhausted:
                break
            optimiser.tell([(action, -score) for action, score in zip(actions, scores, strict=True)])
            winners.insert(0, candidates[best_first(scores)[0]])
            tracker.answer(project(problem, optimiser.mean))
        return tracker.result([project(problem, optimiser.mean), *winners])
