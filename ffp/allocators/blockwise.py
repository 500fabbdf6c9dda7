"""What methods share that give one ratio to every block: which decisions a block has, and how ratios become units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ffp.allocators.base import CalibrationStats, LinearStats
from ffp.core.errors import ArtifactError
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import project_shares


def blocks_of(problem: PruningProblem) -> npt.NDArray[np.int64]:
    """The block of each decision, counted in forward order: (n_decisions,)."""
    number = {block: i for i, block in enumerate(dict.fromkeys(decision.block for decision in problem.decisions))}
    return np.array([number[decision.block] for decision in problem.decisions])


def block_params(problem: PruningProblem) -> FloatArray:
    """Parameters of each block that the budget counts: (n_blocks,)."""
    sizes = np.bincount(blocks_of(problem), [float(decision.params) for decision in problem.decisions])
    return sizes.astype(np.float64)


def by_block(
    problem: PruningProblem, stats: CalibrationStats, measure: Callable[[Sequence[LinearStats]], float]
) -> FloatArray:
    """One figure of each block's linears, (n_blocks,); ArtifactError where `stats` know no linear of a decision."""
    figures = np.zeros(stats.n_blocks)
    known: set[str] = set()
    for block in range(stats.n_blocks):
        linears = list(stats.linears(block))
        known.update(linear.decision for linear in linears)
        figures[block] = measure(linears)
    if lost := [decision.name for decision in problem.decisions if decision.name not in known]:
        raise ArtifactError(f"calibration statistics have no linear of {lost[0]}. Calibrate this model again.")
    return figures


def spread_keep(problem: PruningProblem, score: FloatArray, strength: float) -> FloatArray:
    """Kept shares of the blocks, linear in a score: a range of 2 * strength about the target's.

    score: (n_blocks,), higher keeps more. The mean, weighted by parameters, is 1 - target; uniform if all tie.
    """
    spread = float(np.ptp(score))
    ratios = (score - score.min()) / spread * 2 * strength if spread else np.zeros(len(score))
    keep: FloatArray = 1 - problem.target + ratios - np.average(ratios, weights=block_params(problem))
    return keep


def allocate_blocks(problem: PruningProblem, keep: FloatArray) -> Allocation:
    """Every decision keeps its block's share, (n_blocks,); what lies outside [0, 1] is clipped, the rest makes up."""
    return project_shares(problem, np.clip(keep, 0, 1)[blocks_of(problem)])
