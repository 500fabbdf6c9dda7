"""Random search: Gaussian perturbations of the starting logits. The least that any search has to beat.

Every candidate is an independent draw a = a_0 + sigma * N(0, I), projected and scored on the same windows, which are
drawn once. The search cannot learn from what it has seen. Source: Bergstra and Bengio (JMLR 2012).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import SearchBudget
from ffp.allocators.start import Start, StartedSearch, starting_allocation
from ffp.allocators.tracker import Exhausted, Tracker, best_first
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import logits_of, project


class RandomSearch(StartedSearch):
    """Answers with the best of independent draws."""

    name: ClassVar[str] = "random-search"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "the best of independent draws"
    citation: ClassVar[str] = "Bergstra and Bengio, JMLR 13 (2012)"
    takes_gradients: ClassVar[bool] = False
    equation: ClassVar[str] = (
        r"a^{(n)} = a_0 + \sigma\,\varepsilon^{(n)}, \quad \varepsilon^{(n)} \sim \mathcal{N}(0, I), \qquad "
        r"\hat{k} = \arg\max_n r\left(\Pi(a^{(n)})\right)"
    )

    spread: float = Field(0.5, ge=1e-6, le=100, description="sigma: standard deviation of the logits around the start.")
    start: Start = Field("uniform", description="The first candidate, whose logits are a_0.")

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a draw beside the start."""
        return self.windows_after_start(budget, n_windows) >= 2 * budget.windows

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Scores independent draws until the budget is spent; answers with the start where it pays for none."""
        problem = tracker.problem
        windows = tracker.draw(rng, tracker.budget.windows)
        candidate = starting_allocation(tracker, rng, self.start)
        centre = logits_of(problem, candidate)
        seen: list[Allocation] = []
        scores: list[float] = []
        for _ in range(tracker.max_rounds):
            try:
                scores += tracker.score([candidate], windows, stage="sample")
            except Exhausted:
                break
            seen.append(candidate)
            tracker.answer(seen[best_first(scores)[0]])
            candidate = project(problem, centre + self.spread * rng.normal(size=len(centre)))
        return tracker.finish([seen[i] for i in best_first(scores)] or [candidate])
