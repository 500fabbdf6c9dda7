"""The one place that turns wishes into feasible allocations, for every method.

A wish is one logit, or one kept share, per decision. Water-filling shifts all logits by the same t until the
parameters meet the budget. The coarse decisions (KV groups) are then rounded to the nearest whole decision, each by
itself, and the fine ones (FFN channels) absorb the remainder. Nothing depends on the order of the decisions: sums are
exactly rounded (math.fsum), and ties go by a digest of the decision's name, which favours neither early nor late
blocks.

Departs from the published projection, which fills deficits module by module in network order, may miss the budget
and is not nested in sparsity (Yuan et al., arXiv:2511.18977, and its code).
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt

from ffp.core.errors import BudgetError
from ffp.core.problem import Allocation, FloatArray, PruningProblem

IntArray = npt.NDArray[np.int64]
LOGIT_LIMIT = 30.0
EDGE = 0.05


def max_sparsity(problem: PruningProblem) -> float:
    """The largest sparsity that the decisions' min_keep allow."""
    return problem.sparsity_of(problem.min_keep)


def kept_budget(problem: PruningProblem) -> int:
    """Parameters of units that may stay, so that the removed ones are at least the target's share.

    Raises BudgetError where min_keep forbids the target.
    """
    removed = math.ceil(problem.target * problem.total_params - 1e-6)
    if removed > int(np.dot(problem.n_units - problem.min_keep, problem.params_per_unit)):
        raise BudgetError(
            f"sparsity {problem.target:.2f} cannot be met: with these min_keep at most {max_sparsity(problem):.4f} "
            "can be removed. Lower the grid's sparsities, or min_keep in the model's YAML."
        )
    return int(np.dot(problem.n_units, problem.params_per_unit)) - removed


def dense(problem: PruningProblem) -> Allocation:
    """The allocation that keeps everything."""
    return Allocation(problem.problem_id, tuple(decision.n_units for decision in problem.decisions))


def water_fill(problem: PruningProblem, logits: FloatArray) -> FloatArray:
    """Kept units per decision, fractional, that meet the budget.

    keep_i(t) = p_i + (1 - p_i) * sigmoid(logits_i + t) with p_i = min_keep_i / n_groups_i; t by bisection. Monotone
    in the target: a higher sparsity keeps no more of any decision.
    """
    return _fill(problem.n_units, problem.min_keep, problem.params_per_unit, _bounded(logits), kept_budget(problem))


def project(problem: PruningProblem, logits: FloatArray) -> Allocation:
    """The feasible allocation nearest in spirit to these logits.

    logits: (n_decisions,), larger keeps more; only differences count. The realised sparsity is at least the target
    and exceeds it by less than the cheapest unit that could still be added. Raises BudgetError if the target is
    infeasible, ValueError if logits are not finite or of another shape.
    """
    logits = _bounded(logits)
    if logits.shape != (len(problem.decisions),):
        raise ValueError(f"{logits.shape} logits for {len(problem.decisions)} decisions")
    wanted = water_fill(problem, logits)
    keep = _settle_coarse(problem, wanted)
    keep = _settle_fine(problem, keep, logits)
    return Allocation(problem.problem_id, tuple(int(k) for k in _top_up(problem, keep, wanted)))


def project_shares(problem: PruningProblem, shares: FloatArray) -> Allocation:
    """The feasible allocation for desired kept shares, (n_decisions,) in [0, 1].

    Shares that meet the budget are kept up to rounding; otherwise all move together in logit space.
    """
    floor = problem.min_keep / problem.n_units
    free = np.clip((np.asarray(shares, dtype=np.float64) - floor) / np.maximum(1 - floor, 1e-12), 1e-9, 1 - 1e-9)
    return project(problem, np.log(free) - np.log1p(-free))


def round_keep(problem: PruningProblem, keep: FloatArray) -> Allocation:
    """The feasible allocation for desired kept units, fractional or off the budget; feasible ones stay as they are."""
    whole = np.round(keep).astype(np.int64)
    if bool((whole == keep).all()) and (whole >= problem.min_keep).all() and (whole <= problem.n_units).all():
        slack = kept_budget(problem) - int(np.dot(whole, problem.params_per_unit))
        addable = problem.params_per_unit[whole < problem.n_units]
        if 0 <= slack < min(addable, default=slack + 1):
            return Allocation(problem.problem_id, tuple(int(k) for k in whole))
    return project_shares(problem, np.asarray(keep, dtype=np.float64) / problem.n_units)


def logits_of(problem: PruningProblem, allocation: Allocation) -> FloatArray:
    """Logits whose projection is about this allocation; full and empty decisions stay within reach."""
    floor = problem.min_keep / problem.n_units
    free = (np.asarray(allocation.keep) / problem.n_units - floor) / np.maximum(1 - floor, 1e-12)
    free = np.clip(free, EDGE, 1 - EDGE)
    logits: FloatArray = np.log(free) - np.log1p(-free)
    return logits


@functools.cache
def _tie(name: str) -> bytes:
    """Where a decision stands among equals."""
    return hashlib.sha256(name.encode()).digest()


def _bounded(logits: FloatArray) -> FloatArray:
    values = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite")
    return np.clip(values, -LOGIT_LIMIT, LOGIT_LIMIT)


def _fill(n: IntArray, least: IntArray, cost: IntArray, logits: FloatArray, budget: int) -> FloatArray:
    """Fractional keeps with sum(cost * keep) = budget, clipped to what the bounds allow."""
    low, high = -2 * LOGIT_LIMIT - 10, 2 * LOGIT_LIMIT + 10
    for _ in range(100):
        middle = (low + high) / 2
        keep = least + (n - least) / (1 + np.exp(-(logits + middle)))
        if math.fsum(cost * keep) > budget:
            high = middle
        else:
            low = middle
    filled: FloatArray = least + (n - least) / (1 + np.exp(-(logits + low)))
    return filled


def _settle_coarse(problem: PruningProblem, wanted: FloatArray) -> IntArray:
    """Whole units for every decision: the nearest for the coarse ones, floors for the finest class.

    Where the coarse ones would leave less than the fine ones' min_keep, the most generously rounded give back.
    """
    cost, ties = problem.params_per_unit, [_tie(decision.name) for decision in problem.decisions]
    coarse = cost > cost.min()
    keep = np.floor(wanted + np.where(coarse, 0.5, 0.0)).astype(np.int64)
    keep = np.clip(keep, problem.min_keep, problem.n_units)
    least = int(np.dot(problem.min_keep[~coarse], cost[~coarse]))
    while int(np.dot(keep[coarse], cost[coarse])) + least > kept_budget(problem):
        givers = [i for i in np.flatnonzero(coarse) if keep[i] > problem.min_keep[i]]
        keep[max(givers, key=lambda i: (keep[i] - wanted[i], ties[i]))] -= 1
    return keep


def _settle_fine(problem: PruningProblem, keep: IntArray, logits: FloatArray) -> IntArray:
    """Fill the finest class again with what the coarse units left over, and round it down."""
    cost = problem.params_per_unit
    fine = cost == cost.min()
    left = kept_budget(problem) - int(np.dot(keep[~fine], cost[~fine]))
    filled = _fill(problem.n_units[fine], problem.min_keep[fine], cost[fine], logits[fine], left)
    settled = keep.copy()
    settled[fine] = np.clip(np.floor(filled + 1e-9).astype(np.int64), problem.min_keep[fine], problem.n_units[fine])
    while int(np.dot(settled, cost)) > kept_budget(problem):  # the 1e-9 above, on a very large module
        givers = [i for i in np.flatnonzero(fine) if settled[i] > problem.min_keep[i]]
        settled[min(givers, key=lambda i: _tie(problem.decisions[i].name))] -= 1
    return settled


def _top_up(problem: PruningProblem, keep: IntArray, wanted: FloatArray) -> IntArray:
    """Add the units that are furthest below what was wanted until no unit fits into the budget."""
    cost, ties = problem.params_per_unit, [_tie(decision.name) for decision in problem.decisions]
    keep, slack = keep.copy(), kept_budget(problem) - int(np.dot(keep, problem.params_per_unit))
    while fits := [i for i in range(len(ties)) if keep[i] < problem.n_units[i] and cost[i] <= slack]:
        best = min(fits, key=lambda i: (keep[i] - wanted[i], ties[i]))
        keep[best] += 1
        slack -= int(cost[best])
    return keep
