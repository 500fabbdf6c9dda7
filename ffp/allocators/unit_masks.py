"""What searches share that choose single units: from scores of all units to gates that meet the budget.

Units are given decision by decision, in the order in which the score of the variant keeps them.
"""

from __future__ import annotations

import numpy as np

from ffp.allocators.heuristics.flap import best_units
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import kept_budget, round_keep

NOTED = 32  # answers that a search notes on its way, at most: each has a number for every unit


def is_noted(step: int, steps: int) -> bool:
    """Returns whether a search notes its answer before this one of its steps."""
    return step % -(-steps // NOTED) == 0


def by_decision(problem: PruningProblem, values: FloatArray) -> list[FloatArray]:
    """Splits values of all units, (n_units,), by decision."""
    return np.split(values, np.cumsum(problem.n_units)[:-1])


def best_gates(problem: PruningProblem, scores: FloatArray, like: Allocation | None = None) -> FloatArray:
    """Returns 1 for the units with the highest scores that the budget pays for, 0 for the others.

    All units stand in one order, each at its own cost. Every decision keeps its min_keep best units first. Of equal
    scores, those that come first in their own decision, relative to its size, stay.

    Args:
        problem: The decisions and the budget.
        scores: Of all units, (n_units,).
        like: Attention and FFNs keep as many units each as in this allocation. By default they share the budget.

    Returns:
        (n_units,), with as many ones for each decision as the allocation that meets the budget keeps.

    Raises:
        BudgetError: The target is infeasible.
    """
    place = np.concatenate([np.arange(n) / n for n in problem.n_units])
    rank = np.empty(len(scores))
    rank[np.lexsort((place, -scores))] = np.arange(len(scores))
    ranks = by_decision(problem, rank)
    values = [-each for each in ranks]
    wanted = best_units(problem, values, kept_budget(problem)) if like is None else _as_many(problem, values, like)
    keep = round_keep(problem, wanted).keep
    return np.concatenate(
        [(each.argsort().argsort() < k).astype(np.float64) for each, k in zip(ranks, keep, strict=True)]
    )


def _as_many(problem: PruningProblem, values: list[FloatArray], like: Allocation) -> FloatArray:
    """Units of each decision among the best of its kind of module, of which as many stay as in an allocation."""
    kinds, kept = np.array([decision.module for decision in problem.decisions]), np.array(like.keep)
    keep = np.zeros(len(kinds))
    for kind in np.unique(kinds):
        one = np.where(kinds == kind, 1.0, 0.0)
        keep += best_units(problem, values, float(kept @ one), cost=one)
    return keep
