"""FastForward: single-step PPO on whole allocations (Yuan et al., arXiv:2511.18977, and the authors' code).

One action is the whole allocation and ends the episode: a contextual bandit, whose state is the sparsity s.
    a ~ N(mean(s), std^2)              one real number per decision
    keep = project(a) at sparsity s    the policy never sees the budget
    r = PPL_dense / PPL_pruned         on the batch's windows, bounded to [0, REWARD_LIMIT]
Policy, critic and update: see policy.py. Over the first third of the episodes, with x = progress in [0, 1],
    kept share(x) = k_f + (k_0 - k_f)(1 - x)^3, from sparsity 0.05 to the target      (sparsity curriculum)
    windows(x) = 0.05 + 0.95 x^3 of the budget's windows, at least one                (fidelity curriculum)
Constants are those of the published scripts: batches of 15, and 1,000 of several thousand episodes for the curricula.

Defects mended: the state is the sparsity that the episode really had, not the one before; rewards are bounded
(there -100 for a perplexity that is no number); the winner is not the highest reward over different sparsities and
windows, but comes from candidates at the target that were compared on the same windows, and then on a text of its
own; the projection is exact and free of order (see ffp.budget).

Departures: both curricula move at batch borders, so that a batch's advantages compare allocations and nothing else;
windows are redrawn for every batch, also after the curriculum, where the search text has more than the budget's;
batches shrink where the budget holds fewer than MIN_BATCHES of 15; the mean action at the target is a candidate; up
to an eighth of the budget is set aside for the final comparison.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.searches.ppo import PpoAgent, PpoSettings
from ffp.allocators.tracker import Tracker, best_first, check_number, check_switch, needed, started
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import project
from ffp.core.sequential_projection import project_sequentially
from ffp.core.suggest import did_you_mean

BATCH = 15
MIN_BATCHES = 10
REWARD_LIMIT = 2.0
PROJECTIONS = {"water-filling": project, "sequential": project_sequentially}


@dataclass(frozen=True)
class Batch:
    """One planned batch. progress: x of the curricula, 1 after them; sparsity: of all its episodes."""

    progress: float
    sparsity: float
    windows: int
    episodes: int


@dataclass(frozen=True)
class FastForward:
    """batch: episodes a batch, 0 for 15 or what the budget allows. curriculum: share of the episodes that the
    curricula cover. start_sparsity, start_fidelity: where they start. projection: "water-filling" or "sequential", the
    published one. rescore: whether finalists meet on the selection text. zero_shot: answer with the mean action of the
    policy handed over (the grid's `init`), without a search. The rest: see PpoSettings.
    """

    batch: int = 0
    sparsity_curriculum: bool = True
    fidelity_curriculum: bool = True
    curriculum: float = 1 / 3
    start_sparsity: float = 0.05
    start_fidelity: float = 0.05
    projection: str = "water-filling"
    rescore: bool = True
    zero_shot: bool = False
    epochs: int = PpoSettings.epochs
    clip: float = PpoSettings.clip
    learning_rate: float = PpoSettings.learning_rate
    entropy_weight: float = PpoSettings.entropy_weight
    value_weight: float = PpoSettings.value_weight
    max_grad_norm: float = PpoSettings.max_grad_norm
    initial_std: float = PpoSettings.initial_std
    name: str = field(default="fastforward", init=False)
    version: str = field(default="1", init=False)
    policy: Mapping[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("sparsity_curriculum", "fidelity_curriculum", "rescore", "zero_shot"):
            check_switch(self.name, key, getattr(self, key))
        for key in ("batch", "epochs"):
            check_number(self.name, key, getattr(self, key), int(key == "epochs"), 10_000, whole=True)
        for key in ("curriculum", "start_sparsity", "start_fidelity", "clip"):
            check_number(self.name, key, getattr(self, key), 0, 1)
        for key in ("entropy_weight", "value_weight"):
            check_number(self.name, key, getattr(self, key), 0, math.inf)
        for key in ("learning_rate", "max_grad_norm", "initial_std"):
            check_number(self.name, key, getattr(self, key), 1e-12, math.inf)
        if self.projection not in PROJECTIONS:
            raise ConfigError(
                f"method {self.name!r}: projection {self.projection!r}: {did_you_mean(self.projection, PROJECTIONS)}"
            )

    def started_from(self, policy: Mapping[str, Any]) -> FastForward:
        """The same method, whose policy and critic start as those of another search, at any sparsity."""
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
        agent = PpoAgent(len(problem.decisions), self._ppo(), seed)
        if self.policy is not None:
            agent.load(self.policy)
        to_allocation = PROJECTIONS[self.projection]
        if self.zero_shot and self.policy is not None:
            return tracker.result([to_allocation(problem, agent.mean(problem.target))], agent.arrays())
        winners: list[Allocation] = []
        for batch in self.plan(problem.target, budget):
            best = run_batch(problem, tracker, agent, batch, tracker.draw(rng, batch.windows), to_allocation)
            if batch.sparsity == problem.target:
                winners.insert(0, best)
            tracker.answer(to_allocation(problem, agent.mean(problem.target)))
        contenders = [to_allocation(problem, agent.mean(problem.target)), *winners]
        contenders = list(dict.fromkeys(contenders))[: n_contenders(budget)]
        scores = tracker.score(contenders, tracker.draw(rng, budget.windows), stage="contenders")
        return tracker.result([contenders[i] for i in best_first(scores)], agent.arrays())

    def _ppo(self) -> PpoSettings:
        return PpoSettings(
            epochs=self.epochs,
            clip=self.clip,
            learning_rate=self.learning_rate,
            entropy_weight=self.entropy_weight,
            value_weight=self.value_weight,
            max_grad_norm=self.max_grad_norm,
            initial_std=self.initial_std,
        )

    def plan(self, target: float, budget: SearchBudget) -> list[Batch]:
        """The batches: as many episodes as the budget pays for beside the contenders' comparison."""
        limit = (budget.evaluations - n_contenders(budget)) * budget.windows

        def cost(episodes: int) -> int:
            return sum(batch.windows * batch.episodes for batch in self.plan_of(target, budget, episodes))

        episodes = bisect.bisect_right(range(limit + 1), limit, key=cost) - 1
        while cost(episodes) > limit:  # the cost rises but for the rounding of windows
            episodes -= 1
        return self.plan_of(target, budget, episodes)

    def plan_of(self, target: float, budget: SearchBudget, episodes: int) -> list[Batch]:
        """The batches of a search of that many episodes; the last one may be smaller."""
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
        """1 - (k_f + (k_0 - k_f)(1 - x)^3); the target itself where it is below the start or x = 1."""
        if not self.sparsity_curriculum or progress >= 1 or target <= self.start_sparsity:
            return target
        return target + (self.start_sparsity - target) * (1 - progress) ** 3

    def fidelity_at(self, progress: float) -> float:
        """0.05 + 0.95 x^3: the share of the budget's windows behind an evaluation."""
        if not self.fidelity_curriculum:
            return 1.0
        return self.start_fidelity + (1 - self.start_fidelity) * progress**3


def n_contenders(budget: SearchBudget) -> int:
    """Evaluations set aside for the final comparison: twice the finalists, at most an eighth, at least the mean."""
    return max(1, min(2 * budget.finalists, budget.evaluations // 8))


def run_batch(
    problem: PruningProblem,
    tracker: Tracker,
    agent: PpoAgent,
    batch: Batch,
    windows: tuple[int, ...],
    to_allocation: Callable[[PruningProblem, FloatArray], Allocation],
) -> Allocation:
    """Sample, project and score a batch, update the agent with it, and return the batch's best candidate."""
    easier = problem.at(batch.sparsity)
    actions = agent.sample(batch.sparsity, batch.episodes)
    candidates = [to_allocation(easier, action) for action in actions]
    stage = "policy" if batch.progress >= 1 else "curriculum"
    scores = tracker.score(candidates, windows, stage=stage, target=batch.sparsity)
    rewards = np.clip(scores, 0.0, REWARD_LIMIT)
    agent.update(np.full(batch.episodes, batch.sparsity), actions, rewards)
    return candidates[best_first(scores)[0]]
