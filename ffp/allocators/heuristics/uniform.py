"""Uniform: every decision keeps the same share. An allocation has to beat it to be worth anything."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ffp.allocators.base import CalibrationStats, Heuristic
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import project_shares


def uniform_allocation(problem: PruningProblem) -> Allocation:
    """Keeps the share 1 - target of every decision, up to whole units."""
    return project_shares(problem, np.full(len(problem.decisions), 1 - problem.target))


class Uniform(Heuristic):
    """Keeps the same share of every decision."""

    name: ClassVar[str] = "uniform"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "the same share of every module"
    citation: ClassVar[str] = "-"
    equation: ClassVar[str] = r"k_i = 1 - s \quad \text{for every decision } i"
    reads_weights: ClassVar[bool] = False

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Returns `uniform_allocation`."""
        return uniform_allocation(problem)
