"""FastForward: single-step PPO on whole allocations (Yuan et al., arXiv:2511.18977, and the authors' code).

One action is the whole allocation and ends the episode: a contextual bandit, whose state is the sparsity s.
    a ~ N(mean(s), std^2)              one real number per decision
    keep = project(a) at sparsity s    the policy never sees the budget
    r = PPL_dense / PPL_pruned         on the batch's windows, bounded to [0, REWARD_LIMIT]
Policy, critic and update: see ffp/allocators/ppo.py. Over the first third of the episodes, with x = progress in [0, 1],
    kept share(x) = k_f + (k_0 - k_f)(1 - x)^3, from sparsity 0.05 to the target      (sparsity curriculum)
    windows(x) = 0.05 + 0.95 x^3 of the budget's windows, at least one                (fidelity curriculum)
Constants are those of the published scripts: batches of 15, and 1,000 of several thousand episodes for the curricula.

Corrections: the state is the sparsity that the episode really had, not the one before. Rewards are bounded (there -100
for a perplexity that is not a number). The winner is not the highest reward over different sparsities and windows:
candidates at the target are compared on the same windows, then on a text of its own. The projection is exact and does
not depend on the order of the decisions, see ffp/core/projection.py.

Departures: both curricula move at batch borders, so that a batch's advantages compare nothing but allocations. Windows
are redrawn for every batch, also after the curriculum, where the search text has more than the budget's. Batches shrink
where the budget holds fewer than MIN_BATCHES of 15. The mean action at the target is a candidate. Up to an eighth of
the budget is set aside for the final comparison. The policy learns from losses rounded to LOSS_STEP, so that it does
not carry the rounding errors of a processor's kernels into later batches, see tracker.rounded.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.tracker import Tracker, best_first, rounded
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import project, project_sequentially

if TYPE_CHECKING:
    from ffp.allocators.ppo import PpoAgent

BATCH = 15
MIN_BATCHES = 10
REWARD_LIMIT = 2.0
LOSS_STEP = 0.01  # nats per token; losses within a batch of the demo spread by about 1, at 5 % sparsity by 0.05
Projection = Callable[[PruningProblem, FloatArray], Allocation]
PROJECTIONS: dict[str, Projection] = {"water-filling": project, "sequential": project_sequentially}


@dataclass(frozen=True)
class Batch:
    """One planned batch.

    Attributes:
        progress: x of the curricula; 1 after them.
        sparsity: Sparsity of all its episodes.
        windows: Windows behind each reward.
        episodes: Actions sampled.
    """

    progress: float
    sparsity: float
    windows: int
    episodes: int


class FastForward(Search):
    """Learns by PPO a normal distribution of allocations for every sparsity."""

    name: ClassVar[str] = "fastforward"
    version: ClassVar[str] = "2"
    summary: ClassVar[str] = "single-step PPO on whole allocations"
    citation: ClassVar[str] = "Yuan et al., arXiv:2511.18977"
    takes_gradients: ClassVar[bool] = False
    equation: ClassVar[str] = (
        r"a \sim \mathcal{N}(\mu_\theta(s), \mathrm{diag}(\sigma_\theta^2)), \qquad "
        r"r = \mathrm{PPL}_\text{dense} / \mathrm{PPL}_{\Pi(a)}"
        "\n"
        r"L(\theta) = -\mathbb{E}\left[\min\left(\rho A, "
        r"\mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A\right)\right] + c_v (V - r)^2 - c_e H, "
        r"\qquad \rho = \frac{\pi_\theta(a)}{\pi_\text{old}(a)}"
        "\n"
        r"k(x) = k_f + (k_0 - k_f)(1 - x)^3, \qquad w(x) = 0.05 + 0.95\,x^3"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})
    learns_policy: ClassVar[bool] = True

    batch: int = Field(0, ge=0, le=10_000, description=f"Episodes a batch; 0 for {BATCH}, fewer for small budgets.")
    sparsity_curriculum: bool = Field(True, description="Whether the sparsity rises to the target.")
    fidelity_curriculum: bool = Field(True, description="Whether the number of windows rises to the budget's.")
    curriculum: float = Field(1 / 3, ge=0, le=1, description="Share of the episodes that the curricula cover.")
    start_sparsity: float = Field(0.05, ge=0, le=1, description="1 - k_0: sparsity where its curriculum starts.")
    start_fidelity: float = Field(0.05, ge=0, le=1, description="Share of the windows where its curriculum starts.")
    projection: Literal["water-filling", "sequential"] = Field(
        "water-filling", description='How actions become allocations; "sequential" is the published way.'
    )
    rescore: bool = Field(True, description="Whether finalists are compared on the selection text.")
    zero_shot: bool = Field(False, description="Whether to answer with the initial policy's mean, without a search.")
    epochs: int = Field(10, ge=1, le=10_000, description="Gradient steps a batch.")
    clip: float = Field(0.2, ge=0, le=1, description="epsilon: limit of the probability ratio's change.")
    learning_rate: float = Field(5e-4, ge=1e-12, le=1, description="Of Adam.")
    entropy_weight: float = Field(0.01, ge=0, le=1000, description="c_e: weight of the entropy bonus.")
    value_weight: float = Field(0.5, ge=0, le=1000, description="c_v: weight of the critic's loss.")
    max_grad_norm: float = Field(0.5, ge=1e-12, le=1e6, description="Norm to which gradients are clipped.")
    initial_std: float = Field(1.0, ge=1e-12, le=100, description="First standard deviation of every action.")

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for two episodes, of which one is better than the other."""
        batches = self.plan(problem.target, self._own(budget))
        return (self.zero_shot and has_policy) or sum(batch.episodes for batch in batches) >= 2

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Trains the policy batch by batch, then compares the best candidates."""
        from ffp.allocators.ppo import PpoAgent

        problem, to_allocation = tracker.problem, PROJECTIONS[self.projection]
        budget = self._own(tracker.budget)
        agent = PpoAgent(len(problem.decisions), self, tracker.seed)
        if tracker.initial_policy:
            agent.load(tracker.initial_policy)
        if self.zero_shot and tracker.initial_policy:
            tracker.policy = agent.arrays()
            return tracker.finish([to_allocation(problem, agent.mean(problem.target))])
        winners: list[Allocation] = []
        for batch in self.plan(problem.target, budget):
            best = run_batch(tracker, agent, batch, tracker.draw(rng, batch.windows), to_allocation)
            if batch.sparsity == problem.target:
                winners.insert(0, best)
            tracker.answer(to_allocation(problem, agent.mean(problem.target)))
        tracker.policy = agent.arrays()
        contenders = [to_allocation(problem, agent.mean(problem.target)), *winners]
        contenders = list(dict.fromkeys(contenders))[: n_contenders(budget)]
        scores = tracker.score(contenders, tracker.draw(rng, budget.windows), stage="contenders")
        return tracker.finish([contenders[i] for i in best_first(scores)], budget.finalists)

    def _own(self, budget: SearchBudget) -> SearchBudget:
        """The budget with the finalists that it compares."""
        return budget if self.rescore else dataclasses.replace(budget, finalists=1)

    def plan(self, target: float, budget: SearchBudget) -> list[Batch]:
        """Returns the batches: as many episodes as the budget pays for beside the contenders' comparison."""
        limit = (budget.evaluations - n_contenders(budget)) * budget.windows

        def cost(episodes: int) -> int:
            return sum(batch.windows * batch.episodes for batch in self.plan_of(target, budget, episodes))

        episodes = bisect.bisect_right(range(limit + 1), limit, key=cost) - 1
        while cost(episodes) > limit:  # the cost rises but for the rounding of windows
            episodes -= 1
        return self.plan_of(target, budget, episodes)

    def plan_of(self, target: float, budget: SearchBudget, episodes: int) -> list[Batch]:
        """Returns the batches of a search of that many episodes; the last one may be smaller."""
        size = self.batch or min(BATCH, max(2, budget.evaluations // MIN_BATCHES))
        covered = self.curriculum * episodes if self.sparsity_curriculum or self.fidelity_curriculum else 0.0
        batches = []
        for done in range(0, episodes, size):
            progress = min(1.0, done / covered) if covered else 1.0
            sparsity = self.sparsity_at(progress, target)
            windows = max(1, round(self.fidelity_at(progress) * budget.windows))
            batches.append(Batch(progress, sparsity, windows, min(size, episodes - done)))
        return batches

    def sparsity_at(self, progress: float, target: float) -> float:
        """Returns 1 - (k_f + (k_0 - k_f)(1 - x)^3); the target where it is below the start or x = 1."""
        if not self.sparsity_curriculum or progress >= 1 or target <= self.start_sparsity:
            return target
        return target + (self.start_sparsity - target) * (1 - progress) ** 3

    def fidelity_at(self, progress: float) -> float:
        """Returns 0.05 + 0.95 x^3, the share of the budget's windows behind an evaluation."""
        if not self.fidelity_curriculum:
            return 1.0
        return self.start_fidelity + (1 - self.start_fidelity) * progress**3


def n_contenders(budget: SearchBudget) -> int:
    """Returns the evaluations set aside for the final comparison: twice the finalists, at most an eighth of all."""
    return max(1, min(2 * budget.finalists, budget.evaluations // 8))


def run_batch(
    tracker: Tracker, agent: PpoAgent, batch: Batch, windows: tuple[int, ...], to_allocation: Projection
) -> Allocation:
    """Samples, projects and scores a batch, updates the agent with it, and returns the batch's best candidate.

    The agent learns from losses in steps of LOSS_STEP; the best candidate is found by the losses as they are.
    """
    easier = tracker.problem.at(batch.sparsity)
    actions = agent.sample(batch.sparsity, batch.episodes)
    candidates = [to_allocation(easier, action) for action in actions]
    stage = "policy" if batch.progress >= 1 else "curriculum"
    scores = tracker.score(candidates, windows, stage=stage, target=batch.sparsity)
    rewards = np.clip(np.exp(rounded(np.log(scores), LOSS_STEP)), 0.0, REWARD_LIMIT)
    agent.update(np.full(batch.episodes, batch.sparsity), actions, rewards)
    return candidates[best_first(scores)[0]]
