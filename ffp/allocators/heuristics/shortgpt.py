"""ShortGPT: removes whole blocks, first those that change their input least (Men et al., arXiv:2403.03853).

    BI_l = 1 - mean over tokens of cos(h_l, h_{l+1})       block influence, h the residual stream of the dense model

Blocks are emptied in rising order of BI until the budget is met; the last one in part.

Departures: an emptied block keeps min_keep units of each decision; with `min_keep: 0` it is gone. The budget is of
parameters, not of blocks. The method stands for depth pruning: it is the most uneven allocation possible.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ffp.allocators.base import CalibrationStats, Heuristic
from ffp.allocators.blockwise import blocks_of
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import kept_budget, round_keep


class ShortGpt(Heuristic):
    """Empties the least influential blocks."""

    name: ClassVar[str] = "shortgpt"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "whole blocks go, the least influential first"
    citation: ClassVar[str] = "Men et al., arXiv:2403.03853"
    equation: ClassVar[str] = (
        r"\mathrm{BI}_l = 1 - \mathbb{E}_t\left[\frac{h_{l,t}^\top h_{l+1,t}}"
        r"{\lVert h_{l,t} \rVert\,\lVert h_{l+1,t} \rVert}\right]"
    )

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Empties blocks in rising order of influence until the budget is met."""
        keep, blocks = problem.n_units.astype(np.float64), blocks_of(problem)
        cost = problem.params_per_unit
        excess = float(np.dot(keep, cost)) - kept_budget(problem)
        for block in np.argsort(stats.block_influence(), kind="stable"):
            mine = blocks == block
            room = float(np.dot((keep - problem.min_keep)[mine], cost[mine]))
            part = min(1.0, excess / room) if room > 0 else 0.0
            keep[mine] -= part * (keep - problem.min_keep)[mine]
            excess -= part * room
            if excess <= 0:
                break
        return round_keep(problem, keep)
