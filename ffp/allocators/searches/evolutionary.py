"""Evolution: elitist level switches with staged selection (Sieberling et al., EvoPress, arXiv:2410.14649).

A (1 + offspring) search. The parent starts uniform. An offspring makes n = min(U{1..3}, U{1..3}) level switches
(1, 2, 3 with probability 5/9, 3/9, 1/9); a switch moves one step of parameters from a decision to another one, both
drawn uniformly from those that can give and take. Selection goes through stages on ever more windows; all candidates
of a stage see the same fresh windows, and the parent joins in the last one.

Constants: three stages, on a quarter, a half and all of the budget's windows (the published script's three stages
grow eightfold and fourfold, from 2,048 to 65,536 tokens); each keeps a quarter (there: 64, 8, 2, 1). For the number
of offspring see `offspring_for`.

Departures, all for structured budgets: the paper keeps a database of levels, one step apart, of single matrices,
whose offspring are neutral by construction; here a switch moves parameters between decisions of any size, the
attention and FFN of a block among them; near a bound it moves what fits, and rounding to whole units settles the
remainder. Offspring equal to the parent are rejected, not only those equal to each other; drawing stops after a
bounded number of tries; the fitness is the reward of all methods, which a variant's `fitness: kl` makes the published
KL divergence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.heuristics.ffn_only import starting_allocation
from ffp.allocators.tracker import Tracker, best_first, check_number, needed
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import round_keep

MAX_SWITCHES = 3
SURVIVING = 0.25
MIN_GENERATIONS = 10
MAX_OFFSPRING = 64
TRIES_PER_OFFSPRING = 20
MAX_IDLE = 10  # generations in a row without anything new to measure
UNSTRUCTURED_STEP = 0.06  # the published script: 1e6 weights of a 4096 x 4096 matrix


@dataclass(frozen=True)
class Evolutionary:
    """offspring: per generation; 0 fits the number to the budget. step: parameters that a switch moves; 0 for one
    coarsest decision, e.g. one KV group, or 6 % of the smallest decision where units are single weights.
    start: the first parent, "uniform" as published or "ffn-only".
    """

    offspring: int = 0
    step: int = 0
    start: str = "uniform"
    name: str = field(default="evolutionary", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "offspring", self.offspring, 0, 10_000, whole=True)
        check_number(self.name, "step", self.step, 0, math.inf, whole=True)

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
        step = self.step or default_step(problem)
        lineage = [starting_allocation(problem, self.start)]  # the parents, latest first: each beat the one after it
        tracker.answer(lineage[0])
        wanted = self.offspring or offspring_for(budget)
        idle = 0
        for _ in range(tracker.max_rounds):
            affordable = [n for n in range(1, wanted + 1) if generation_cost(n, budget.windows) <= tracker.windows_left]
            brood = breed(problem, lineage[0], max(affordable, default=0), step, rng)
            if not brood:
                break
            spent = tracker.spent
            winner = select(tracker, lineage[0], brood, rng)
            idle = 0 if tracker.spent > spent else idle + 1
            if idle == MAX_IDLE:
                break
            if winner != lineage[0]:
                lineage.insert(0, winner)
                tracker.answer(winner)
        return tracker.result(lineage)


def stage_windows(windows: int) -> list[int]:
    """Windows of each stage: a quarter, a half and all, at least 1, equal ones merged."""
    return sorted({max(1, windows // 4), max(1, windows // 2), windows})


def generation_cost(offspring: int, windows: int) -> int:
    """Windows that a generation forwards at most, i.e. without memo hits."""
    cost, alive = 0, offspring
    for count in stage_windows(windows):
        cost += count * (alive + (count == windows))
        alive = math.ceil(alive * SURVIVING)
    return cost


def offspring_for(budget: SearchBudget) -> int:
    """sqrt(evaluations), so that generations and offspring grow alike, but few enough for MIN_GENERATIONS."""
    offspring = min(MAX_OFFSPRING, max(1, round(math.sqrt(budget.evaluations))))
    total = budget.evaluations * budget.windows
    while offspring > 1 and generation_cost(offspring, budget.windows) * MIN_GENERATIONS > total:
        offspring -= 1
    return offspring


def default_step(problem: PruningProblem) -> int:
    """Parameters of one coarsest decision, or UNSTRUCTURED_STEP of the smallest decision."""
    if problem.granularity == "unstructured":
        return max(1, round(UNSTRUCTURED_STEP * min(decision.params for decision in problem.decisions)))
    return int(problem.params_per_unit.max())


def n_switches(rng: np.random.Generator) -> int:
    """min(U{1..3}, U{1..3})."""
    return int(rng.integers(1, MAX_SWITCHES + 1, size=2).min())


def breed(
    problem: PruningProblem, parent: Allocation, count: int, step: int, rng: np.random.Generator
) -> list[Allocation]:
    """Up to `count` distinct offspring, none equal to the parent; fewer, even none, where mutations run out."""
    brood: dict[Allocation, None] = {}
    for _ in range(TRIES_PER_OFFSPRING * count):
        if len(brood) == count:
            break
        child = mutate(problem, parent, step, n_switches(rng), rng)
        if child != parent:
            brood[child] = None
    return list(brood)


def mutate(
    problem: PruningProblem, parent: Allocation, step: int, switches: int, rng: np.random.Generator
) -> Allocation:
    """The parent after `switches` level switches, in whole units on the exact budget."""
    keep = np.array(parent.keep, dtype=np.float64)
    for _ in range(switches):
        switch(problem, keep, step, rng)
    return round_keep(problem, keep)


def switch(problem: PruningProblem, keep: npt.NDArray[np.float64], step: int, rng: np.random.Generator) -> None:
    """Move parameters between two decisions of `keep`, in place; nothing where no pair can.

    The amount is `step`, less where a bound is nearer, but at least a unit of both. keep: (n_decisions,), fractional.
    """
    cost = problem.params_per_unit
    spare = (keep - problem.min_keep) * cost
    room = (problem.n_units - keep) * cost
    unit = np.maximum(cost[:, None], cost[None, :])  # (giver, taker), like the next two
    amount = np.minimum(np.maximum(step, unit), np.minimum(spare[:, None], room[None, :]))
    possible = amount >= unit - 1e-6
    np.fill_diagonal(possible, False)
    givers = np.flatnonzero(possible.any(axis=1))
    if len(givers):
        giver = rng.choice(givers)
        taker = rng.choice(np.flatnonzero(possible[giver]))
        keep[giver] -= amount[giver, taker] / cost[giver]
        keep[taker] += amount[giver, taker] / cost[taker]


def select(tracker: Tracker, parent: Allocation, brood: Sequence[Allocation], rng: np.random.Generator) -> Allocation:
    """The next parent: the staged winner of the brood, or the parent unless the winner beats it."""
    alive, full = list(brood), tracker.budget.windows
    for stage, count in enumerate(stage_windows(full), start=1):
        if count == full:
            alive = [parent, *alive]
        scores = tracker.score(alive, tracker.draw(rng, count), stage=f"stage{stage}")
        alive = [alive[i] for i in best_first(scores)[: math.ceil(len(alive) * SURVIVING)]]
    return alive[0]
