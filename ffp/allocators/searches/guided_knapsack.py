"""Guided knapsack: solve the knapsack of costs, measure them again at the answer, and so on.

A `fisher-table` prices all removals once, at the dense model, as if they did not depend on each other. This search does
so at the allocation that it answers. One backward pass there tells, for each decision i and each number k of its units,
what it would cost to keep k instead of k_i, in two ways:

- By gates on all units, with d_it(k) the derivative of the loss of token t in the gates between k_i and k, as a mean
  over tokens:
      local_i(k) = E_t d_it(k) + E_t d_it(k)^2 / 2.
  In a compensated search a gate moves the refitted weight, see models/gates.RefitCurveGate, so that costs are those of
  the compensated model. Exact close by, but it has the noise of few tokens.
- By Kronecker factors, see `fisher-table`, whose gradients are those of the pruned model:
      table_i(k) = tr(S_i dW_i(k) G_i dW_i(k)^T) / 2.
  Less noise, and it holds further away.

Their mean needs no bound on a step. It is averaged over steps, older ones with less weight, and the exact optimum of
the sum over decisions is the next allocation. Every step draws fresh windows of the search text. The first one is the
table of the dense model. The last answers are compared on the selection text.

A step costs three forwards of its windows (one forward, one backward counted as two). As in FastForward (Yuan et al.,
arXiv:2511.18977) one action is the whole allocation, and it meets the budget exactly; nothing is sampled. Related
methods: SPDY (arXiv:2201.13096) and ZipLM (arXiv:2302.04089) solve the knapsack for costs that were measured once; Kwon
et al. (arXiv:2204.09656) rank single units by the Fisher information of their gates, at the dense model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.start import cheapest, table_allocation
from ffp.allocators.tracker import GRADIENT_FORWARDS, Arrays, Tracker, check_shapes
from ffp.core.knapsack import levels
from ffp.core.problem import Allocation, CostCurve, PruningProblem

MIN_STEPS = 5  # a step takes fewer windows where the budget pays for fewer steps


class GuidedKnapsack(Search):
    """Minimises the sum of costs that are measured at its own answers."""

    name: ClassVar[str] = "guided-knapsack"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "exact knapsack of costs, measured again at its answers"
    citation: ClassVar[str] = "ours, after Yuan et al., arXiv:2511.18977"
    equation: ClassVar[str] = (
        r"c_i(k) = (1-s)\left(\mathbb{E}_t\, d_{it}(k) + \tfrac12 \mathbb{E}_t\, d_{it}(k)^2\right) + "
        r"\tfrac{s}{2} \operatorname{tr}\left(S_i\,\Delta W_i(k)\,G_i\,\Delta W_i(k)^\top\right)"
        "\n"
        r"k \leftarrow \arg\min_{k'} \sum_i \bar c_i(k'_i)"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})
    fitnesses: ClassVar[tuple[str, ...]] = ("ppl",)  # its gradients are of the perplexity
    learns_policy: ClassVar[bool] = True
    reads_grams: ClassVar[bool] = True

    step_windows: int = Field(
        4, ge=1, le=1_000_000, description="Windows of the search text behind a step, if the budget allows."
    )
    memory: float = Field(0.8, ge=0, le=1, description="Weight of the step before in the averaged costs.")
    table_share: float = Field(0.5, ge=0, le=1, description="s: weight of the costs by Kronecker factors.")
    rescore: bool = Field(True, description="Whether finalists are compared on the selection text.")
    zero_shot: bool = Field(False, description="Whether to answer by the initial policy's costs, without a search.")

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a step on one window, after the table where there is no policy."""
        least = GRADIENT_FORWARDS if has_policy else 2 * GRADIENT_FORWARDS
        return (self.zero_shot and has_policy) or budget.all_windows >= least

    def policy_sizes(self, problem: PruningProblem) -> tuple[int, ...]:
        """Returns at how many numbers of units each decision has a cost."""
        return tuple(len(levels(decision.n_units)) for decision in problem.decisions)

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Takes steps until the budget is spent."""
        costs = Costs(tracker.problem, self)
        windows = self._windows(tracker)
        if tracker.initial_policy:
            costs.load(tracker.initial_policy)
            answers = [costs.cheapest()]
        elif tracker.windows_left < GRADIENT_FORWARDS * windows:
            answers = [ffn_only_allocation(tracker.problem)]
        else:
            answers = [table_allocation(tracker, rng, windows)]
        tracker.answer(answers[0])
        if not (self.zero_shot and tracker.initial_policy):
            while tracker.windows_left >= GRADIENT_FORWARDS * windows:
                costs.add(tracker.cost_curves(answers[-1], tracker.draw(rng, windows), stage="gates"))
                answers.append(costs.cheapest())
                tracker.answer(answers[-1])
        tracker.policy = costs.to_arrays()
        return tracker.finish(answers[::-1], None if self.rescore else 1)

    def _windows(self, tracker: Tracker) -> int:
        """Windows behind a step."""
        affordable = tracker.windows_left // GRADIENT_FORWARDS
        return max(1, min(self.step_windows, tracker.reward.n_windows, affordable // MIN_STEPS))


class Costs:
    """Averaged costs of all numbers of units of all decisions: what the search has learned."""

    def __init__(self, problem: PruningProblem, settings: GuidedKnapsack):
        self._problem, self._memory, self._share = problem, settings.memory, settings.table_share
        self._levels = [levels(decision.n_units) for decision in problem.decisions]
        self._costs, self._weight = np.zeros(sum(len(each) for each in self._levels)), 0.0

    def add(self, curves: Sequence[CostCurve]) -> None:
        """Averages one more step into the costs. A curve's constant does not matter."""
        local = np.concatenate([curve.slope + curve.curvature for curve in curves])
        table = np.concatenate([curve.table for curve in curves])
        before = self._memory * self._weight
        self._weight = before + 1
        self._costs = (before * self._costs + (1 - self._share) * local + self._share * table) / self._weight

    def cheapest(self) -> Allocation:
        """Returns the allocation with the least sum of costs."""
        curves = np.split(self._costs, np.cumsum([len(each) for each in self._levels])[:-1])
        return cheapest(self._problem, list(zip(self._levels, curves, strict=True)))

    def to_arrays(self) -> Arrays:
        """Returns the averages as arrays, for `load`."""
        return {"costs": self._costs, "weight": np.array(self._weight)}

    def load(self, policy: Arrays) -> None:
        """Takes the averages of another search.

        Raises:
            ConfigError: They are not of such decisions.
        """
        check_shapes(policy, self.to_arrays())
        self._costs, self._weight = np.asarray(policy["costs"], dtype=np.float64), float(policy["weight"])
