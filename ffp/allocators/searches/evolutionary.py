"""Evolution: elitist level switches with staged selection (Sieberling et al., EvoPress, arXiv:2410.14649).

A (1 + offspring) search. The parent starts uniform. An offspring makes n = min(U{1..3}, U{1..3}) level switches
(1, 2, 3 with probability 5/9, 3/9, 1/9). A switch moves one step of parameters from a decision to another one, both
drawn uniformly from those that can give and take. Selection goes through stages on ever more windows; all candidates
of a stage see the same fresh windows, and the parent joins in the last one.

Constants: three stages, on a quarter, a half and all of the budget's windows (the published script's three stages
grow eightfold and fourfold, from 2,048 to 65,536 tokens); each keeps a quarter (there: 64, 8, 2, 1). For the number
of offspring see `offspring_for`.

Departures, all for structured budgets: the paper keeps a database of levels, one step apart, of single matrices,
whose offspring meet the budget by construction. Here a switch moves parameters between decisions of any size, also
between the attention and FFN of a block; near a bound it moves what fits, and rounding to whole units corrects the
remainder. Offspring equal to the parent are rejected, not only those equal to each other. Drawing stops after a
bounded number of tries. The fitness is the reward of all methods; a variant's `fitness: kl` makes it the published
KL divergence.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import SearchBudget
from ffp.allocators.generations import Stage, affordable_offspring, breed, generation_cost, n_switches, select
from ffp.allocators.start import Start, StartedSearch, starting_allocation
from ffp.allocators.tracker import Tracker
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import round_keep

MAX_SWITCHES = 3
SURVIVING = 0.25
MIN_GENERATIONS = 10
MAX_OFFSPRING = 64
MAX_IDLE = 10  # generations in a row without anything new to measure
UNSTRUCTURED_STEP = 0.06  # the published script: 1e6 weights of a 4096 x 4096 matrix


class Evolutionary(StartedSearch):
    """Mutates the best allocation found so far by moving parameters between decisions."""

    name: ClassVar[str] = "evolutionary"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "elitist level switches, staged selection"
    citation: ClassVar[str] = "Sieberling et al., arXiv:2410.14649"
    takes_gradients: ClassVar[bool] = False
    equation: ClassVar[str] = (
        r"n = \min(U\{1..3\}, U\{1..3\}) \text{ switches}, \qquad "
        r"k_i \leftarrow k_i - \delta/p_i, \quad k_j \leftarrow k_j + \delta/p_j"
    )

    offspring: int = Field(0, ge=0, le=10_000, description="lambda: offspring a generation; 0 to suit the budget.")
    step: int = Field(
        0,
        ge=0,
        le=10**12,
        description="delta: parameters that a switch moves; 0 for a KV group, or 6 % of the smallest decision.",
    )
    start: Start = Field("uniform", description="The first parent; uniform as published.")

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a generation of one child after the start."""
        return self.windows_after_start(budget, n_windows) >= generation_cost(1, stages_for(budget.windows))

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Breeds and selects until the budget is spent or nothing new comes up."""
        problem, stages = tracker.problem, stages_for(tracker.budget.windows)
        step = self.step or default_step(problem)
        # the parents, latest first: each beat the one after it
        lineage = [starting_allocation(tracker, rng, self.start)]
        tracker.answer(lineage[0])
        wanted = self.offspring or offspring_for(tracker.budget)
        idle = 0
        for _ in range(tracker.max_rounds):
            parent, count = lineage[0], affordable_offspring(wanted, stages, tracker.windows_left)
            brood = breed(parent, count, partial(_child, problem, parent, step, rng))
            if not brood:
                break
            spent = tracker.spent
            winner = select(tracker, parent, brood, stages, rng)
            idle = 0 if tracker.spent > spent else idle + 1
            if idle == MAX_IDLE:
                break
            if winner != parent:
                lineage.insert(0, winner)
                tracker.answer(winner)
        return tracker.finish(lineage)


def stages_for(windows: int) -> list[Stage]:
    """Returns the stages: on a quarter, a half and all windows, at least 1, equal ones merged."""
    return [Stage(count, SURVIVING) for count in sorted({max(1, windows // 4), max(1, windows // 2), windows})]


def offspring_for(budget: SearchBudget) -> int:
    """Returns sqrt(evaluations), so that generations and offspring grow alike; fewer to fit MIN_GENERATIONS."""
    offspring = min(MAX_OFFSPRING, max(1, round(math.sqrt(budget.evaluations))))
    total, stages = budget.evaluations * budget.windows, stages_for(budget.windows)
    while offspring > 1 and generation_cost(offspring, stages) * MIN_GENERATIONS > total:
        offspring -= 1
    return offspring


def default_step(problem: PruningProblem) -> int:
    """Returns the parameters of the coarsest unit, or UNSTRUCTURED_STEP of the smallest decision."""
    if problem.granularity == "unstructured":
        return max(1, round(UNSTRUCTURED_STEP * min(decision.params for decision in problem.decisions)))
    return int(problem.params_per_unit.max())


def _child(problem: PruningProblem, parent: Allocation, step: int, rng: np.random.Generator) -> Allocation:
    """Returns the parent after 1 to MAX_SWITCHES level switches."""
    return mutate(problem, parent, step, n_switches(rng, MAX_SWITCHES), rng)


def mutate(
    problem: PruningProblem, parent: Allocation, step: int, switches: int, rng: np.random.Generator
) -> Allocation:
    """Returns the parent after `switches` level switches, in whole units on the exact budget."""
    keep = np.array(parent.keep, dtype=np.float64)
    for _ in range(switches):
        switch(problem, keep, step, rng)
    return round_keep(problem, keep)


def switch(problem: PruningProblem, keep: FloatArray, step: int, rng: np.random.Generator) -> None:
    """Moves parameters between two decisions in place, or none where no pair can.

    Args:
        problem: The decisions.
        keep: Kept units, fractional, (n_decisions,).
        step: Parameters to move; fewer where a bound is nearer, but at least a unit of both decisions.
        rng: Draws the giver, then the taker.
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
