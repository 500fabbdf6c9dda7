"""What searches share that choose single units: from scores of all units to gates that meet the budget.

Units are given decision by decision, in the order in which the score of the variant keeps them.
"""

from __future__ import annotations

import numpy as np

from ffp.allocators.heuristics.flap import best_units
from ffp.core.problem import FloatArray, PruningProblem
from ffp.core.projection import kept_budget, round_keep


def by_decision(problem: PruningProblem, values: FloatArray) -> list[FloatArray]:
    """Splits values of all units, (n_units,), by decision."""
    return np.split(values, np.cumsum(problem.n_units)[:-1])


def best_gates(problem: PruningProblem, scores: FloatArray) -> FloatArray:
    """Returns 1 for the units with the highest scores that the budget pays for, 0 for the others.

    All units stand in one order, each at its own cost. Every decision keeps its min_keep best units first. Of equal
    scores, those that come first in their own decision, relative to its size, stay.

    Args:
        problem: The decisions and the budget.
        scores: Of all units, (n_units,).

    Returns:
        (n_units,), with as many ones for each decision as the allocation that meets the budget keeps.

    Raises:
        BudgetError: The target is infeasible.
    """
    place = np.concatenate([np.arange(n) / n for n in problem.n_units])
    rank = np.empty(len(scores))
    rank[np.lexsort((place, -scores))] = np.arange(len(scores))
    ranks = by_decision(problem, rank)
    keep = round_keep(problem, best_units(problem, [-each for each in ranks], kept_budget(problem))).keep
    return np.concatenate(
        [(each.argsort().argsort() < k).astype(np.float64) for each, k in zip(ranks, keep, strict=True)]
    )
