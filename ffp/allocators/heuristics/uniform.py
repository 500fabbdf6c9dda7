"""Uniform: every decision keeps the same share. An allocation has to beat it to be worth anything.

The budget leaves a few units over, which some decisions get. With `equal` nobody gets them: all blocks are equal in
size, and the pruned model is an ordinary one of its architecture. Coarse units (KV groups, query heads) are rounded in
all blocks alike, so that at 20 % one of three leaves every block; with `spread` some blocks lose one and others none.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from ffp.allocators.base import CalibrationStats, Heuristic
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import kept_budget, project_shares


def uniform_allocation(problem: PruningProblem) -> Allocation:
    """Keeps the share 1 - target of every decision, up to whole units."""
    return project_shares(problem, np.full(len(problem.decisions), 1 - problem.target))


def equal_allocation(problem: PruningProblem) -> Allocation:
    """Keeps the same number of units in all decisions of a kind, as near to the share 1 - target as the budget allows.

    Kinds with expensive units (KV groups) are rounded first, and the one with the cheapest units (FFN channels) fills
    the budget, up to less than one of its units a block. Decisions that have to stay whole do.
    """
    keep, budget = problem.n_units.copy(), kept_budget(problem)
    kinds: dict[tuple[int, str, int], list[int]] = {}
    for index, decision in enumerate(problem.decisions):
        if decision.min_keep < decision.n_units:
            kinds.setdefault((decision.params_per_unit, decision.module, decision.n_units), []).append(index)
    ordered = [kinds[kind] for kind in sorted(kinds, reverse=True)]
    for mine in ordered:
        keep[mine] = np.clip(round((1 - problem.target) * keep[mine[0]]), problem.min_keep[mine].max(), keep[mine[0]])
    for mine in reversed(ordered):  # the cheapest kind gives way, or takes, first
        least, most = problem.min_keep[mine].max(), problem.n_units[mine[0]]
        price = int(problem.params_per_unit[mine].sum())
        slack = budget - int(np.dot(keep, problem.params_per_unit))
        keep[mine] = np.clip(keep[mine[0]] + slack // price, least, most)
    return Allocation.of(problem, keep)


def spread_allocation(problem: PruningProblem) -> Allocation:
    """Keeps the same share of every kind of decision; what cannot be divided leaves some blocks, evenly spaced."""
    free = np.where(problem.min_keep < problem.n_units, problem.n_units * problem.params_per_unit, 0).sum()
    share = max(0.0, 1 - problem.params_to_remove / max(1, free))
    shares, kinds = np.full(len(problem.decisions), share), [d.module for d in problem.decisions]
    for kind in dict.fromkeys(kinds):
        mine = [i for i, module in enumerate(kinds) if module == kind and problem.min_keep[i] < problem.n_units[i]]
        whole = np.round(np.cumsum(shares[mine] * problem.n_units[mine]))
        shares[mine] = np.diff(whole, prepend=0) / problem.n_units[mine]
    return project_shares(problem, shares)


class Uniform(Heuristic):
    """Keeps the same share of every decision."""

    name: ClassVar[str] = "uniform"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "the same share of every module"
    citation: ClassVar[str] = "-"
    equation: ClassVar[str] = r"k_i = 1 - s \quad \text{for every decision } i"
    reads_weights: ClassVar[bool] = False

    equal: bool = Field(
        False, description="Keep the same number of units in every block, and leave over what that cannot share out."
    )

    spread: bool = Field(
        False, description="Let coarse units leave every second or third block, so that each kind loses its share."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Uniform:
        if self.equal and self.spread:
            raise ValueError("equal keeps all blocks alike, and spread does not. Give one of them")
        return self

    def check(self, problem: PruningProblem) -> None:
        """Refuses sparsities that equal blocks cannot meet, since one of them has to keep more than the others."""
        if not self.equal or problem.params_to_remove > problem.removed_by(problem.min_keep):
            return  # in the second case no method can meet it
        keep = equal_allocation(problem).keep
        if problem.removed_by(keep) < problem.params_to_remove:
            most = math.floor(1e4 * problem.sparsity_of(keep) + 1e-9) / 1e4
            raise ConfigError(
                f"uniform with equal: true cannot remove {problem.target:g}: where all blocks keep the same, at most "
                f"{most:.4f} can be removed. Lower the sparsity, or leave equal out."
            )

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Returns `uniform_allocation`, `equal_allocation` or `spread_allocation`."""
        return (equal_allocation if self.equal else spread_allocation if self.spread else uniform_allocation)(problem)
