"""FastForward, guided: the single-step policy follows gate gradients instead of sampled rewards.

As in FastForward (Yuan et al., arXiv:2511.18977) one action is the whole allocation, the policy never sees the budget
and a projection makes its action feasible. What differs is how the policy learns. A sampled reward is one number
about all decisions; one backward pass through a gate on every unit tells, for each decision, what the units at its
threshold are worth. In the best allocation all are worth the same per parameter, the price. The policy is a normal
distribution over each decision's best logit, N(mean, variance), and every step is a Kalman update of it:
    y = log(w / price)    how far off the decision is, in logits, w what its units are worth (see Policy.learn)
    gain = variance / (variance + noise of y),    mean += gain * y,    variance = (1 - gain) * variance + drift^2
So an accurate first step goes all the way, the hundredth moves what is left, and what lies within the noise hardly
moves: on few tokens most blocks' FFNs do not differ significantly, and a search that follows their differences wanders.

- The slope of the loss in a gate says little of removing a whole KV group; the second-order term, which the same
  backward pass yields as empirical Fisher information, makes it a good prediction. Factors of that term: FINE and
  COARSE, from a comparison with true changes of the loss on SmolLM2-135M (see the documentation of the searches).
- KV groups are few and coarse: removing one changes what the others are worth. Theirs is an average over the latest
  steps in place of a belief, and they move only where a whole group should.
- Every step draws fresh windows of the search text: a fixed set is over-fitted within a few steps.
- The last mean and averages of the latest ones (Polyak and Ruppert) meet on the selection text.

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

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.heuristics.ffn_only import starting_allocation
from ffp.allocators.tracker import Tracker, check_number, check_shapes, check_switch, needed, started
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import logits_of, project

FORWARDS_A_STEP = 3
CLIP = 1.0  # logits that a decision moves in one step at most
LIMIT = 3.0  # logits of the policy, so that a full decision comes back in time
FINE, COARSE = np.array([0.5, 0.5]), np.array([1.0, 0.4])  # factors of the curvature term, inside and outside
AVERAGES = (0.25, 0.5)  # shares of the steps, the latest, whose means are averaged
TINY = 1e-30


@dataclass(frozen=True)
class FastForwardGuided:
    """prior: standard deviation of the best logits around the start's, of fine decisions (channels). drift: what a step
    adds to it. memory: of the averaged worths of coarse decisions (KV groups). step_windows: windows of the search text
    behind a step. spread: standard deviation of a sampled action, in those of the policy; the gradient is taken there
    instead of at the mean. curvature, rescore: whether the second-order term counts, and whether finalists meet on the
    selection text. zero_shot: answer with the policy handed over (the grid's `init`), without a search. start:
    "uniform" or "ffn-only", where no policy is given.
    """

    prior: float = 0.5
    drift: float = 0.05
    memory: float = 0.5
    step_windows: int = 2
    spread: float = 0.0
    curvature: bool = True
    rescore: bool = True
    zero_shot: bool = False
    start: str = "ffn-only"
    name: str = field(default="fastforward-guided", init=False)
    version: str = field(default="3", init=False)
    policy: Mapping[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number(self.name, "prior", self.prior, 1e-6, 100)
        check_number(self.name, "drift", self.drift, 0, 100)
        check_number(self.name, "memory", self.memory, 0, 0.999)
        check_number(self.name, "step_windows", self.step_windows, 1, math.inf, whole=True)
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
        logits = self._first_logits(problem)
        if self.zero_shot and self.policy is not None:
            return tracker.result([project(problem, logits)], {"logits": logits})
        means = self._learn(problem, tracker, np.random.default_rng(seed), logits)
        averaged = [np.mean(means[-max(1, round(share * len(means))) :], axis=0) for share in AVERAGES]
        return tracker.result([project(problem, mean) for mean in (means[-1], *averaged)], {"logits": means[-1]})

    def _first_logits(self, problem: PruningProblem) -> FloatArray:
        """Those of the policy to start from, or of the start's allocation."""
        own = logits_of(problem, starting_allocation(problem, self.start))
        if self.policy is None:
            return own
        check_shapes(self.policy, {"logits": own})
        return np.asarray(self.policy["logits"], dtype=np.float64)

    def _learn(
        self, problem: PruningProblem, tracker: Tracker, rng: np.random.Generator, logits: FloatArray
    ) -> list[FloatArray]:
        """The policy's means from the first to the last step."""
        windows = min(self.step_windows, tracker.reward.n_windows)
        policy, means = Policy(problem, logits, self), [logits]
        for _ in range(tracker.windows_left // (FORWARDS_A_STEP * windows)):
            noise = policy.sample(rng, self.spread)
            allocation = project(problem, policy.mean + noise)
            policy.learn(allocation, tracker.utility(allocation, tracker.draw(rng, windows), stage="gates"), noise)
            means.append(policy.mean)
            tracker.answer(project(problem, policy.mean))
        return means


class Policy:
    """A normal distribution over the best logit of each decision, and the worths of coarse decisions that it rests on.

    mean, variance: (n_decisions,), logits; the variance is that of fine decisions, and 0 for coarse ones.
    """

    def __init__(self, problem: PruningProblem, mean: FloatArray, settings: FastForwardGuided):
        self.settings = settings
        self.fine = problem.params_per_unit == problem.params_per_unit.min()
        self.mean, self.variance = mean, np.where(self.fine, settings.prior**2, 0.0)
        factor = np.where(self.fine[:, None], FINE, COARSE)
        self._factor = factor if settings.curvature else np.zeros_like(factor)
        self._keep = np.full(len(mean), -1)
        self._weight, self._total, self._noise = (np.zeros((len(mean), 2)) for _ in range(3))
        self._precision, self._weighted = np.zeros(len(mean)), np.zeros(len(mean))

    def sample(self, rng: np.random.Generator, spread: float) -> FloatArray:
        """What a sampled action adds to the mean, (n_decisions,) logits."""
        if not spread:
            return np.zeros_like(self.mean)
        drawn: FloatArray = spread * np.sqrt(self.variance) * rng.standard_normal(len(self.mean))
        return drawn

    def learn(self, allocation: Allocation, utility: FloatArray, sampled: FloatArray) -> None:
        """One step: the (n_decisions, 2, 3) utilities at the allocation of the action mean + sampled.

        The price is the median worth of the fine decisions, whose two sides are near each other and are averaged.
        """
        worth, noise = utility[:, :, 0] + self._factor * utility[:, :, 1], utility[:, :, 2] ** 2
        value = np.nanmean(worth, axis=1)
        price = max(float(np.median(value[self.fine])), TINY)
        move = np.where(
            self.fine,
            self._fine(value, np.nanmean(noise, axis=1) / np.isfinite(worth).sum(axis=1), price, sampled),
            self._coarse(np.array(allocation.keep), worth, noise, price),
        )
        self.mean = np.clip(self.mean + np.clip(move, -CLIP, CLIP), -LIMIT, LIMIT)

    def _fine(self, value: FloatArray, noise: FloatArray, price: float, sampled: FloatArray) -> FloatArray:
        """The Kalman update of all means, (n_decisions,).

        log(w / price) is linearised at the mean of all worths seen so far, weighted by their precision, or at the price
        where that is larger, since a worth within its noise of 0 has no logarithm.
        """
        noise = np.maximum(noise, TINY)
        self._precision += 1 / noise
        self._weighted += value / noise
        typical = np.maximum(self._weighted / self._precision, price)
        off = np.log(typical / price) + (value - typical) / typical
        gain = self.variance / np.maximum(self.variance + noise / typical**2, TINY)
        self.variance = np.where(self.fine, (1 - gain) * self.variance + self.settings.drift**2, 0.0)
        update: FloatArray = gain * (off + sampled)
        return update

    def _coarse(self, keep: FloatArray, worth: FloatArray, noise: FloatArray, price: float) -> FloatArray:
        """By how much each decision should move, (n_decisions,) logits, were all coarse.

        It is right where its last kept unit is worth more than the price and its first removed one less; what violates
        that counts, over the price and shrunk by 1 / (1 + noise). A decision that moves by a unit has others at its
        threshold: its average starts again.
        """
        seen = np.isfinite(worth)
        fade = np.where((keep != self._keep)[:, None] | ~seen, 0.0, self.settings.memory)
        self._keep = keep
        self._weight = fade * self._weight + seen
        self._total = fade * self._total + np.where(seen, worth, 0.0)
        self._noise = fade**2 * self._noise + np.where(seen, noise, 0.0)
        known = np.maximum(self._weight, 1)
        off = np.where(seen, self._total / known / price - 1, 0.0) / (1 + self._noise / (known * price) ** 2)
        too_many, too_few = np.minimum(off[:, 0], 0), np.maximum(off[:, 1], 0)
        violation: FloatArray = np.where(too_few > -too_many, too_few, too_many)
        return violation
