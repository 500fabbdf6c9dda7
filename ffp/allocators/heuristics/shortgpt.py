"""ShortGPT: whole blocks go, those first that change their input least (Men et al., arXiv:2403.03853).

    BI_l = 1 - mean over tokens of cos(h_l, h_{l+1})       block influence, h the residual stream of the dense model

Blocks are emptied in rising order of BI until the budget is met; the last one in part. Departs: an emptied block keeps
min_keep units of each decision, and so stays in the model; the budget is of parameters, not of blocks. It is the
extreme of what an allocation can be, and a yardstick for depth pruning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.blockwise import blocks_of
from ffp.allocators.tracker import needed
from ffp.core.problem import PruningProblem
from ffp.core.projection import kept_budget, round_keep


@dataclass(frozen=True)
class ShortGpt:
    """One look at the statistics; nothing is evaluated or drawn."""

    name: str = field(default="shortgpt", init=False)
    version: str = field(default="1", init=False)

    def allocate(
        self,
        problem: PruningProblem,
        *,
        stats: CalibrationStats | None,
        reward: Reward | None,
        budget: SearchBudget,
        seed: int,
    ) -> SearchResult:
        """Answer `problem`; BudgetError if its target is infeasible, ArtifactError if `stats` know no influences."""
        influence = needed(stats, self.name, "calibration statistics").block_influence()
        keep, blocks = problem.n_units.astype(np.float64), blocks_of(problem)
        cost = problem.params_per_unit
        excess = float(np.dot(keep, cost)) - kept_budget(problem)
        for block in np.argsort(influence, kind="stable"):
            mine = blocks == block
            room = float(np.dot((keep - problem.min_keep)[mine], cost[mine]))
            part = min(1.0, excess / room) if room > 0 else 0.0
            keep[mine] -= part * (keep - problem.min_keep)[mine]
            excess -= part * room
            if excess <= 0:
                break
        return SearchResult(round_keep(problem, keep))
