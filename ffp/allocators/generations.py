"""What evolutionary searches share: distinct offspring, and a winner that is selected in stages.

All candidates of a stage see the same fresh windows, and the parent joins in the last stage, so that it stays unless an
offspring beats it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ffp.allocators.tracker import Tracker, best_first
from ffp.core.problem import Allocation

TRIES_PER_OFFSPRING = 20


@dataclass(frozen=True)
class Stage:
    """A part of the selection.

    Attributes:
        windows: Windows of the search text on which its candidates are scored.
        surviving: Share of the candidates that goes on to the next stage, rounded up.
    """

    windows: int
    surviving: float


def generation_cost(offspring: int, stages: Sequence[Stage]) -> int:
    """Returns the windows that a generation forwards at most, i.e. without memo hits."""
    cost, alive = 0, offspring
    for number, stage in enumerate(stages, start=1):
        cost += stage.windows * (alive + (number == len(stages)))
        alive = math.ceil(alive * stage.surviving)
    return cost


def affordable_offspring(wanted: int, stages: Sequence[Stage], windows: int) -> int:
    """Returns how many offspring, at most `wanted`, a generation can have that forwards no more than `windows`."""
    return max((n for n in range(1, wanted + 1) if generation_cost(n, stages) <= windows), default=0)


def n_switches(rng: np.random.Generator, most: int) -> int:
    """Draws min(U{1..most}, U{1..most})."""
    return int(rng.integers(1, most + 1, size=2).min())


def breed(parent: Allocation, count: int, mutate: Callable[[], Allocation]) -> list[Allocation]:
    """Draws up to `count` distinct offspring, none equal to the parent; fewer, even none, where mutations run out."""
    brood: dict[Allocation, None] = {}
    for _ in range(TRIES_PER_OFFSPRING * count):
        if len(brood) == count:
            break
        child = mutate()
        if child != parent:
            brood[child] = None
    return list(brood)


def select(
    tracker: Tracker, parent: Allocation, brood: Sequence[Allocation], stages: Sequence[Stage], rng: np.random.Generator
) -> Allocation:
    """Returns the next parent: the staged winner of the brood if it beats the parent, else the parent."""
    alive = list(brood)
    for number, stage in enumerate(stages, start=1):
        if number == len(stages):
            alive = [parent, *alive]
        scores = tracker.score(alive, tracker.draw(rng, stage.windows), stage=f"stage{number}")
        alive = [alive[i] for i in best_first(scores)[: math.ceil(len(alive) * stage.surviving)]]
    return alive[0]
