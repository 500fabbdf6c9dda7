"""FFN-only: attention stays whole and every FFN keeps the same share. Hard to beat on small models.

Where the FFNs cannot give enough, the projection takes the rest from attention.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ffp.allocators.base import CalibrationStats, Heuristic
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import project_shares


def ffn_only_allocation(problem: PruningProblem) -> Allocation:
    """Keeps all of attention, and of every FFN the share that the budget leaves."""
    attention = np.array([decision.module == "attention" for decision in problem.decisions])
    params = problem.n_units * problem.params_per_unit
    removed = problem.target * problem.total_params / max(int(params[~attention].sum()), 1)
    return project_shares(problem, np.where(attention, 1.0, 1.0 - removed))


class FfnOnly(Heuristic):
    """Removes units of FFNs only, the same share of each."""

    name: ClassVar[str] = "ffn-only"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "attention stays whole, FFNs share the cut"
    citation: ClassVar[str] = "-"
    equation: ClassVar[str] = (
        r"k_{\text{attn}} = 1, \qquad k_{\text{ffn}} = 1 - s\,\frac{p_{\text{attn}} + p_{\text{ffn}}}{p_{\text{ffn}}}"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured", "unstructured"})  # attention stands apart
    reads_weights: ClassVar[bool] = False

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Returns `ffn_only_allocation`."""
        return ffn_only_allocation(problem)
