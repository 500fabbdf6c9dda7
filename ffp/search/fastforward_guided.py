"""FastForward, guided: the single-step policy follows gate gradients instead of sampled rewards.

As in FastForward (Yuan et al., arXiv:2511.18977) one action is the whole allocation, the policy never sees the budget
and a projection makes its action feasible. What differs is how the policy learns. A sampled reward is one number
about all decisions; one backward pass through a gate on every unit tells, for each decision, what one more unit
would be worth. With u_i that marginal utility per parameter,
    d_i = clip((u_i - median u) / (1.4826 * MAD u), +-CLIP)      a robust standard score of the violated KKT condition
    m   = momentum * m + (1 - momentum) * d
    a  += step_t * m,          step_t = step * (1 + cos(pi * t / T)) / 2
where a are the policy's mean logits, T steps in all: a deterministic policy gradient through straight-through
gates. It stops moving where all decisions are worth the same, which is where a budgeted optimum has to be.

Every step draws fresh windows of the search text: a fixed set is over-fitted within a few steps. Single iterates wander
with their windows, so that the answer is sought among the running averages of the latest iterates (Polyak and Ruppert),
compared on common windows, and then on the selection text.

A step costs three forwards of its windows (one forward, one backward counted as two). Relatives: DISP-LLM
(arXiv:2410.11988) trains a hypernetwork through such gates for thousands of steps; Taylor scores (LLM-Pruner) read
the same gradient once, of single units and at the dense model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ffp.budget import logits_of, project
from ffp.search.base import Tracker, best_first, check_number, needed
from ffp.search.ffn_only import starting_allocation
from ffp.types import Allocation, CalibrationStats, FloatArray, PruningProblem, Reward, SearchBudget, SearchResult

FORWARDS_A_STEP = 3
CLIP = 3.0


@dataclass(frozen=True)
class FastForwardGuided:
    """step: logits that a decision one standard score off moves at first. momentum: of the scores. average: share of
    the steps, the latest, whose iterates are averaged. step_windows: windows of the search text behind one step.
    contenders: share of the budget set aside to compare averages with each other. start: "uniform" or "ffn-only".
    """

    step: float = 0.25
    momentum: float = 0.5
    average: float = 0.5
    step_windows: int = 2
    contenders: float = 0.125
    start: str = "ffn-only"
    name: str = field(default="fastforward-guided", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "step", self.step, 1e-6, 100)
        check_number(self.name, "momentum", self.momentum, 0, 0.999)
        check_number(self.name, "average", self.average, 0, 1)
        check_number(self.name, "step_windows", self.step_windows, 1, math.inf, whole=True)
        check_number(self.name, "contenders", self.contenders, 0, 0.9)

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
        windows = min(self.step_windows, budget.windows)
        reserve = round(self.contenders * budget.evaluations) * budget.windows
        steps = (budget.evaluations * budget.windows - reserve) // (FORWARDS_A_STEP * windows)
        logits = logits_of(problem, starting_allocation(problem, self.start))
        values, velocity, iterates = ThresholdValues(problem), np.zeros_like(logits), [logits]
        for t in range(steps):
            allocation = project(problem, logits)
            values.see(allocation, tracker.utility(allocation, tracker.draw(rng, windows), stage="gates"))
            velocity = self.momentum * velocity + (1 - self.momentum) * kkt_scores(values.at(allocation))
            logits = logits + self.step * (1 + math.cos(math.pi * t / steps)) / 2 * velocity
            iterates.append(logits)
            tracker.answer(self.averages(problem, iterates)[0])
        candidates = self.averages(problem, iterates)[: max(1, tracker.windows_left // budget.windows)]
        scores = tracker.score(candidates, tracker.draw(rng, budget.windows), stage="contenders")
        return tracker.result([candidates[i] for i in best_first(scores)], {"logits": logits})

    def averages(self, problem: PruningProblem, iterates: list[FloatArray]) -> list[Allocation]:
        """Distinct allocations of averaged iterates, the widest first: over the latest share `average`, half of that,
        a quarter, ..., down to the last iterate alone."""
        found: dict[Allocation, None] = {}
        width = max(1, round(self.average * len(iterates)))
        while width:
            found[project(problem, np.mean(iterates[-width:], axis=0))] = None
            width //= 2
        return list(found)


class ThresholdValues:
    """What a little more of each decision is worth per parameter, from the gate gradients seen so far.

    Fine decisions: the mean of the units just inside and just outside. Coarse ones (KV groups): a slope at gate 1 says
    little about removing a whole unit, and one at gate 0 overstates it; a unit's worth is the mean of both, each
    remembered from when it was last seen. Without that, a coarse unit that looks cheap while it is kept and dear
    when it is gone goes back and forth for ever.
    """

    def __init__(self, problem: PruningProblem):
        self.coarse = problem.group_params > problem.group_params.min()
        self.seen: dict[tuple[int, int], dict[int, float]] = {}
        self.fine = np.zeros(len(problem.units))

    def see(self, allocation: Allocation, utility: FloatArray) -> None:
        """Take in the (n_units, 2) values just inside and outside the thresholds of an allocation."""
        self.fine = np.nanmean(utility, axis=1)
        for i in np.flatnonzero(self.coarse):
            for side, unit in ((0, allocation.keep[i] - 1), (1, allocation.keep[i])):
                if np.isfinite(utility[i, side]):
                    slopes = self.seen.setdefault((int(i), unit), {})
                    slopes[side] = (slopes.get(side, utility[i, side]) + utility[i, side]) / 2

    def at(self, allocation: Allocation) -> FloatArray:
        """(n_units,): the values around the thresholds of an allocation that has been seen."""
        values = self.fine.copy()
        for i in np.flatnonzero(self.coarse):
            around = [self.seen.get((int(i), unit)) for unit in (allocation.keep[i] - 1, allocation.keep[i])]
            values[i] = np.mean([np.mean(list(slopes.values())) for slopes in around if slopes])
        return values


def kkt_scores(utility: FloatArray) -> FloatArray:
    """Robust standard scores of marginal utilities, clipped; zeros where all decisions are worth the same."""
    deviation = utility - np.median(utility)
    spread = 1.4826 * np.median(np.abs(deviation))
    return np.clip(deviation / spread, -CLIP, CLIP) if spread > 0 else np.zeros_like(utility)
