"""CMA-ES with a diagonal covariance over the logits, from the `cmaes` package: a standard black-box optimiser.

Each generation is scored on fresh windows, shared by its members; CMA-ES uses ranks only. The mean is the first
contender, since single samples of the last generation carry the sampling noise. Source: Ros and Hansen (PPSN 2008),
separable CMA-ES, which suits two decisions a block and few evaluations.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from ffp.allocators.base import SearchBudget
from ffp.allocators.start import Start, StartedSearch, starting_allocation
from ffp.allocators.tracker import Exhausted, Tracker, best_first
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import logits_of, project


class CmaEs(StartedSearch):
    """Adapts a normal distribution over logits to the best members of each generation."""

    name: ClassVar[str] = "cma-es"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "separable CMA-ES over logits"
    citation: ClassVar[str] = "Ros and Hansen, PPSN 2008"
    takes_gradients: ClassVar[bool] = False
    equation: ClassVar[str] = (
        r"a^{(n)} \sim \mathcal{N}(m, \sigma^2 C), \quad C \text{ diagonal}, \qquad "
        r"m \leftarrow \sum_{i \le \mu} w_i\,a^{(i:\lambda)}"
    )

    sigma: float = Field(0.3, ge=1e-6, le=100, description="sigma: initial standard deviation of the logits.")
    population: int = Field(
        0, ge=0, le=10_000, description="lambda: candidates a generation, at least 2; 0 for 4 + 3 ln(n_decisions)."
    )
    start: Start = Field("uniform", description="The allocation whose logits are the first mean.")

    @field_validator("population")
    @classmethod
    def _has_losers(cls, population: int) -> int:
        if population == 1:
            raise ValueError("a generation of 1 has nothing to select from. Give at least 2, or 0 for the usual size")
        return population

    def check(self, problem: PruningProblem) -> None:
        """Refuses problems of one decision, whose only answer is uniform."""
        if (n := len(problem.decisions)) < 2:
            raise ConfigError(f"cma-es searches at least 2 decisions, but the model has {n}. Take uniform.")

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a generation after the start."""
        size = self.population or 4 + int(3 * math.log(len(problem.decisions)))  # as in cmaes
        return self.windows_after_start(budget, n_windows) >= size * budget.windows

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Runs generations until the budget is spent."""
        from cmaes import SepCMA

        problem = tracker.problem
        first = starting_allocation(tracker, rng, self.start)
        size = self.population or None
        optimiser = SepCMA(logits_of(problem, first), self.sigma, seed=tracker.seed, population_size=size)
        winners: list[Allocation] = [first]
        for _ in range(tracker.max_rounds):
            actions = [optimiser.ask() for _ in range(optimiser.population_size)]
            candidates = [project(problem, action) for action in actions]
            try:
                scores = tracker.score(candidates, tracker.draw(rng, tracker.budget.windows), stage="generation")
            except Exhausted:
                break
            optimiser.tell([(action, -score) for action, score in zip(actions, scores, strict=True)])
            winners.insert(0, candidates[best_first(scores)[0]])
            tracker.answer(project(problem, optimiser.mean))
        return tracker.finish([project(problem, optimiser.mean), *winners])
