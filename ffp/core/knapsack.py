"""The multiple-choice knapsack: one option of each group, least total cost for what has to be removed. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ffp.core.problem import FloatArray, IntArray

BINS = 20_000  # of the removed parameters, where they have no greater common divisor
LEVELS = 128  # numbers of units between which a decision has a choice, at most


def levels(n_units: int) -> IntArray:
    """Returns the numbers of units at which costs are compared, from 0 to n_units: all, or LEVELS equal steps."""
    return np.unique(np.linspace(0, n_units, min(n_units, LEVELS) + 1).round().astype(np.int64))


def knapsack(removed: Sequence[IntArray], costs: Sequence[FloatArray], target: int, bins: int = BINS) -> list[int]:
    """Chooses one option of each group, so that they remove at least `target` at the least total cost.

    Exact where the target is at most `bins` times the greatest common divisor of all amounts. Otherwise exact for
    amounts rounded down to multiples of target / bins; the target is met in either case.

    Args:
        removed: Parameters that each option removes, by group.
        costs: Cost of each option, by group.
        target: Parameters to remove.
        bins: States of the dynamic programme.

    Returns:
        The index of each group's option; of equal ones the first. Where no choice reaches the rounded target, the
        option of each group that removes most.
    """
    step = int(np.gcd.reduce([int(r) for options in removed for r in options] or [1])) or 1
    size = max(step, target / bins)
    goal = math.ceil(target / size - 1e-9)
    weights = [np.minimum(np.floor(options / size + 1e-9).astype(np.int64), goal) for options in removed]
    states = [np.append(0.0, np.full(goal, np.inf))]  # least cost to have removed so many, the last: or more
    for amounts, prices in zip(weights, costs, strict=True):
        states.append(_relax(states[-1], amounts, prices))
    if not np.isfinite(states[-1][goal]):
        return [int(np.argmax(options)) for options in removed]
    return _trace_back(states, weights, costs, goal)


def _relax(before: FloatArray, weights: IntArray, prices: FloatArray) -> FloatArray:
    """Returns the states after one more group has taken one of its options."""
    goal = len(before) - 1
    after = np.full(goal + 1, np.inf)
    for weight, price in zip(weights, prices, strict=True):
        after[weight:] = np.minimum(after[weight:], before[: goal + 1 - weight] + price)
        after[goal] = min(after[goal], before[goal - weight :].min() + price)
    return after


def _trace_back(
    states: Sequence[FloatArray], weights: Sequence[IntArray], costs: Sequence[FloatArray], goal: int
) -> list[int]:
    """Returns the options that led to the goal; finds them from the last group to the first."""
    state, picked = goal, []
    for before, after, amounts, prices in zip(states[-2::-1], states[:0:-1], weights[::-1], costs[::-1], strict=True):
        for option, (weight, price) in enumerate(zip(amounts, prices, strict=True)):
            # one state can have been before, but for the last one: any that reaches it
            first = state - int(weight)
            last = goal if state == goal else first
            if first < 0:
                continue
            origin = first + int(before[first : last + 1].argmin())
            if before[origin] + price == after[state]:
                state = origin
                picked.append(option)
                break
    return picked[::-1]
