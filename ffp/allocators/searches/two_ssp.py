"""2SSP: equally wide FFNs, and whole attentions leave, the dispensable ones first (Sandri et al., arXiv:2501.17771).

First stage: so many attentions leave that

    N = round(L * s^((p_ffn / p_attention) / alpha)),

with L blocks, the sparsity s, and the parameters p of an FFN and of an attention; all FFNs give the same share of what
is left to remove. Second stage: N times, each attention that is left is taken out in turn, with the FFNs at their final
width, and the one whose loss leaves the model best goes. The loss is that of one window.

Departures: which FFN channels leave is the `score` of a variant; the paper takes the mean over 32 samples of the L2
norm of a channel. N is lowered or raised where the budget asks for it, which the published code refuses. FFNs differ
by a channel at most, so that less than one is left over. Norms are no part of s. Blocks that have to stay whole count
neither in L nor in s. The attention of block 0 never leaves in ffp, so that at most L - 1 do. Where the tokens of the
search do not pay for N rounds, each round takes the same larger number of attentions, by one ranking; where they pay
for no round, the last attentions leave. The published window has 2,048 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.tracker import Tracker, best_first
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, IntArray, PruningProblem
from ffp.core.projection import kept_budget, project_shares, round_keep


class TwoSsp(Search):
    """Removes whole attentions greedily, and the rest from all FFNs alike."""

    name: ClassVar[str] = "2ssp"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "equal FFNs, whole attentions leave greedily"
    citation: ClassVar[str] = "Sandri et al., arXiv:2501.17771"
    takes_gradients: ClassVar[bool] = False
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})
    equation: ClassVar[str] = (
        r"N = \mathrm{round}\left(L\, s^{\,p_\mathrm{ffn} / (\alpha\, p_\mathrm{attention})}\right), \qquad "
        r"a_{n+1} = \arg\min_a L\left(a_1, \dots, a_n, a\right)"
    )

    alpha: float = Field(1.5, gt=0, le=100, description="alpha: a larger one takes more attentions and wider FFNs.")
    windows: int = Field(
        1, ge=1, le=1_000_000, description="Windows of the search text on which attentions are compared."
    )

    def check(self, problem: PruningProblem) -> None:
        """Refuses problems whose attentions have to keep a part; that of block 0 always has to."""
        free = problem.free_blocks
        for decision in problem.decisions:
            is_free = decision.module == "attention" and decision.block in free and decision.block != "block00"
            if is_free and 0 < decision.min_keep < max(2, decision.n_units):
                raise ConfigError(
                    f"2ssp removes whole attentions, but {decision.name} has to keep {decision.min_keep} of "
                    f"{decision.n_units} units. Set min_keep: 0 for the model, or take another method."
                )

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a round, where an attention has to leave."""
        plan, affordable = _Plan(problem, self.alpha), budget.all_windows // min(self.windows, n_windows)
        return not plan.count or per_round(len(plan.removable), plan.count, affordable) > 0

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Chooses the attentions that leave, and answers with FFNs of equal width beside them."""
        problem = tracker.problem
        plan = _Plan(problem, self.alpha)
        tracker.answer(plan.answer([]))
        windows = tracker.draw(rng, self.windows)
        each = per_round(len(plan.removable), plan.count, tracker.windows_left // len(windows))
        gone: list[int] = []
        while each and len(gone) < plan.count:
            left = [i for i in plan.removable if i not in gone]
            candidates = [plan.without([*gone, i]) for i in left]
            sparsity = min(problem.target, *(problem.sparsity_of(candidate.keep) for candidate in candidates))
            scores = tracker.score(candidates, windows, stage="attention", target=sparsity)
            gone += [left[j] for j in best_first(scores)[: min(each, plan.count - len(gone))]]
            tracker.answer(plan.answer(gone))
        return tracker.finish([plan.answer(gone)])


def attentions_to_remove(problem: PruningProblem, alpha: float) -> int:
    """Returns N of the formula, for the blocks that do not have to stay whole."""
    blocks = problem.free_blocks
    free = [decision for decision in problem.decisions if decision.block in blocks]
    attentions = [decision.params for decision in free if decision.module == "attention"]
    attention, every = sum(attentions), sum(decision.params for decision in free)
    sparsity = min(1.0, problem.params_to_remove / max(1, every))
    return round(len(attentions) * math.pow(sparsity, (every - attention) / max(1, attention) / alpha))


def per_round(n: int, count: int, affordable: int) -> int:
    """Returns the fewest of `count` attentions to take in each round, so that all rounds cost `affordable` at most.

    A round costs an evaluation for each of the `n` attentions that are left. 0 if there is nothing to take, or no such
    number.
    """
    costs = {each: sum(n - gone for gone in range(0, count, each)) for each in range(1, count + 1)}
    return min((each for each, cost in costs.items() if cost <= affordable), default=0)


class _Plan:
    """How many attentions leave, out of which, and what the FFNs keep then.

    Attributes:
        removable: Decisions of attention that may leave whole, in forward order.
        count: How many of them leave.
    """

    def __init__(self, problem: PruningProblem, alpha: float):
        self._problem = problem
        is_attention = np.array([decision.module == "attention" for decision in problem.decisions])
        sizes = problem.n_units * problem.params_per_unit
        able = is_attention & (problem.min_keep == 0)
        self.removable = [int(i) for i in np.flatnonzero(able)]
        from_ffns = int(np.dot((problem.n_units - problem.min_keep) * ~is_attention, problem.params_per_unit))
        kept_budget(problem)  # refuses what cannot be met
        removed, size = problem.params_to_remove, max(1, int(sizes[able].max(initial=1)))
        least, most = math.ceil(max(0, removed - from_ffns) / size), removed // size
        self.count = min(len(self.removable), max(least, min(most, attentions_to_remove(problem, alpha))))
        self._keep = self._widths(is_attention, sizes)

    def _widths(self, is_attention: npt.NDArray[np.bool_], sizes: IntArray) -> IntArray:
        """Kept units if the last attentions leave: the FFNs keep an equal share, up to a unit."""
        problem = self._problem
        shares = np.ones(len(sizes))
        shares[self._filled([])] = 0
        free = ~is_attention & (problem.min_keep < problem.n_units)
        left = kept_budget(problem) - float(np.dot(shares, np.where(free, 0, sizes)))
        shares[free] = np.clip(left / max(1.0, float(sizes[free].sum())), 0, 1)
        return np.array(project_shares(problem, shares).keep)

    def _filled(self, gone: Sequence[int]) -> list[int]:
        """As many attentions as have to leave: those chosen, then the last ones."""
        return [*gone, *(i for i in reversed(self.removable) if i not in gone)][: self.count]

    def without(self, gone: Sequence[int]) -> Allocation:
        """Returns the candidate in which these attentions alone are gone, above the budget while more have to leave."""
        keep = self._keep.copy()
        keep[self.removable] = self._problem.n_units[self.removable]
        keep[list(gone)] = 0
        return Allocation.of(self._problem, keep)

    def answer(self, gone: Sequence[int]) -> Allocation:
        """Returns the allocation in which these attentions, and the last ones for what lacks of them, are gone."""
        return round_keep(self._problem, np.array(self.without(self._filled(gone)).keep, dtype=np.float64))
