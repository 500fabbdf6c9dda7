"""Tyr: evolution over a few levels of each decision that get finer from round to round (Li et al., arXiv:2503.09657).

A round begins with a grid: `levels` numbers of units for each decision, one step apart, the parent's in the middle. An
offspring makes n = min(U{1..4}, U{1..4}) switches: a decision rises by a level and another one of the same kind falls
by one, so that attention and FFN each keep their share of the budget. Selection goes through three stages on ever more
windows, where 1/8, 1/32 and 1/64 of the offspring survive; the parent joins in the last one. The next round halves the
steps and puts the grid around the best allocation.

Published, for Llama-2-7B: 9 levels; a first step of 1/8 of a module (4 heads, 1,376 channels); 4 rounds of 50
generations; 128 offspring, of which 16, 4 and 2 survive, scored on 2,048, 16,384 and 131,072 tokens. That is 236
million tokens. Here everything shrinks with the budget. A stage has 1/64, 1/8 and all of the windows of an evaluation,
rounded down, at least 1, and stages with as many windows are one. Offspring and generations shrink by the same factor,
see `offspring_for`. A round ends when its share of the tokens is spent.

Departures: the published code prunes anew in each round, with the errors of the blocks before, and stores the weights
of all levels. Here a candidate is a slice, refitted on the dense model's statistics where the search is compensated.
The fitness is the reward of all methods; a variant's `fitness: kl` makes it a KL divergence, which the authors take
over their model's 8,192 most likely tokens. Steps are whole units, at least one. A switch never takes from the decision
that it gives to, which theirs may. Published runs start from equal shares, as `start: uniform` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from ffp.allocators.base import SearchBudget
from ffp.allocators.generations import Stage, affordable_offspring, breed, generation_cost, n_switches, select
from ffp.allocators.start import Start, StartedSearch, starting_allocation
from ffp.allocators.tracker import Tracker
from ffp.core.problem import Allocation, IntArray, PruningProblem

OFFSPRING, GENERATIONS = 128, 50  # a generation, and a round, as published
MAX_SWITCHES = 4
MAX_IDLE = 10  # generations in a row without anything new to measure
STAGES = ((64, 1 / 8), (8, 1 / 4), (1, 1 / 2))  # what divides the windows of an evaluation, and the share that survives


class TyrSearch(StartedSearch):
    """Mutates the best allocation by levels, in rounds of ever finer steps."""

    name: ClassVar[str] = "tyr-search"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "evolution over levels that get finer in rounds"
    citation: ClassVar[str] = "Li et al., arXiv:2503.09657"
    takes_gradients: ClassVar[bool] = False
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})
    equation: ClassVar[str] = (
        r"k_i = c_i + l_i\,d_i, \qquad |l_i| \le \frac{\mathrm{levels} - 1}{2}, \qquad "
        r"d_i = \frac{\mathrm{step} \cdot n_i}{2^{\mathrm{round}}}"
        "\n"
        r"l_i \leftarrow l_i + 1, \quad l_j \leftarrow l_j - 1 \qquad \text{for } i, j \text{ of one kind}"
    )

    levels: int = Field(9, ge=3, le=1001, description="Levels of a decision in a round, an odd number.")
    rounds: int = Field(4, ge=1, le=16, description="Rounds; each has the same share of the budget.")
    step: float = Field(0.125, gt=0, le=1, description="Units between two levels of the first round, as a share.")
    offspring: int = Field(
        0, ge=0, le=10_000, description="Offspring a generation; 0 for at most 128 that suit the budget."
    )
    start: Start = Field("uniform", description="The first parent; uniform as published.")

    @model_validator(mode="after")
    def _has_a_middle(self) -> TyrSearch:
        if self.levels % 2 == 0:
            raise ValueError(f"has levels = {self.levels}, which has no middle. Give an odd number")
        return self

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a generation of one child after the start."""
        return self.windows_after_start(budget, n_windows) >= generation_cost(1, stages_for(budget.windows))

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Breeds and selects in rounds until the budget is spent."""
        stages = stages_for(tracker.budget.windows)
        wanted = self.offspring or offspring_for(tracker.budget, self.rounds)
        # the parents, latest first: each beat the one after it
        lineage = [starting_allocation(tracker, rng, self.start)]
        tracker.answer(lineage[0])
        windows = tracker.windows_left
        for number in range(self.rounds):
            grid = LevelGrid.around(tracker.problem, lineage[0], self.step / 2**number, self.levels // 2)
            later = windows * (self.rounds - 1 - number) // self.rounds
            idle = 0
            while idle < MAX_IDLE:
                parent, count = lineage[0], affordable_offspring(wanted, stages, tracker.windows_left - later)
                brood = breed(parent, count, partial(grid.mutate, parent, rng))
                if not brood:
                    break
                spent = tracker.spent
                winner = select(tracker, parent, brood, stages, rng)
                idle = 0 if tracker.spent > spent else idle + 1
                if winner != parent:
                    lineage.insert(0, winner)
                    tracker.answer(winner)
        return tracker.finish(lineage)


def stages_for(windows: int) -> list[Stage]:
    """Returns the stages for evaluations on so many windows; those with as many windows are one."""
    surviving: dict[int, float] = {}
    for divisor, share in STAGES:
        count = max(1, windows // divisor)
        surviving[count] = surviving.get(count, 1.0) * share
    return [Stage(count, share) for count, share in surviving.items()]


def offspring_for(budget: SearchBudget, rounds: int) -> int:
    """Returns the most offspring, at most OFFSPRING, with which rounds keep their published proportions.

    A round then has GENERATIONS / OFFSPRING generations for each child of a generation, rounded up.
    """
    stages, windows = stages_for(budget.windows), budget.evaluations * budget.windows
    for offspring in range(OFFSPRING, 1, -1):
        generations = math.ceil(GENERATIONS * offspring / OFFSPRING)
        if rounds * generations * generation_cost(offspring, stages) <= windows:
            return offspring
    return 1


@dataclass(frozen=True)
class LevelGrid:
    """The levels of a round: least, least + step, ..., most units of each decision.

    Attributes:
        least: (n_decisions,).
        most: (n_decisions,).
        step: (n_decisions,), the same for all decisions of a kind.
        kind: (n_decisions,); decisions of a kind are of the same module and size.
    """

    least: IntArray
    most: IntArray
    step: IntArray
    kind: IntArray

    @classmethod
    def around(cls, problem: PruningProblem, centre: Allocation, share: float, half: int) -> LevelGrid:
        """Returns the grid with up to `half` levels on each side of an allocation.

        Args:
            problem: The decisions.
            centre: The allocation in the middle.
            share: Step between two levels, as a share of a decision's units.
            half: Levels on each side; fewer where a decision's bounds are nearer.
        """
        keep = np.array(centre.keep)
        step = np.maximum(1, np.round(share * problem.n_units)).astype(np.int64)
        least = keep - step * np.minimum(half, (keep - problem.min_keep) // step)
        most = keep + step * np.minimum(half, (problem.n_units - keep) // step)
        kinds = [(decision.module, decision.n_units, decision.params_per_unit) for decision in problem.decisions]
        return cls(least, most, step, np.array([kinds.index(kind) for kind in kinds]))

    def mutate(self, parent: Allocation, rng: np.random.Generator) -> Allocation:
        """Returns the parent after some switches, which change no budget; the parent where none is possible."""
        keep = np.array(parent.keep)
        for _ in range(n_switches(rng, MAX_SWITCHES)):
            possible = (keep < self.most)[:, None] & (keep > self.least)[None, :]  # (taker, giver)
            possible &= self.kind[:, None] == self.kind[None, :]
            np.fill_diagonal(possible, False)
            takers = np.flatnonzero(possible.any(axis=1))
            if not len(takers):
                break
            taker = rng.choice(takers)
            giver = rng.choice(np.flatnonzero(possible[taker]))
            keep[taker] += self.step[taker]
            keep[giver] -= self.step[giver]
        return Allocation(parent.problem_id, tuple(int(k) for k in keep))
