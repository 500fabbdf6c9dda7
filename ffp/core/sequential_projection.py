"""The projection of the published code, which depends on the order of the decisions: for an ablation.

The request is |a|, clipped to [least share, 1]. A deficit is filled in proportion to what the decisions can still take.
An excess is cut decision by decision in network order, each down to its least share, until the budget is met; at high
sparsity the first blocks therefore lose everything.

Departures: KV groups are counted, not query heads, and a last step rounds to whole units on the exact budget, which
the published code misses by up to 1e-3. Source: the code of Yuan et al., arXiv:2511.18977.
"""

from __future__ import annotations

import numpy as np

from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import kept_budget, round_keep


def project_sequentially(problem: PruningProblem, action: FloatArray) -> Allocation:
    """Projects an action onto an allocation that meets the budget, in network order.

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
