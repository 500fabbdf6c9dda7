"""By size: decisions with more parameters lose a larger share. An example of a method in a package of its own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import CalibrationStats, Heuristic
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import project


class BySize(Heuristic):
    """Prunes large decisions more."""

    name: ClassVar[str] = "by-size"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "large decisions lose more"
    citation: ClassVar[str] = "-"
    equation: ClassVar[str] = r"k_i = \sigma(t - \gamma \ln p_i)"
    reads_weights: ClassVar[bool] = False

    strength: float = Field(0.5, ge=0, le=10, description="gamma: how much the logit falls with the log of the size.")

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Makes the logits fall with the logarithm of the sizes."""
        return project(problem, -self.strength * np.log([decision.params for decision in problem.decisions]))
