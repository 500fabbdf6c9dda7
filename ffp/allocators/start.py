"""The allocation that a search begins with."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.tracker import GRADIENT_FORWARDS, Tracker
from ffp.core.knapsack import knapsack, levels
from ffp.core.problem import Allocation, FloatArray, IntArray, PruningProblem
from ffp.core.projection import round_keep

Start = Literal["uniform", "ffn-only", "fisher-table"]
SHARE = 0.25  # of the budget, at most, that a table to start from costs
WINDOWS = 16  # behind a table, at most


class StartedSearch(Search, ABC):
    """A search with a hyper-parameter `start`, which says what it can serve and needs."""

    if TYPE_CHECKING:
        start: Start

    @property
    def served(self) -> frozenset[str]:
        """Granularities that the search serves: no table knows groups of single weights."""
        return self.granularities & {"structured", "unstructured"} if self.starts_from_table else self.granularities

    @property
    def needs_grams(self) -> bool:
        """Whether the search or its start asks for costs of removals."""
        return self.reads_grams or self.starts_from_table

    @property
    def starts_from_table(self) -> bool:
        """Whether the start is that of the method `fisher-table`."""
        return self.start == "fisher-table"

    def windows_after_start(self, budget: SearchBudget, n_windows: int) -> int:
        """Returns the windows that a budget leaves to the steps; -1 where it does not pay for the start.

        Args:
            budget: What the search may spend.
            n_windows: Windows of the search text.
        """
        if not self.starts_from_table:
            return budget.all_windows
        count = min(_table_windows(budget.all_windows), n_windows)
        return budget.all_windows - GRADIENT_FORWARDS * count if count else -1


def _table_windows(windows: int) -> int:
    """Windows behind a table to start from, where the budget pays for so many forwards of a window; 0 for no table."""
    return min(int(SHARE * windows) // GRADIENT_FORWARDS, WINDOWS)


def starting_allocation(tracker: Tracker, rng: np.random.Generator, start: Start) -> Allocation:
    """Returns the allocation that a search begins with.

    A table is paid from the search's budget; where that pays for none, the search starts from ffn-only.

    Args:
        tracker: Of the search.
        rng: Draws the windows behind a table.
        start: "uniform", "ffn-only" or "fisher-table".
    """
    if start == "uniform":
        return uniform_allocation(tracker.problem)
    count = _table_windows(tracker.windows_left)
    if start == "ffn-only" or not count:
        return ffn_only_allocation(tracker.problem)
    return table_allocation(tracker, rng, count)


def table_allocation(tracker: Tracker, rng: np.random.Generator, windows: int) -> Allocation:
    """Measures what removals cost on so many windows of the search text, and returns the cheapest allocation.

    Raises:
        Exhausted: The budget cannot pay for it.
    """
    costs = tracker.removal_costs(tracker.draw(rng, windows))
    return cheapest(tracker.problem, costs)


def cheapest(problem: PruningProblem, costs: Sequence[tuple[IntArray, FloatArray]]) -> Allocation:
    """Returns the allocation with the least sum of costs, by an exact knapsack over the levels of each decision.

    Args:
        problem: The decisions and the budget.
        costs: For each decision, numbers of kept units, ascending from 0 to n_units, and their costs; between them a
            straight line.
    """
    options = [levels(d.n_units - d.min_keep) for d in problem.decisions]
    removed = [gone * d.params_per_unit for gone, d in zip(options, problem.decisions, strict=True)]
    prices = [
        np.interp(d.n_units - gone, *cost) for cost, gone, d in zip(costs, options, problem.decisions, strict=True)
    ]
    chosen = knapsack(removed, prices, problem.params_to_remove)
    keep = [d.n_units - gone[i] for d, gone, i in zip(problem.decisions, options, chosen, strict=True)]
    return round_keep(problem, np.array(keep, dtype=np.float64))
