"""FLAP: one ranking of all heads and channels by how much their outputs fluctuate (An et al., arXiv:2312.11983).

For the columns j of each output projection, with x_j its input in the dense model:
    WIFV_j = Var(x_j) * ||W_:j||^2,  IFV_j = Var(x_j),  WIFN_j = mean_i |W_ij| * ||x_j||
squared for attention. The scores of each decision are standardised, (s - mean) / std; a head's is the mean over its
columns. Structures:
    AL-AM  all units in one order, each at its own cost; the last ones go until the budget holds (the default)
    AL-MM  one order for each kind of module; attention gives `remove_heads` units, FFNs the rest
    UL-MM  every block gives the same: attention its part of `remove_heads`, FFNs the rest
    UL-UM  every decision gives the same share

Departures: costs are exact parameters, where the authors' 512/3 channels a head (cut off to 170) hold for one width and
plain multi-head attention only. A unit of attention is a KV group. The variance is the textbook one. `tests/parity` has
the published numbers, quirks included. Which units go, and the bias that makes up for them, are settings of a variant:
`score: wifv` with `compensate: bias` is FLAP as published, except for the square in a head's score.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ffp.allocators.base import CalibrationStats, Heuristic, LinearStats
from ffp.allocators.blockwise import check_known
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.core.problem import Allocation, Decision, FloatArray, PruningProblem
from ffp.core.projection import kept_budget, project_shares, round_keep

Metric = Literal["WIFV", "IFV", "WIFN"]
Structure = Literal["AL-AM", "AL-MM", "UL-MM", "UL-UM"]


class Flap(Heuristic):
    """Keeps the units whose outputs fluctuate most."""

    name: ClassVar[str] = "flap"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "one ranking of all units by their fluctuation"
    citation: ClassVar[str] = "An et al., arXiv:2312.11983"
    equation: ClassVar[str] = (
        r"\mathrm{WIFV}_j = \mathrm{Var}(x_j)\,\lVert W_{:j} \rVert_2^2, \qquad "
        r"z_j = \frac{\mathrm{WIFV}_j - \mathrm{mean}}{\mathrm{std}}"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})

    metric: Metric = Field("WIFV", description="Score of a column: variance x weights, variance, or norm x weights.")
    structure: Structure = Field(
        "AL-AM", description="What is ranked together: all, each kind of module, each kind in a block, each decision."
    )
    remove_heads: int = Field(0, ge=0, le=1_000_000, description="KV groups that the model loses, for AL-MM and UL-MM.")

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Ranks units by their scores, as the structure says."""
        scores = unit_scores(problem, stats, self.metric)
        if self.structure == "UL-UM":
            return uniform_allocation(problem)
        if self.structure == "AL-AM":
            return round_keep(problem, best_units(problem, scores, kept_budget(problem)))
        return self._mixed(problem, scores)

    def _mixed(self, problem: PruningProblem, scores: list[FloatArray]) -> Allocation:
        """AL-MM and UL-MM: attention gives whole units, FFNs what is left of the budget."""
        attention = np.array([decision.module == "attention" for decision in problem.decisions])
        cost, keep = problem.params_per_unit, problem.n_units.astype(np.float64)
        free = problem.min_keep < problem.n_units
        heads = int(problem.n_units[attention].sum())
        removed = min(self.remove_heads, heads - int(problem.min_keep[attention].sum()))
        if self.structure == "UL-MM":
            keep[attention & free] -= removed // max(int((attention & free).sum()), 1)
        else:
            one = np.where(attention, 1.0, 0.0)
            keep[attention] = best_units(problem, scores, heads - removed, cost=one)[attention]
        left = kept_budget(problem) - float(np.dot(keep[attention], cost[attention]))
        if self.structure == "AL-MM":
            ffn_cost = np.where(attention, 0.0, cost)
            keep[~attention] = best_units(problem, scores, max(left, 0), cost=ffn_cost)[~attention]
            return round_keep(problem, keep)
        whole = float(np.dot(problem.n_units, cost * (~attention & ~free)))
        share = (left - whole) / max(float(np.dot(problem.n_units, cost * (~attention & free))), 1.0)
        return project_shares(problem, np.where(attention, keep / problem.n_units, np.clip(share, 0, 1)))


def unit_scores(problem: PruningProblem, stats: CalibrationStats, metric: Metric) -> list[FloatArray]:
    """Returns the standardised scores of each decision's units, (n_units,) each.

    Raises:
        ArtifactError: `stats` lack a decision.
    """
    outputs = {x.decision: x for block in range(stats.n_blocks) for x in stats.linears(block) if x.output}
    check_known(problem, set(outputs))
    scores = []
    for decision in problem.decisions:
        columns = column_scores(outputs[decision.name], metric)
        if decision.module == "attention":
            columns = columns**2
        standard = (columns - columns.mean()) / max(float(columns.std(ddof=1)), 1e-300)
        one = standard.reshape(decision.n_units * decision.bundle, -1).mean(1)  # of each channel, head or KV group
        scores.append(_bundled(one, decision) if decision.bundle > 1 else one)
    return scores


def _bundled(scores: FloatArray, decision: Decision) -> FloatArray:
    """Scores of bundles, best first: of channels as they come by score, or of a query head of every KV group each."""
    if decision.module == "attention":
        found: FloatArray = np.sort(scores.reshape(decision.bundle, -1))[:, ::-1].mean(0)
    else:
        found = np.sort(scores)[::-1].reshape(decision.n_units, -1).mean(1)
    return found


def column_scores(linear: LinearStats, metric: Metric) -> FloatArray:
    """Returns WIFV, IFV or WIFN of each input column of an output projection, (in,)."""
    weight = linear.weight.astype(np.float64)
    if metric == "WIFN":
        norms: FloatArray = np.abs(weight).mean(0) * np.sqrt(linear.input_sq_mean)
        return norms
    return linear.input_var if metric == "IFV" else linear.input_var * np.square(weight).sum(0)


def best_units(
    problem: PruningProblem, scores: list[FloatArray], budget: float, cost: FloatArray | None = None
) -> FloatArray:
    """Counts the units of each decision among the best that `budget` pays for.

    Every decision keeps its min_keep best units first. Of equal scores the earlier decision's goes first.

    Args:
        problem: The decisions.
        scores: Of each decision's units, higher is better.
        budget: In units of `cost`.
        cost: Of one unit of each decision, (n_decisions,); by default its parameters. Decisions of cost 0 are left out.

    Returns:
        Kept units, (n_decisions,); the last unit that is paid for may be a part.
    """
    price = problem.params_per_unit.astype(np.float64) if cost is None else cost
    keep = np.where(price > 0, problem.min_keep, 0).astype(np.float64)
    left = budget - float(np.dot(keep, price))
    rivals = [
        (-value, i)
        for i, (values, decision) in enumerate(zip(scores, problem.decisions, strict=True))
        if price[i] > 0
        for value in np.sort(values)[::-1][decision.min_keep :]
    ]
    for _, i in sorted(rivals):
        part = min(1.0, left / price[i])
        if part <= 0:
            break
        keep[i] += part
        left -= part * price[i]
    return keep
