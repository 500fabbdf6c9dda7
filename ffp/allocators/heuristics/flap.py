"""FLAP: one ranking of all heads and channels by how much their outputs fluctuate (An et al., arXiv:2312.11983).

For the columns j of each output projection, with x_j its input in the dense model:
    WIFV_j = Var(x_j) * ||W_:j||^2,  IFV_j = Var(x_j),  WIFN_j = mean_i |W_ij| * ||x_j||
squared for attention. Per block and module the scores are standardised, (s - mean) / std; a head's is the mean over
its columns. Structures:
    AL-AM  all units in one order, each of its own cost; the last ones go until the budget holds (the default)
    AL-MM  one order for each kind of module; attention gives `remove_heads` units, FFNs the rest
    UL-MM  every block gives the same: attention its part of `remove_heads`, FFNs the rest
    UL-UM  every decision gives the same share

Departs: costs are exact parameters, where the authors' 512/3 channels a head (cut off to 170) hold for one width and
plain multi-head attention, and a unit of attention is a KV group; the variance is the textbook one. `ffp parity flap`
has the published numbers, quirks included. Which units go, and the bias that follows, are axes of their own: variants
with `score: wifv` and `compensate: bias` are FLAP as published, but for the square in a head's score.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ffp.allocators.base import CalibrationStats, LinearStats, Reward, SearchBudget, SearchResult
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.tracker import check_number, needed
from ffp.core.errors import ArtifactError, ConfigError
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import kept_budget, project_shares, round_keep

METRICS = ("WIFV", "IFV", "WIFN")
STRUCTURES = ("AL-AM", "AL-MM", "UL-MM", "UL-UM")


@dataclass(frozen=True)
class Flap:
    """metric, structure: see above. remove_heads: units of attention of the whole model, for the *-MM structures."""

    metric: str = "WIFV"
    structure: str = "AL-AM"
    remove_heads: int = 0
    name: str = field(default="flap", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        for key, value, known in (("metric", self.metric, METRICS), ("structure", self.structure, STRUCTURES)):
            if value not in known:
                raise ConfigError(f"method 'flap': {key} = {value!r} is none of {', '.join(known)}. Correct it.")
        check_number(self.name, "remove_heads", self.remove_heads, 0, 1_000_000, whole=True)

    def allocate(
        self,
        problem: PruningProblem,
        *,
        stats: CalibrationStats | None,
        reward: Reward | None,
        budget: SearchBudget,
        seed: int,
    ) -> SearchResult:
        """Answer `problem`; BudgetError if its target is infeasible, ArtifactError if `stats` lack a decision."""
        scores = unit_scores(problem, needed(stats, self.name, "calibration statistics"), self.metric)
        if self.structure == "UL-UM":
            return SearchResult(uniform_allocation(problem))
        if self.structure == "AL-AM":
            return SearchResult(round_keep(problem, best_units(problem, scores, kept_budget(problem))))
        return SearchResult(self._mixed(problem, scores))

    def _mixed(self, problem: PruningProblem, scores: list[FloatArray]) -> Allocation:
        """AL-MM and UL-MM: attention gives whole units, what is left of the budget is the FFNs'."""
        attention = np.array([decision.module == "attention" for decision in problem.decisions])
        cost, keep = problem.params_per_unit, problem.n_units.astype(np.float64)
        heads = int(problem.n_units[attention].sum())
        gone = min(self.remove_heads, heads - int(problem.min_keep[attention].sum()))
        if self.structure == "UL-MM":
            keep[attention] -= gone // int(attention.sum())
        else:
            one = np.where(attention, 1.0, 0.0)
            keep[attention] = best_units(problem, scores, heads - gone, cost=one)[attention]
        left = kept_budget(problem) - float(np.dot(keep[attention], cost[attention]))
        if self.structure == "AL-MM":
            keep[~attention] = best_units(problem, scores, max(left, 0), cost=np.where(attention, 0.0, cost))[
                ~attention
            ]
            return round_keep(problem, keep)
        share = left / float(np.dot(problem.n_units, cost * ~attention))
        return project_shares(problem, np.where(attention, keep / problem.n_units, np.clip(share, 0, 1)))


def unit_scores(problem: PruningProblem, stats: CalibrationStats, metric: str) -> list[FloatArray]:
    """The standardised score of every decision, by decision: (n_units,) each."""
    outputs = {x.decision: x for block in range(stats.n_blocks) for x in stats.linears(block) if x.output}
    if lost := [decision.name for decision in problem.decisions if decision.name not in outputs]:
        raise ArtifactError(f"calibration statistics have no linear of {lost[0]}. Calibrate this model again.")
    scores = []
    for decision in problem.decisions:
        columns = column_scores(outputs[decision.name], metric)
        if decision.module == "attention":
            columns = columns**2
        standard = (columns - columns.mean()) / max(float(columns.std(ddof=1)), 1e-300)
        if decision.bundle > 1:  # bundles are made of channels in the order of their scores
            standard = np.sort(standard)[::-1]
        scores.append(standard.reshape(decision.n_units, -1).mean(1))
    return scores


def column_scores(linear: LinearStats, metric: str) -> FloatArray:
    """WIFV, IFV or WIFN of each input column of an output projection: (in,)."""
    weight = linear.weight.astype(np.float64)
    if metric == "WIFN":
        norms: FloatArray = np.abs(weight).mean(0) * np.sqrt(linear.input_sq_mean)
        return norms
    return linear.input_var if metric == "IFV" else linear.input_var * np.square(weight).sum(0)


def best_units(
    problem: PruningProblem, scores: list[FloatArray], budget: float, cost: FloatArray | None = None
) -> FloatArray:
    """How many units of each decision are among the best that `budget` pays for, the last of them in part.

    cost: of one unit by decision, its parameters by default; those that cost nothing are left out. Every decision
    keeps its min_keep best first. Ties go to the earlier decision. (n_decisions,)
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
