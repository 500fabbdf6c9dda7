"""Error table and dynamic programming: each decision's own damage, and the exact optimum of their sum.

The table: decisions are cut one at a time, the rest of the model dense, and the loss of the whole model is measured
end to end at a few levels. If damages added up, the best allocation would be a multiple-choice knapsack; it is solved
exactly, by dynamic programming over removed parameters, for a grid of levels between which the table is interpolated.
Source of the idea: SPDY (Frantar and Alistarh, arXiv:2201.13096) and the additive baseline in EvoPress's code
(Sieberling et al., arXiv:2410.14649), whose tables hold layer-wise errors; ours holds the end-to-end loss that all
searches see.

The table is paid from the search budget. Where that has fewer evaluations than there are decisions, neighbours in
forward order are cut together and share an entry; with a single evaluation the answer is uniform. Damage is
interpolated by its secant slope, cost(x) = x * slope(x), the slope linear between levels from 0 at x = 0: quadratic
below the first level. No decision gives more than was measured of it: damages do not add up, and a decision whose
removal happened to cost nothing on few windows would be given up whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.tracker import Tracker, Windows, check_number, needed
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import kept_budget, round_keep

MAX_LEVELS = 4
OPTIONS = 32  # levels between which the knapsack chooses for one entry
BINS = 20_000  # of the removed parameters, where they have no greater common divisor


@dataclass(frozen=True)
class ErrorTableDp:
    """levels: measured of each decision; 0 fits the number to the budget, MAX_LEVELS at most. reach: the odds, removed
    to kept, of the largest share of a decision that is measured and given, over those of the target.
    """

    levels: int = 0
    reach: float = 3.0
    name: str = field(default="error-table-dp", init=False)
    version: str = field(default="2", init=False)

    def __post_init__(self) -> None:
        check_number(self.name, "levels", self.levels, 0, 100, whole=True)
        check_number(self.name, "reach", self.reach, 1, 1000)

    def allocate(
        self,
        problem: PruningProblem,
        *,
        stats: CalibrationStats | None,
        reward: Reward | None,
        budget: SearchBudget,
        seed: int,
    ) -> SearchResult:
        """Answer `problem`; BudgetError if its target is infeasible."""
        tracker = Tracker(problem, needed(reward, self.name, "a reward"), budget, method=self.name)
        tracker.answer(uniform_allocation(problem))
        windows = tracker.draw(np.random.default_rng(seed), budget.windows)
        affordable = tracker.windows_left // len(windows)
        levels = min(self.levels or MAX_LEVELS, max(1, affordable // len(problem.decisions)))
        groups = np.array_split(np.arange(len(problem.decisions)), min(len(problem.decisions), max(1, affordable // levels)))
        odds = self.reach * problem.target / (1 - problem.target)
        shares = odds / (1 + odds) * np.arange(1, levels + 1) / levels
        entries = [_entry(tracker, group, shares, windows) for group in groups]
        removed = int(np.dot(problem.n_units, problem.params_per_unit)) - kept_budget(problem)
        choice = knapsack([entry.removed for entry in entries], [entry.costs for entry in entries], removed)
        keep = problem.n_units.copy()
        for group, entry, chosen in zip(groups, entries, choice, strict=True):
            keep[group] = cut_group(problem, group, entry.shares[chosen])[group]
        return tracker.result([round_keep(problem, keep.astype(np.float64))])


@dataclass(frozen=True)
class _Entry:
    """The options of one group: shares of its units, the parameters that they remove, what they cost in loss."""

    shares: FloatArray
    removed: npt.NDArray[np.int64]
    costs: FloatArray


def _entry(tracker: Tracker, group: npt.NDArray[np.int64], shares: FloatArray, windows: Windows) -> _Entry:
    """Measure one group at shares of its units, ascending, and interpolate between them."""
    problem, xs, ys = tracker.problem, [0.0], [0.0]
    total = float(np.dot(problem.n_units, problem.params_per_unit))

    def gone(share: float) -> int:
        return int(np.dot(problem.n_units - cut_group(problem, group, share), problem.params_per_unit))

    for share in shares:
        keep = cut_group(problem, group, share)
        if (x := gone(share) / total) > xs[-1]:
            candidate = Allocation(problem.problem_id, tuple(int(k) for k in keep))
            sparsity = problem.sparsity_of(keep)
            value = tracker.score([candidate], windows, stage="table", target=sparsity)[0]
            xs.append(x)
            ys.append(max(-math.log(value), 0.0))
    options = options_of(problem, group, shares[-1])
    removed = np.array([gone(share) for share in options])
    known = removed / total <= xs[-1]
    options, removed = options[known], removed[known]
    return _Entry(options, removed, interpolate(np.array(xs), np.array(ys), removed / total))


def cut_group(problem: PruningProblem, group: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Everything kept but that share of each decision of a group, in whole units within its min_keep: (n_decisions,)."""
    keep = problem.n_units.copy()
    wanted = np.round(problem.n_units[group] * (1 - share)).astype(np.int64)
    keep[group] = np.maximum(wanted, problem.min_keep[group])
    return keep


def options_of(problem: PruningProblem, group: npt.NDArray[np.int64], most: float) -> FloatArray:
    """Shares that a group may give, from 0 on: all whole units of one coarse decision, else OPTIONS steps to `most`."""
    units = int(problem.n_units[group].max())
    steps, end = (units, 1.0) if len(group) == 1 and units <= OPTIONS else (OPTIONS, most)
    options: FloatArray = np.arange(steps + 1) / steps * end
    return options


def interpolate(xs: FloatArray, ys: FloatArray, at: FloatArray) -> FloatArray:
    """Damage at removed shares `at`, up to the last of a table that begins with (0, 0)."""
    slopes = np.concatenate([[0.0], ys[1:] / xs[1:]])
    damage: FloatArray = at * np.interp(at, xs, slopes)
    return damage


def knapsack(
    removed: Sequence[npt.NDArray[np.int64]], costs: Sequence[FloatArray], target: int, bins: int = BINS
) -> list[int]:
    """One option of each group, so that they remove at least `target` at the least total cost.

    removed: whole parameters of each option, by group. Exact where the target is at most `bins` times the greatest
    common divisor of all of them; otherwise exact for parameters rounded down to multiples of target / bins, so that
    the target is met in either case. Ties go to the option that comes first. Where no choice reaches the rounded
    target, all groups give what they can.
    """
    step = int(np.gcd.reduce([int(r) for options in removed for r in options] or [1])) or 1
    size = max(step, target / bins)
    goal = math.ceil(target / size - 1e-9)
    weights = [np.minimum(np.floor(options / size + 1e-9).astype(np.int64), goal) for options in removed]
    states = [np.append(0.0, np.full(goal, np.inf))]  # least cost to have removed so many, the last: or more
    for amounts, prices in zip(weights, costs, strict=True):
        states.append(_relax(states[-1], amounts, prices))
    if not np.isfinite(states[-1][goal]):
        return [int(np.argmax(options)) for options in removed]
    return _trace_back(states, weights, costs, goal)


def _relax(before: FloatArray, weights: npt.NDArray[np.int64], prices: FloatArray) -> FloatArray:
    """The states after one more group has given one of its options."""
    goal = len(before) - 1
    after = np.full(goal + 1, np.inf)
    for weight, price in zip(weights, prices, strict=True):
        after[weight:] = np.minimum(after[weight:], before[: goal + 1 - weight] + price)
        after[goal] = min(after[goal], before[goal - weight :].min() + price)
    return after


def _trace_back(
    states: Sequence[FloatArray], weights: Sequence[npt.NDArray[np.int64]], costs: Sequence[FloatArray], goal: int
) -> list[int]:
    """The options that led to the goal, from the last group to the first."""
    state, picked = goal, []
    for before, after, amounts, prices in zip(states[-2::-1], states[:0:-1], weights[::-1], costs[::-1], strict=True):
        for option, (weight, price) in enumerate(zip(amounts, prices, strict=True)):
            # one state can have been before, but for the last one: any that reaches it
            first = state - int(weight)
            last = goal if state == goal else first
            if first < 0:
                continue
            origin = first + int(before[first : last + 1].argmin())
            if before[origin] + price == after[state]:
                state = origin
                picked.append(option)
                break
    return picked[::-1]
