"""Ramp: the blocks' sparsities are an arithmetic progression (Huang et al., "ATP", arXiv:2502.14770).

    s_l = target + beta * (l - (L + 1) / 2),  l = 1..L

Constants: beta = `slope` / (L - 1), so that the last block loses `slope` more than the first for every number of
blocks L. The authors search beta on a grid by perplexity on WikiText-2. Here it is fixed, so that the method needs no
evaluations; other values are variants.

Departures: the middle is the mean over blocks weighted by parameters. Shares outside [0, 1] are clipped, and the
projection makes up for that.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import CalibrationStats, Heuristic
from ffp.allocators.blockwise import allocate_blocks, block_params
from ffp.core.problem import Allocation, PruningProblem


class Ramp(Heuristic):
    """Removes more from later blocks, in equal steps."""

    name: ClassVar[str] = "ramp"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "later blocks lose more, in equal steps"
    citation: ClassVar[str] = "Huang et al., arXiv:2502.14770"
    equation: ClassVar[str] = r"s_l = s + \beta\left(l - \frac{L + 1}{2}\right), \qquad l = 1, \dots, L"
    reads_weights: ClassVar[bool] = False

    slope: float = Field(0.2, ge=-2, le=2, description="beta * (L - 1): sparsity of the last block minus the first's.")

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Spaces the blocks' sparsities evenly around the target."""
        params = block_params(problem)
        steps = np.arange(len(params)) / max(len(params) - 1, 1)
        removed = problem.target + self.slope * (steps - np.average(steps, weights=params))
        return allocate_blocks(problem, 1 - removed)
