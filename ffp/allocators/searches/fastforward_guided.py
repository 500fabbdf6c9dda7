"""FastForward, guided: the single-step policy follows gate gradients instead of sampled rewards.

As in FastForward (Yuan et al., arXiv:2511.18977) one action is the whole allocation, the policy never sees the budget
and a projection makes its action feasible. What differs is how the policy learns. A sampled reward is one number
about all decisions. One backward pass through a gate on every unit tells, for each decision, what the units at its
threshold are worth. In the best allocation all are worth the same per parameter, the price. The policy is a normal
distribution over each decision's best logit, N(mean, variance), and every step is a Kalman update of it:
    y = log(w / price)    how far off the decision is, in logits, w what its units are worth (see Policy.learn)
    gain = variance / (variance + noise of y),    mean += gain * y,    variance = (1 - gain) * variance + drift^2
So an accurate first step goes all the way, the hundredth moves what is left, and what lies within the noise hardly
moves. On few tokens most blocks' FFNs do not differ significantly, and a search that follows their differences wanders.

- The slope of the loss in a gate says little about removing a whole KV group. The second-order term, which the same
  backward pass yields as empirical Fisher information, makes it a good prediction. Factors of that term: FINE and
  COARSE, from a comparison with true changes of the loss on SmolLM2-135M (see the documentation of the searches).
- KV groups are few and coarse: removing one changes what the others are worth. Their worth is averaged over the latest
  steps, without a belief, and they move only where a whole group should.
- Every step draws fresh windows of the search text: a fixed set is over-fitted within a few steps.
- The last mean and averages of the latest ones (Polyak and Ruppert) are compared on the selection text.

A step costs three forwards of its windows (one forward, one backward counted as two). Related methods: DISP-LLM
(arXiv:2410.11988) trains a hypernetwork through such gates for thousands of steps; Kwon et al. (arXiv:2204.09656) rank
single units by the Fisher information of their gates, once, at the dense model.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import SearchBudget
from ffp.allocators.start import Start, StartedSearch, starting_allocation
from ffp.allocators.tracker import GRADIENT_FORWARDS, Tracker, check_shapes
from ffp.core.problem import Allocation, FloatArray, IntArray, PruningProblem
from ffp.core.projection import logits_of, project

CLIP = 1.0  # most logits that a decision moves in one step
LIMIT = 3.0  # bound of the logits, so that a full decision can come back within a few steps
FINE, COARSE = np.array([0.5, 0.5]), np.array([1.0, 0.4])  # factors of the curvature term, inside and outside
AVERAGES = (0.25, 0.5)  # shares of the steps, the latest, whose means are averaged
TINY = 1e-30


class FastForwardGuided(StartedSearch):
    """Estimates each decision's best logit from gate gradients."""

    name: ClassVar[str] = "fastforward-guided"
    version: ClassVar[str] = "3"
    summary: ClassVar[str] = "single-step policy led by gate gradients"
    citation: ClassVar[str] = "ours, after Yuan et al., arXiv:2511.18977"
    equation: ClassVar[str] = (
        r"w_i = \frac{1}{p_i}\left(-\frac{\partial L}{\partial g_i} \pm \frac{f}{2} \sum_t "
        r"\left(\frac{\partial \ell_t}{\partial g_i}\right)^2\right), \qquad y_i = \log\frac{w_i}{\mathrm{median}(w)}"
        "\n"
        r"K_i = \frac{P_i}{P_i + \mathrm{se}(w_i)^2 / w_i^2}, \qquad a_i \leftarrow a_i + K_i\,y_i, \qquad "
        r"P_i \leftarrow (1 - K_i)\,P_i + q^2"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})
    fitnesses: ClassVar[tuple[str, ...]] = ("ppl",)  # its gradients are of the perplexity
    learns_policy: ClassVar[bool] = True

    prior: float = Field(
        0.5, ge=1e-6, le=100, description="sqrt(P) at first: deviation of channels' best logits from the start's."
    )
    drift: float = Field(0.05, ge=0, le=100, description="q: what a step adds to that standard deviation.")
    memory: float = Field(
        0.5, ge=0, le=0.999, description="Weight of earlier steps in the averaged worths of KV groups."
    )
    step_windows: int = Field(2, ge=1, le=1_000_000, description="Windows of the search text behind a gradient step.")
    spread: float = Field(
        0.0, ge=0, le=100, description="Deviation of a sampled action, relative to the policy's; 0 for none."
    )
    curvature: bool = Field(True, description="f > 0: whether the second-order term counts.")
    rescore: bool = Field(True, description="Whether finalists are compared on the selection text.")
    zero_shot: bool = Field(False, description="Whether to answer with the initial policy's mean, without a search.")
    start: Start = Field("ffn-only", description="The allocation to start from, where no policy is given.")

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a step, after the start where there is no policy."""
        left = budget.all_windows if has_policy else self.windows_after_start(budget, n_windows)
        return (self.zero_shot and has_policy) or left >= GRADIENT_FORWARDS * min(self.step_windows, n_windows)

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Takes gradient steps until the budget is spent."""
        logits = self._first_logits(tracker, rng)
        skip = self.zero_shot and bool(tracker.initial_policy)
        means = [logits] if skip else self._learn(tracker, rng, logits)
        tracker.policy = {"logits": means[-1]}
        averaged = [np.mean(means[-max(1, round(share * len(means))) :], axis=0) for share in AVERAGES]
        contenders = [project(tracker.problem, mean) for mean in (means[-1], *averaged)]
        return tracker.finish(contenders, None if self.rescore else 1)

    def _first_logits(self, tracker: Tracker, rng: np.random.Generator) -> FloatArray:
        """Returns those of the policy to start from, or of the start's allocation."""
        if not tracker.initial_policy:
            return logits_of(tracker.problem, starting_allocation(tracker, rng, self.start))
        check_shapes(tracker.initial_policy, {"logits": np.zeros(len(tracker.problem.decisions))})
        return np.asarray(tracker.initial_policy["logits"], dtype=np.float64)

    def _learn(self, tracker: Tracker, rng: np.random.Generator, logits: FloatArray) -> list[FloatArray]:
        """Returns the policy's means from the first to the last step."""
        problem, windows = tracker.problem, min(self.step_windows, tracker.reward.n_windows)
        policy, means = Policy(problem, logits, self), [logits]
        for _ in range(tracker.windows_left // (GRADIENT_FORWARDS * windows)):
            noise = policy.sample(rng, self.spread)
            allocation = project(problem, policy.mean + noise)
            policy.learn(allocation, tracker.utility(allocation, tracker.draw(rng, windows), stage="gates"), noise)
            means.append(policy.mean)
            tracker.answer(project(problem, policy.mean))
        return means


class Policy:
    """A normal distribution over the best logit of each decision, with averaged worths of the coarse decisions.

    Fine decisions have the cheapest units (channels); all others are coarse (KV groups), and so is what has to stay
    whole, whose worth says nothing about the price.

    Attributes:
        mean: (n_decisions,), logits.
        variance: (n_decisions,), squared logits; 0 for coarse decisions.
    """

    def __init__(self, problem: PruningProblem, mean: FloatArray, settings: FastForwardGuided):
        self.settings = settings
        free, cost = problem.min_keep < problem.n_units, problem.params_per_unit
        self.fine = free & (cost == cost[free].min())
        self.mean, self.variance = mean, np.where(self.fine, settings.prior**2, 0.0)
        factor = np.where(self.fine[:, None], FINE, COARSE)
        self._factor = factor if settings.curvature else np.zeros_like(factor)
        self._keep = np.full(len(mean), -1)
        self._weight, self._total, self._noise = (np.zeros((len(mean), 2)) for _ in range(3))
        self._precision, self._weighted = np.zeros(len(mean)), np.zeros(len(mean))

    def sample(self, rng: np.random.Generator, spread: float) -> FloatArray:
        """Returns what a sampled action adds to the mean, in logits, (n_decisions,)."""
        if not spread:
            return np.zeros_like(self.mean)
        drawn: FloatArray = spread * np.sqrt(self.variance) * rng.standard_normal(len(self.mean))
        return drawn

    def learn(self, allocation: Allocation, utility: FloatArray, sampled: FloatArray) -> None:
        """Updates the policy by one step.

        The price is the median worth of the fine decisions, whose two sides are similar and are averaged.

        Args:
            allocation: The projection of mean + sampled.
            utility: Marginal utilities there, (n_decisions, 2, 3).
            sampled: What the action added to the mean, (n_decisions,).
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
        """Returns the Kalman update of all means, (n_decisions,), as if all were fine.

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

    def _coarse(self, keep: IntArray, worth: FloatArray, noise: FloatArray, price: float) -> FloatArray:
        """Returns by how much each decision should move, in logits, (n_decisions,), as if all were coarse.

        A decision is right where its last kept unit is worth more than the price and its first removed one less. It
        moves by the violation of that, relative to the price and shrunk by 1 / (1 + noise). After a decision has moved
        by a unit, other units are at its threshold, so its average starts again.
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
