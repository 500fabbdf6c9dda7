"""Fisher table: what every number of removed units costs, from one backward pass, and the exact optimum of the sum.

The mean loss is expanded at the dense model. If the output projection of decision i changes by dW when k of its units
stay, the loss rises by about

    c_i(k) = tr(S_i dW G_i dW^T) / 2,

G_i = E[x x^T] of the projection's inputs, S_i = E[g g^T] of the loss gradients at its outputs: the Fisher information
of the weight, Kronecker-factored (Martens and Grosse, arXiv:1503.05671). Where the search is compensated, dW is what a
refit of the kept columns leaves, which one Cholesky factor yields for all k. If costs added up, the best allocation
would be a multiple-choice knapsack, which is solved exactly, as in SPDY (arXiv:2201.13096) and ZipLM
(arXiv:2302.04089). Nothing is searched: all that it costs is the backward pass.

On single weights the table has every linear, and the weights that leave are those that its pruner scores lowest. Both
factors are diagonal there, as in Optimal Brain Damage (LeCun et al., 1990): a removed weight costs
w_ij^2 S_ii G_jj / 2. That needs no more than the mean squares that calibration keeps of every input, where whole
factors would take a Gram matrix and a Fisher matrix of each linear. It neglects what weights have in common, and that
SparseGPT gives new values to those that stay.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.start import WINDOWS, table_allocation
from ffp.allocators.tracker import GRADIENT_FORWARDS, Tracker
from ffp.core.problem import Allocation, PruningProblem


class FisherTable(Search):
    """Prices all removals by one backward pass and minimises the sum."""

    name: ClassVar[str] = "fisher-table"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "Kronecker-factored costs of removals, by exact knapsack"
    citation: ClassVar[str] = "ours, after Martens and Grosse, arXiv:1503.05671"
    equation: ClassVar[str] = (
        r"c_i(k) = \tfrac12 \operatorname{tr}\left(S_i\,\Delta W_i(k)\,G_i\,\Delta W_i(k)^\top\right), \qquad "
        r"\min_k \sum_i c_i(k_i)"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured", "unstructured"})
    fitnesses: ClassVar[tuple[str, ...]] = ("ppl",)  # its gradients are of the perplexity
    reads_grams: ClassVar[bool] = True

    windows: int = Field(
        WINDOWS, ge=1, le=1_000_000, description="Windows of the search text behind the table, if the budget allows."
    )

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a table on one window."""
        return budget.all_windows >= GRADIENT_FORWARDS

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Measures the table, then solves the knapsack; answers ffn-only where the budget pays for no table."""
        affordable = tracker.windows_left // GRADIENT_FORWARDS
        if not affordable:
            return tracker.finish([ffn_only_allocation(tracker.problem)])
        return tracker.finish([table_allocation(tracker, rng, min(self.windows, affordable))])
