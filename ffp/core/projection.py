"""Projects requested keep ratios onto allocations that meet the parameter budget, for every method.

A request is one logit, or one kept share, per decision. Water-filling shifts all logits by the same t until the
parameters meet the budget. Decisions with expensive units (KV groups) are then rounded to the nearest whole unit, each
by itself, and decisions with the cheapest units (FFN channels) absorb the remainder. Nothing depends on the order of
the decisions: sums are exactly rounded (math.fsum), and ties are broken by a digest of the decision's name, which
favours neither early nor late blocks.

The published projection (Yuan et al., arXiv:2511.18977, and its code) differs: it fills deficits module by module in
network order, may miss the budget and is not nested in sparsity. See project_sequentially.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np

from ffp.core.errors import BudgetError
from ffp.core.problem import Allocation, FloatArray, IntArray, PruningProblem

LOGIT_LIMIT = 30.0  # logits are clipped to +-LOGIT_LIMIT
EDGE = 0.05  # free share of a full or empty decision in logits_of


def max_sparsity(problem: PruningProblem) -> float:
    """Returns the largest sparsity that the decisions' min_keep allow."""
    return problem.sparsity_of(problem.min_keep)


def kept_budget(problem: PruningProblem) -> int:
    """Returns how many parameters of units may stay, so that at least the target's share is removed.

    Raises:
        BudgetError: min_keep forbids the target.
    """
    removed = problem.params_to_remove
    if removed > problem.removed_by(problem.min_keep):
        most = math.floor(1e4 * max_sparsity(problem) + 1e-9) / 1e4  # rounded up it could not be met either
        raise BudgetError(
            f"sparsity {problem.target:g} cannot be met: with these min_keep at most {most:.4f} can be removed. "
            "Lower the sparsity, min_keep or keep_blocks."
        )
    return int(np.dot(problem.n_units, problem.params_per_unit)) - removed


def dense(problem: PruningProblem) -> Allocation:
    """Returns the allocation that keeps everything."""
    return Allocation.of(problem, problem.n_units)


def water_fill(problem: PruningProblem, logits: FloatArray) -> FloatArray:
    """Returns fractional kept units that meet the budget.

    The kept share is p_i + (1 - p_i) * sigmoid(logits_i + t) with p_i = min_keep_i / n_units_i, and t is found by
    bisection. A higher sparsity keeps no more of any decision.

    Args:
        problem: The decisions and their budget.
        logits: (n_decisions,), larger keeps more.

    Returns:
        (n_decisions,), within the decisions' bounds.

    Raises:
        BudgetError: The target is infeasible.
    """
    return _fill(problem.n_units, problem.min_keep, problem.params_per_unit, _bounded(logits), kept_budget(problem))


def project(problem: PruningProblem, logits: FloatArray) -> Allocation:
    """Projects logits onto an allocation that meets the budget.

    The realised sparsity is at least the target and exceeds it by less than the cheapest unit that could still be kept.

    Args:
        problem: The decisions and their budget.
        logits: (n_decisions,), larger keeps more; only differences count.

    Raises:
        BudgetError: The target is infeasible.
        ValueError: Logits are not finite or of another shape.
    """
    logits = _bounded(logits)
    if logits.shape != (len(problem.decisions),):
        raise ValueError(f"{logits.shape} logits for {len(problem.decisions)} decisions")
    wanted = water_fill(problem, logits)
    keep = _settle_coarse(problem, wanted)
    keep = _settle_fine(problem, keep, logits)
    return Allocation.of(problem, _top_up(problem, keep, wanted))


def project_shares(problem: PruningProblem, shares: FloatArray) -> Allocation:
    """Projects requested kept shares onto an allocation that meets the budget.

    Shares that meet the budget are kept up to rounding; otherwise all are shifted together in logit space.

    Args:
        problem: The decisions and their budget.
        shares: (n_decisions,), in [0, 1].

    Raises:
        BudgetError: The target is infeasible.
    """
    floor = problem.min_keep / problem.n_units
    free = np.clip((np.asarray(shares, dtype=np.float64) - floor) / np.maximum(1 - floor, 1e-12), 1e-9, 1 - 1e-9)
    return project(problem, np.log(free) - np.log1p(-free))


def round_keep(problem: PruningProblem, keep: FloatArray) -> Allocation:
    """Projects requested kept units onto an allocation that meets the budget; one that does is returned as it is.

    Args:
        problem: The decisions and their budget.
        keep: (n_decisions,), may be fractional or miss the budget.

    Raises:
        BudgetError: The target is infeasible.
    """
    whole = np.round(keep).astype(np.int64)
    if bool((whole == keep).all()) and (whole >= problem.min_keep).all() and (whole <= problem.n_units).all():
        slack = kept_budget(problem) - int(np.dot(whole, problem.params_per_unit))
        addable = problem.params_per_unit[whole < problem.n_units]
        if 0 <= slack < min(addable, default=slack + 1):
            return Allocation.of(problem, whole)
    return project_shares(problem, np.asarray(keep, dtype=np.float64) / problem.n_units)


def project_sequentially(problem: PruningProblem, action: FloatArray) -> Allocation:
    """Projects an action as the published code does, in network order: for an ablation.

    The request is |a|, clipped to [least share, 1]. A deficit is filled in proportion to what the decisions can still
    take. An excess is cut decision by decision, each down to its least share, until the budget is met; at high sparsity
    the first blocks therefore lose everything.

    Departures: KV groups are counted, not query heads, and a last step rounds to whole units on the exact budget, which
    the published code misses by up to 1e-3. Source: the code of Yuan et al., arXiv:2511.18977.

    Args:
        problem: The decisions and their budget.
        action: (n_decisions,), read as kept shares.

    Raises:
        BudgetError: The target is infeasible.
    """
    params = (problem.n_units * problem.params_per_unit).astype(np.float64)
    least = problem.min_keep / problem.n_units
    shares = np.clip(np.abs(action), least, 1.0)
    missing = kept_budget(problem) - float(shares @ params)
    if missing > 0:
        headroom = (1 - shares) * params
        shares = shares + missing * headroom / max(headroom.sum(), 1.0) / params
    for i in range(len(shares)):
        excess = float(shares @ params) - kept_budget(problem)
        if excess <= 0:
            break
        shares[i] -= min(excess / params[i], shares[i] - least[i])
    return round_keep(problem, np.clip(shares, least, 1.0) * problem.n_units)


def logits_of(problem: PruningProblem, allocation: Allocation) -> FloatArray:
    """Returns logits whose projection is about this allocation, (n_decisions,).

    Free shares are clipped to [EDGE, 1 - EDGE], so that a search can move full and empty decisions back.
    """
    floor = problem.min_keep / problem.n_units
    free = (np.asarray(allocation.keep) / problem.n_units - floor) / np.maximum(1 - floor, 1e-12)
    free = np.clip(free, EDGE, 1 - EDGE)
    logits: FloatArray = np.log(free) - np.log1p(-free)
    return logits


@functools.cache
def _tie(name: str) -> bytes:
    """Rank of a decision among equal ones."""
    return hashlib.sha256(name.encode()).digest()


def _bounded(logits: FloatArray) -> FloatArray:
    values = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite")
    return np.clip(values, -LOGIT_LIMIT, LOGIT_LIMIT)


def _fill(n: IntArray, least: IntArray, cost: IntArray, logits: FloatArray, budget: int) -> FloatArray:
    """Fractional kept units with sum(cost * keep) = budget, as far as the bounds allow."""
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
    """Rounds to whole units: decisions with expensive units to the nearest, those with the cheapest units down.

    Where the expensive units would leave less than the others' min_keep, those that were rounded up most are reduced.
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
    """Distributes what the expensive units left over among the cheapest ones again, and rounds that down."""
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
    """Adds units where most is missing from what was wanted, until no unit fits into the budget."""
    cost, ties = problem.params_per_unit, [_tie(decision.name) for decision in problem.decisions]
    keep, slack = keep.copy(), kept_budget(problem) - int(np.dot(keep, problem.params_per_unit))
    while fits := [i for i in range(len(ties)) if keep[i] < problem.n_units[i] and cost[i] <= slack]:
        best = min(fits, key=lambda i: (keep[i] - wanted[i], ties[i]))
        keep[best] += 1
        slack -= int(cost[best])
    return keep
