"""The published repository's projection, order-dependent as it is: for the ablation of the projection alone.

|a| clipped to [least share, 1] is the wish. A deficit is filled in proportion to the modules' headroom; an excess is
cut module by module in network order, each down to its least share, until the budget is met, so that at high sparsity
the first blocks give everything. Departs: KV groups are counted, not query heads, and a last step rounds to whole units
on the exact budget, which the repository misses by up to 1e-3. Source: the code of Yuan et al., arXiv:2511.18977.
"""

from __future__ import annotations

import numpy as np

from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import kept_budget, round_keep


def project_sequentially(problem: PruningProblem, action: FloatArray) -> Allocation:
    """The feasible allocation of an action, (n_decisions,); BudgetError if the target is infeasible."""
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
