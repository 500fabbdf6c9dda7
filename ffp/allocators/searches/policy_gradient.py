"""Policy gradient: REINFORCE on the probabilities that single units stay (Gao et al., arXiv:2406.10576, and code).

Unit u stays with probability p_u, independently of the others. A step samples K masks m_1, ..., m_K and runs the model
with each on the same windows, forward only. With L_k the loss under m_k and b a moving average of the losses,

    g_u = sum_k (L_k - b) (m_ku - p_u) / sqrt(p_u (1 - p_u)) / (K - 1),

which is the score function's gradient times sqrt(p (1 - p)). Adam follows it, with a cosine schedule of its rate. Then
p is projected onto the budgets: p <- clip(p - v, 0, 1), v >= 0 the smallest for which the expected number of units is
within it. Attention has a budget of units and the FFNs have another, as published; they are those of the allocation to
start from. At the end as many units stay as the two pay for, those with the highest p.

At first the mean of p in a decision is its share in that allocation, and p falls along the order of units by `sigmap`
of the authors' code, a sigmoid of standardised scores. Here these are the ranks, since a search does not see scores.

Departures: the published run takes 15,000 steps of 8 x 128 tokens, 31 M forwarded tokens; a search takes the steps
that its budget pays for. The authors' code makes Adam's optimisers but descends without them, which is `adam: false`,
and decays no weights. Candidates are never compensated; a `fisher-table` to start from may be.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import SearchBudget
from ffp.allocators.start import Start, StartedSearch, starting_allocation
from ffp.allocators.tracker import Tracker
from ffp.allocators.unit_masks import best_gates, by_decision, is_noted
from ffp.core.problem import Allocation, FloatArray, PruningProblem

BETAS = (0.5, 0.999)  # of Adam
SMALL = 1e-7  # added to p and 1 - p below the root


class PolicyGradient(StartedSearch):
    """Learns by REINFORCE with which probability each unit stays."""

    name: ClassVar[str] = "policy-gradient"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "REINFORCE on Bernoulli masks of all units"
    citation: ClassVar[str] = "Gao et al., arXiv:2406.10576"
    takes_gradients: ClassVar[bool] = False
    equation: ClassVar[str] = (
        r"m_{ku} \sim \mathrm{Bernoulli}(p_u), \qquad "
        r"g_u = \frac{1}{K - 1} \sum_{k=1}^{K} (L_k - b)\,\frac{m_{ku} - p_u}{\sqrt{p_u (1 - p_u)}}, \qquad "
        r"p \leftarrow \mathrm{clip}(p - v, 0, 1)"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})

    samples: int = Field(2, ge=2, le=1000, description="K: masks sampled in a step.")
    step_windows: int = Field(
        1, ge=1, le=1_000_000, description="Windows of the search text that each mask of a step is run on."
    )
    learning_rate: float = Field(2e-3, ge=1e-12, le=1, description="At first; it falls to 0 as a cosine.")
    adam: bool = Field(True, description="Whether Adam follows the gradient; otherwise plain descent.")
    memory: float = Field(0.8, ge=0, le=0.999, description="Weight of earlier steps in the baseline b.")
    start: Start = Field("uniform", description="The allocation to start from.")

    @property
    def scores_compensated(self) -> bool:
        """Whether its start prices removals; its own candidates are gates."""
        return self.starts_from_table

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a step after the start."""
        return self.windows_after_start(budget, n_windows) >= self.samples * min(self.step_windows, n_windows)

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Takes steps until the budget is spent; answers with the start where it pays for none."""
        from ffp.allocators.descent import Descent

        problem = tracker.problem
        first = starting_allocation(tracker, rng, self.start)
        windows = min(self.step_windows, tracker.reward.n_windows)
        steps, baseline = tracker.windows_left // (self.samples * windows), math.nan
        if not steps:
            return tracker.finish([first])
        descent = Descent(to_budget(problem, first_probabilities(problem, first), first), BETAS)
        for step in range(steps):
            if is_noted(step, steps):
                tracker.answer_gated(by_decision(problem, best_gates(problem, descent.x, first)))
            masks = (rng.random((self.samples, len(descent.x))) < descent.x).astype(np.float64)
            losses = self._losses(tracker, masks, tracker.draw(rng, windows))
            baseline = self._follow(baseline, float(losses.mean()))
            gradient, rate = policy_gradient(descent.x, masks, losses - baseline), self._rate(step / steps)
            if self.adam:
                descent.step(gradient, rate)
            else:
                descent.x -= rate * gradient
            descent.x[:] = to_budget(problem, descent.x, first)
        return tracker.finish_gated(by_decision(problem, best_gates(problem, descent.x, first)))

    def _losses(self, tracker: Tracker, masks: FloatArray, windows: tuple[int, ...]) -> FloatArray:
        """Excess losses over the dense model under each mask, (K,)."""
        gates = [by_decision(tracker.problem, mask) for mask in masks]
        return np.array([-math.log(tracker.gated(each, windows, stage="policy")) for each in gates])

    def _follow(self, baseline: float, mean: float) -> float:
        """The moving average of the steps' mean losses; the first one is the average so far."""
        return mean if math.isnan(baseline) else self.memory * baseline + (1 - self.memory) * mean

    def _rate(self, progress: float) -> float:
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def policy_gradient(p: FloatArray, masks: FloatArray, advantages: FloatArray) -> FloatArray:
    """Returns the estimate g of the equation above, (n_units,).

    Args:
        p: Probabilities, (n_units,).
        masks: Sampled with these probabilities, 0 or 1, (K, n_units).
        advantages: L_k - b, (K,).
    """
    scores = (masks - p) / np.sqrt((p + SMALL) * (1 - p + SMALL))
    gradient: FloatArray = advantages @ scores / (len(masks) - 1)
    return gradient


def first_probabilities(problem: PruningProblem, allocation: Allocation) -> FloatArray:
    """Returns probabilities that fall along each decision's order, about its kept share, within [0, 1], (n_units,)."""
    found = []
    for decision, keep in allocation.items(problem):
        place = -np.arange(decision.n_units, dtype=np.float64)
        curve = 1 / (1 + np.exp(-(place - place.mean()) / max(float(place.std()), 1e-12)))
        found.append(np.clip(keep / decision.n_units + curve - curve.mean(), 0, 1))
    return np.concatenate(found)


def to_budget(problem: PruningProblem, p: FloatArray, allocation: Allocation) -> FloatArray:
    """Returns the nearest probabilities that expect no more units of a kind of module than an allocation keeps.

    Units of decisions that have to stay whole have probability 1.

    Args:
        problem: What the allocation answers.
        p: (n_units,), may lie outside [0, 1].
        allocation: The budgets.

    Returns:
        (n_units,), within [0, 1].
    """
    least = np.repeat((problem.min_keep == problem.n_units).astype(np.float64), problem.n_units)
    kinds, found = np.repeat([decision.module for decision in problem.decisions], problem.n_units), p.copy()
    for kind in np.unique(kinds):
        mine = kinds == kind
        budget = sum(keep for decision, keep in allocation.items(problem) if decision.module == kind)
        found[mine] = _shift(p[mine], least[mine], budget)
    return found


def _shift(p: FloatArray, least: FloatArray, budget: int) -> FloatArray:
    """Returns clip(p - v, least, 1) for the smallest v >= 0 by which its sum is within the budget."""
    low, high = 0.0, max(1.0, float(p.max()))
    if np.clip(p, least, 1).sum() <= budget:
        high = 0.0
    for _ in range(60 if high else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(p - middle, least, 1).sum() > budget else (low, middle)
    return np.clip(p - high, least, 1)
