"""FastForward, guided: the single-step policy follows gate gradients instead of sampled rewards.

As in FastForward (Yuan et al., arXiv:2511.18977) one action is the whole allocation, the policy never sees the budget
and a projection makes its action feasible. What differs is how the policy learns. A sampled reward is one number
about all decisions; one backward pass through a gate on every unit tells, for each decision, what the units at its
threshold are worth. With z_i the significant part of decision i's violation of the budget's optimality condition
("all decisions are worth the same per parameter"), in robust standard scores (see Worths.scores),
    a_i += step_t * z_i,          step_t = step * (1 + cos(pi * t / T)) / 2
where a are the policy's mean logits, T steps in all: a deterministic policy gradient through straight-through gates.

- The slope of the loss in a gate says little of removing a whole KV group; the second-order term, which the same
  backward pass yields as empirical Fisher information, makes it a good prediction. Factors of that term: FINE and
  COARSE, from a comparison with true changes of the loss on SmolLM2-135M (see the documentation of the searches).
- Every step draws fresh windows of the search text, a fixed set is over-fitted within a few steps, and the worths are
  averaged over steps. What lies within the noise of the average does not move: on few tokens, most blocks' FFNs do not
  differ significantly, and a search that follows their differences wanders.
- The answer is sought among the running averages of the latest iterates (Polyak and Ruppert), compared on common
  windows, and then on the selection text.

A step costs three forwards of its windows (one forward, one backward counted as two). Relatives: DISP-LLM
(arXiv:2410.11988) trains a hypernetwork through such gates for thousands of steps; Kwon et al. (arXiv:2204.09656) rank
single units by the Fisher information of their gates, once, at the dense model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ffp.budget import logits_of, project
from ffp.search.base import (
    Tracker,
    best_first,
    check_number,
    check_shapes,
    check_switch,
    needed,
    started,
)
from ffp.search.ffn_only import starting_allocation
from ffp.types import Allocation, CalibrationStats, FloatArray, PruningProblem, Reward, SearchBudget, SearchResult

FORWARDS_A_STEP = 3
CLIP = 3.0  # standard scores
LIMIT = 3.0  # logits of the policy, so that a full decision comes back in time
FINE, COARSE = np.array([0.5, 0.5]), np.array([1.0, 0.4])  # factors of the curvature term, inside and outside
MIN_SIGNAL = 0.1  # share of the observed variance that is taken for signal at the least


@dataclass(frozen=True)
class FastForwardGuided:
    """step: logits that a decision one standard score off moves at first. memory: of the averaged worths. average:
    share of the steps, the latest, whose iterates are averaged. step_windows: windows of the search text behind a step.
    contenders: share of the budget set aside to compare averages with each other. spread: standard deviation of the
    logits of a sampled action, at which the gradient is taken instead of at the mean. curvature, rescore: whether the
    second-order term counts, and whether finalists meet on the selection text. zero_shot: answer with the policy handed
    over (the grid's `init`), without a search. start: "uniform" or "ffn-only", where no policy is given.
    """

    step: float = 0.8
    memory: float = 0.5
    average: float = 0.5
    step_windows: int = 2
    contenders: float = 0.125
    spread: float = 0.0
    curvature: bool = True
    rescore: bool = True
    zero_shot: bool = False
    start: str = "ffn-only"
    name: str = field(default="fastforward-guided", init=False)
    version: str = field(default="2", init=False)
    policy: Mapping[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number(self.name, "step", self.step, 1e-6, 100)
        check_number(self.name, "memory", self.memory, 0, 0.999)
        check_number(self.name, "average", self.average, 0, 1)
        check_number(self.name, "step_windows", self.step_windows, 1, math.inf, whole=True)
        check_number(self.name, "contenders", self.contenders, 0, 0.9)
        check_number(self.name, "spread", self.spread, 0, 100)
        for key in ("curvature", "rescore", "zero_shot"):
            check_switch(self.name, key, getattr(self, key))

    def started_from(self, policy: Mapping[str, Any]) -> FastForwardGuided:
        """The same method, which starts from the logits of another search, at any sparsity."""
        return started(self, policy)

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
        budget = budget if self.rescore else dataclasses.replace(budget, finalists=1)
        tracker = Tracker(problem, needed(reward, self.name, "a reward"), budget, method=self.name)
        rng = np.random.default_rng(seed)
        logits = self._first_logits(problem)
        if self.zero_shot and self.policy is not None:
            return tracker.result([project(problem, logits)], {"logits": logits})
        iterates = self._descend(problem, tracker, rng, logits)
        candidates = self.averages(problem, iterates)[: max(1, tracker.windows_left // budget.windows)]
        scores = tracker.score(candidates, tracker.draw(rng, budget.windows), stage="contenders")
        mean = np.mean(iterates[-max(1, round(self.average * len(iterates))) :], axis=0)
        return tracker.result([candidates[i] for i in best_first(scores)], {"logits": mean})

    def _first_logits(self, problem: PruningProblem) -> FloatArray:
        """Those of the policy to start from, or of the start's allocation."""
        own = logits_of(problem, starting_allocation(problem, self.start))
        if self.policy is None:
            return own
        check_shapes(self.policy, {"logits": own})
        return np.asarray(self.policy["logits"], dtype=np.float64)

    def _descend(
        self, problem: PruningProblem, tracker: Tracker, rng: np.random.Generator, logits: FloatArray
    ) -> list[FloatArray]:
        """The policy's mean logits from the first to the last step."""
        windows = min(self.step_windows, tracker.reward.n_windows)
        reserve = round(self.contenders * tracker.budget.evaluations) * tracker.budget.windows
        steps = (tracker.windows_left - reserve) // (FORWARDS_A_STEP * windows)
        worths, iterates = Worths(problem, self.memory, self.curvature), [logits]
        for t in range(steps):
            noise = self.spread * rng.standard_normal(len(logits)) if self.spread else 0.0
            allocation = project(problem, logits + noise)
            worths.see(allocation, tracker.utility(allocation, tracker.draw(rng, windows), stage="gates"))
            step = self.step * (1 + math.cos(math.pi * t / steps)) / 2
            logits = np.clip(logits + step * worths.scores(), -LIMIT, LIMIT)
            iterates.append(logits)
            tracker.answer(self.averages(problem, iterates)[0])
        return iterates

    def averages(self, problem: PruningProblem, iterates: list[FloatArray]) -> list[Allocation]:
        """Distinct allocations of averaged iterates, the widest first: over the latest share `average`, half of that,
        a quarter, ..., down to the last iterate alone."""
        found: dict[Allocation, None] = {}
        width = max(1, round(self.average * len(iterates)))
        while width:
            found[project(problem, np.mean(iterates[-width:], axis=0))] = None
            width //= 2
        return list(found)


class Worths:
    """Running estimates of what the units at each threshold are worth, inside and outside, with their variances.

    Exponential averages over steps. A coarse decision that moves by a unit has other units at its threshold: its
    estimates start again.
    """

    def __init__(self, problem: PruningProblem, memory: float, curvature: bool):
        self.memory = memory
        self.fine = problem.group_params == problem.group_params.min()
        self.factor = np.where(self.fine[:, None], FINE, COARSE) if curvature else np.zeros((len(self.fine), 2))
        self.keep = np.full(len(self.fine), -1)
        self.weight, self.total, self.noise = (np.zeros((len(self.fine), 2)) for _ in range(3))

    def see(self, allocation: Allocation, utility: FloatArray) -> None:
        """Take in the (n_units, 2, 3) utilities at an allocation."""
        keep, seen = np.array(allocation.keep), np.isfinite(utility[:, :, 0])
        moved = ~self.fine & (keep != self.keep)
        self.keep = keep
        fade = np.where(moved[:, None] | ~seen, 0.0, self.memory)
        worth = utility[:, :, 0] + self.factor * utility[:, :, 1]
        self.weight = fade * self.weight + seen
        self.total = fade * self.total + np.where(seen, worth, 0.0)
        self.noise = fade**2 * self.noise + np.where(seen, utility[:, :, 2] ** 2, 0.0)

    def scores(self) -> FloatArray:
        """By how much each decision violates the optimality condition, in robust standard scores, clipped; (n_units,).

        The price is the median worth of the fine decisions (channels), whose two sides are near each other and are
        averaged. A coarse decision (KV groups) is right where its last kept unit is worth more than the price and its
        first removed one less: it scores what violates that, otherwise 0. Deviations are shrunk by s^2 / (s^2 + noise),
        s^2 the spread of the fine decisions' true worths: what is not significant does not move.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            worth, noise = self.total / self.weight, self.noise / self.weight**2
        value, variance = np.nanmean(worth, axis=1), np.nanmean(noise, axis=1) / np.isfinite(worth).sum(axis=1)
        price = np.median(value[self.fine])
        too_many = np.nan_to_num(np.minimum(worth[:, 0] - price, 0))
        too_few = np.nan_to_num(np.maximum(worth[:, 1] - price, 0))
        deviation = np.where(self.fine, value - price, np.where(too_few > -too_many, too_few, too_many))
        variance = np.where(self.fine, variance, np.nanmean(noise, axis=1))
        seen = (1.4826 * np.median(np.abs(deviation[self.fine]))) ** 2
        true = max(seen - float(np.median(variance[self.fine])), MIN_SIGNAL * seen)
        if true == 0:
            return np.zeros_like(value)
        scores: FloatArray = np.clip(deviation / math.sqrt(true) * true / (true + variance), -CLIP, CLIP)
        return scores
