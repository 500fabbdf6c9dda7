"""What methods share that give one kept share to every block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ffp.allocators.base import CalibrationStats, LinearStats
from ffp.core.errors import ArtifactError
from ffp.core.problem import Allocation, FloatArray, IntArray, PruningProblem
from ffp.core.projection import project_shares


def blocks_of(problem: PruningProblem) -> IntArray:
    """Returns the block of each decision, counted in forward order, (n_decisions,)."""
    number = {block: i for i, block in enumerate(dict.fromkeys(decision.block for decision in problem.decisions))}
    return np.array([number[decision.block] for decision in problem.decisions])


def block_params(problem: PruningProblem) -> FloatArray:
    """Returns the parameters of each block that the budget counts, (n_blocks,)."""
    sizes = np.bincount(blocks_of(problem), [float(decision.params) for decision in problem.decisions])
    return sizes.astype(np.float64)


def by_block(
    problem: PruningProblem, stats: CalibrationStats, measure: Callable[[Sequence[LinearStats]], float]
) -> FloatArray:
    """Measures the linears of each block.

    Args:
        problem: Its decisions have to appear in `stats`.
        stats: Read one block at a time.
        measure: Called with all linears of a block.

    Returns:
        The measured figures, (n_blocks,).

    Raises:
        ArtifactError: `stats` have no linear of a decision.
    """
    figures = np.zeros(stats.n_blocks)
    known: set[str] = set()
    for block in range(stats.n_blocks):
        linears = list(stats.linears(block))
        known.update(linear.decision for linear in linears)
        figures[block] = measure(linears)
    check_known(problem, known)
    return figures


def check_known(problem: PruningProblem, known: set[str]) -> None:
    """Raises ArtifactError unless calibration statistics, which `known` names, cover every decision."""
    if lost := [decision.name for decision in problem.decisions if decision.name not in known]:
        raise ArtifactError(f"calibration statistics have no linear of {lost[0]}. Calibrate this model again.")


def stretch(score: FloatArray, max_deviation: float) -> FloatArray:
    """Scales block scores linearly to a range from 0 to 2 * max_deviation; zeros if all blocks tie, (n_blocks,)."""
    spread = float(np.ptp(score))
    return (score - score.min()) / spread * 2 * max_deviation if spread else np.zeros(len(score))


def allocate_blocks(problem: PruningProblem, keep: FloatArray) -> Allocation:
    """Gives every decision its block's kept share, (n_blocks,), clipped to [0, 1] and projected onto the budget."""
    return project_shares(problem, np.clip(keep, 0, 1)[blocks_of(problem)])
