"""Error table and dynamic programming: each decision's own damage, and the exact optimum of their sum.

The table: decisions are cut one at a time, with the rest of the model dense, and the loss of the whole model is
measured at a few levels. If damages added up, the best allocation would be a multiple-choice knapsack. It is solved
exactly, by dynamic programming over removed parameters, for a grid of levels between which the table is interpolated.
The idea is from SPDY (Frantar and Alistarh, arXiv:2201.13096) and from the additive baseline in EvoPress's code
(Sieberling et al., arXiv:2410.14649). Their tables hold layer-wise errors; this one holds the end-to-end loss that all
searches measure.

The table is paid from the search budget. Where that has fewer evaluations than there are decisions, neighbours in
forward order are cut together and share an entry; with a single evaluation the answer is uniform. Damage is
interpolated by its secant slope, cost(x) = x * slope(x), where the slope is linear between levels and 0 at x = 0, so
that damage is quadratic below the first level. No decision gives more than was measured of it: damages do not add up,
and a decision whose removal happened to cost nothing on few windows would be removed whole. Blocks that have to stay
whole are not measured; the target is then that of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.tracker import Tracker, Windows
from ffp.core.knapsack import knapsack
from ffp.core.problem import Allocation, FloatArray, IntArray, PruningProblem
from ffp.core.projection import round_keep

MAX_LEVELS = 4
OPTIONS = 32  # levels between which the knapsack chooses for one entry


class ErrorTableDp(Search):
    """Measures each decision's own damage and minimises the sum."""

    name: ClassVar[str] = "error-table-dp"
    version: ClassVar[str] = "2"
    summary: ClassVar[str] = "each decision's own damage, summed, by exact knapsack"
    citation: ClassVar[str] = "Frantar and Alistarh, arXiv:2201.13096"
    takes_gradients: ClassVar[bool] = False
    equation: ClassVar[str] = (
        r"\min_{k} \sum_i c_i(x_i) \quad \text{subject to} \quad \sum_i x_i\,p_i \ge s \sum_i p_i, \quad "
        r"0 \le x_i \le X, \qquad x_i = 1 - k_i"
        "\n"
        r"\frac{X}{1 - X} = r\,\frac{s}{1 - s}, \qquad r = \mathrm{reach}"
    )

    levels: int = Field(0, ge=0, le=100, description="Levels measured of each decision; 0 for what the budget allows.")
    reach: float = Field(
        3.0,
        ge=1,
        le=1000,
        description="r: odds, removed to kept, of the largest share measured, over the target's odds.",
    )

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for two entries of the table; a single one is the uniform answer."""
        return budget.evaluations >= 2

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Measures the table, then solves the knapsack."""
        problem = tracker.problem
        tracker.answer(uniform_allocation(problem))
        windows = tracker.draw(rng, tracker.budget.windows)
        affordable = tracker.windows_left // len(windows)
        free = problem.free_blocks
        cuttable = np.flatnonzero([decision.block in free for decision in problem.decisions])
        n_decisions = len(cuttable)
        levels = min(self.levels or MAX_LEVELS, max(1, affordable // n_decisions))
        groups = np.array_split(cuttable, min(n_decisions, max(1, affordable // levels)))
        target = problem.target / (sum(problem.decisions[i].params for i in cuttable) / problem.total_params)
        odds = self.reach * target / max(1 - target, 1e-12)  # 1: all that may go has to
        shares = odds / (1 + odds) * np.arange(1, levels + 1) / levels
        entries = [_entry(tracker, group, shares, windows) for group in groups]
        removed, costs = [entry.removed for entry in entries], [entry.costs for entry in entries]
        choice = knapsack(removed, costs, problem.params_to_remove)
        keep = problem.n_units.copy()
        for group, entry, chosen in zip(groups, entries, choice, strict=True):
            keep[group] = cut_group(problem, group, entry.shares[chosen])[group]
        return tracker.finish([round_keep(problem, keep.astype(np.float64))])


@dataclass(frozen=True)
class _Entry:
    """The options of one group: shares of its units, the parameters that they remove, what they cost in loss."""

    shares: FloatArray
    removed: IntArray
    costs: FloatArray


def _entry(tracker: Tracker, group: IntArray, shares: FloatArray, windows: Windows) -> _Entry:
    """Measures one group at shares of its units, ascending, and interpolates between them."""
    problem, xs, ys = tracker.problem, [0.0], [0.0]
    total = float(np.dot(problem.n_units, problem.params_per_unit))

    def gone(share: float) -> int:
        return problem.removed_by(cut_group(problem, group, share))

    for share in shares:
        keep = cut_group(problem, group, share)
        if (x := gone(share) / total) > xs[-1]:
            candidate, sparsity = Allocation.of(problem, keep), problem.sparsity_of(keep)
            value = tracker.score([candidate], windows, stage="table", target=sparsity)[0]
            xs.append(x)
            ys.append(max(-math.log(value), 0.0))
    options = options_of(problem, group, shares[-1])
    removed = np.array([gone(share) for share in options])
    known = removed / total <= xs[-1]
    options, removed = options[known], removed[known]
    return _Entry(options, removed, interpolate(np.array(xs), np.array(ys), removed / total))


def cut_group(problem: PruningProblem, group: IntArray, share: float) -> IntArray:
    """Returns the kept units, (n_decisions,), if each decision of a group loses that share and the others nothing."""
    keep = problem.n_units.copy()
    wanted = np.round(problem.n_units[group] * (1 - share)).astype(np.int64)
    keep[group] = np.maximum(wanted, problem.min_keep[group])
    return keep


def options_of(problem: PruningProblem, group: IntArray, most: float) -> FloatArray:
    """Returns the shares that a group may lose, from 0 on.

    One coarse decision may lose any number of whole units; other groups lose up to `most` in OPTIONS steps.
    """
    units = int(problem.n_units[group].max())
    steps, end = (units, 1.0) if len(group) == 1 and units <= OPTIONS else (OPTIONS, most)
    options: FloatArray = np.arange(steps + 1) / steps * end
    return options


def interpolate(xs: FloatArray, ys: FloatArray, at: FloatArray) -> FloatArray:
    """Returns the damage at shares `at`, from a table of removed shares and damages that begins with (0, 0)."""
    slopes = np.concatenate([[0.0], ys[1:] / xs[1:]])
    damage: FloatArray = at * np.interp(at, xs, slopes)
    return damage
