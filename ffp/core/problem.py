"""The allocation problem: decisions, the budget that they share, and an answer. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ffp.core.errors import BudgetError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
# by decision, a factor on each of its units, in the order in which they are kept: 0 for one that is gone
Gates = Sequence[FloatArray]
Granularity = Literal["structured", "unstructured", "n-of-4", "n-of-8"]
AttentionUnits = Literal["kv-groups", "query-heads", "single-query-heads"]
GRANULARITIES: tuple[Granularity, ...] = ("structured", "unstructured", "n-of-4", "n-of-8")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How much of one part of the model to keep.

    What the part is depends on the granularity: a module ("block03.ffn") for `structured`, one linear
    ("block03.ffn.up_proj") for `unstructured`, a whole block ("block03") for `n-of-4` and `n-of-8`.

    Attributes:
        name: Path of the part, as above.
        n_units: Units of the part. A unit is what is removed as a whole: a KV group, a query head, an FFN channel, a
            bundle of heads or channels, a single weight, or one weight of every M.
        params_per_unit: Parameters that one unit takes along, its biases included.
        fixed_params: Parameters of the same linears that no unit takes along (output biases, KV heads where query
            heads are removed). They count in the denominator of the sparsity.
        min_keep: Units that have to stay.
        bundle: How many FFN channels make one unit, which is 1 unless the model sets `align`; or how many query heads.
    """

    name: str
    n_units: int
    params_per_unit: int
    fixed_params: int = 0
    min_keep: int = 1
    bundle: int = 1

    @property
    def params(self) -> int:
        """Parameters of the part's linears, biases included."""
        return self.n_units * self.params_per_unit + self.fixed_params

    @property
    def block(self) -> str:
        """The block that the decision belongs to, e.g. "block03"."""
        return self.name.partition(".")[0]

    @property
    def module(self) -> str:
        """The kind of module, "attention" or "ffn"; empty where a decision spans the block."""
        return self.name.split(".")[1] if "." in self.name else ""


@dataclass(frozen=True)
class PruningProblem:
    """What a method is asked: the decisions in forward order, and the share of their parameters to remove.

    Attributes:
        decisions: All decisions of the model.
        target: Sparsity, removed parameters / parameters of all decisions, in [0, 1).
        granularity: One of GRANULARITIES. Biases are neither removed nor counted where units are single weights.
    """

    decisions: tuple[Decision, ...]
    target: float
    granularity: str = "structured"

    @property
    def total_params(self) -> int:
        """Parameters of all decisions."""
        return sum(decision.params for decision in self.decisions)

    @property
    def params_to_remove(self) -> int:
        """Fewest parameters whose removal meets the target; 1e-6 of one more is rounding of the target."""
        return math.ceil(self.target * self.total_params - 1e-6)

    @property
    def n_units(self) -> IntArray:
        """Units of each decision, (n_decisions,)."""
        return np.array([decision.n_units for decision in self.decisions], dtype=np.int64)

    @property
    def params_per_unit(self) -> IntArray:
        """Parameters of one unit of each decision, (n_decisions,)."""
        return np.array([decision.params_per_unit for decision in self.decisions], dtype=np.int64)

    @property
    def min_keep(self) -> IntArray:
        """Units that have to stay of each decision, (n_decisions,)."""
        return np.array([decision.min_keep for decision in self.decisions], dtype=np.int64)

    @property
    def free_blocks(self) -> set[str]:
        """The blocks that do not have to stay whole."""
        return {decision.block for decision in self.decisions if decision.min_keep < decision.n_units}

    @property
    def problem_id(self) -> str:
        """Digest of the decisions and the target; an allocation names the problem that it answers."""
        decisions = [dataclasses.asdict(decision) for decision in self.decisions]
        text = json.dumps([decisions, round(self.target, 12), self.granularity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def at(self, target: float) -> PruningProblem:
        """Returns the same decisions at another sparsity."""
        return PruningProblem(self.decisions, target, self.granularity)

    def removed_by(self, keep: Sequence[int] | IntArray) -> int:
        """Returns how many parameters leave when these numbers of units, (n_decisions,), are kept."""
        return int(np.dot(self.n_units - np.asarray(keep, dtype=np.int64), self.params_per_unit))

    def sparsity_of(self, keep: Sequence[int] | IntArray) -> float:
        """Returns removed / all parameters of the decisions for these numbers of kept units, (n_decisions,)."""
        return self.removed_by(keep) / self.total_params


class CostCurve(NamedTuple):
    """What other numbers of kept units would cost one decision, if a given allocation is kept elsewhere.

    Attributes:
        levels: Numbers of kept units, ascending from 0 to n_units, (n_levels,).
        slope: First term of the rise of the mean loss if so many stay, expanded at the allocation, nats per token.
        curvature: Second term.
        table: Cost of the removal of all others by a Kronecker-factored expansion, nats per token.
    """

    levels: IntArray
    slope: FloatArray
    curvature: FloatArray
    table: FloatArray


@dataclass(frozen=True)
class Allocation:
    """Whole units kept by each decision of a problem, in the problem's order.

    Attributes:
        problem_id: Of the problem.
        keep: Kept units of each decision.
        units: Which units these are, if the method chose them itself: by the decision's name, a factor on each KV
            group, head or channel in the model's own order, float32; 0 for one that goes, 1 or a learned scale of its
            output for one that stays. None: the score of the cut decides. Not compared.
    """

    problem_id: str
    keep: tuple[int, ...]
    units: Mapping[str, npt.NDArray[np.float32]] | None = field(default=None, compare=False, repr=False)

    def check(self, problem: PruningProblem) -> None:
        """Checks that this allocation answers `problem`.

        Raises:
            BudgetError: It belongs to another problem, leaves a decision's bounds, or removes too little.
        """
        if self.problem_id != problem.problem_id or len(self.keep) != len(problem.decisions):
            raise BudgetError(
                f"allocation for problem {self.problem_id} ({len(self.keep)} decisions) does not answer problem "
                f"{problem.problem_id} ({len(problem.decisions)}). Allocate again for this model and sparsity."
            )
        for decision, keep in zip(problem.decisions, self.keep, strict=True):
            if not decision.min_keep <= keep <= decision.n_units:
                raise BudgetError(
                    f"allocation keeps {keep} units of {decision.name}, outside {decision.min_keep}.."
                    f"{decision.n_units}. Every allocation has to come from ffp.core.projection."
                )
            if self.units is not None and self._n_chosen(decision) != keep:
                raise BudgetError(
                    f"allocation keeps {keep} units of {decision.name}, but the factors on its units say otherwise. "
                    "Allocate again."
                )
        if problem.removed_by(self.keep) < problem.params_to_remove:
            raise BudgetError(
                f"allocation removes {problem.sparsity_of(self.keep):.6f} of the parameters, less than the target "
                f"{problem.target:.6f}. Every allocation has to come from ffp.core.projection."
            )

    def _n_chosen(self, decision: Decision) -> float:
        """Units of a decision whose factor is not 0; NaN where factors are missing or not finite."""
        factors = (self.units or {}).get(decision.name, np.empty(0))
        if factors.shape != (decision.n_units * decision.bundle,) or not np.isfinite(factors).all():
            return math.nan
        return np.count_nonzero(factors) / decision.bundle

    def items(self, problem: PruningProblem) -> Iterator[tuple[Decision, int]]:
        """Yields each decision of `problem` with its kept units."""
        return zip(problem.decisions, self.keep, strict=True)

    @classmethod
    def of(cls, problem: PruningProblem, keep: Sequence[int] | npt.NDArray[Any]) -> Allocation:
        """Returns the allocation of `problem` that keeps these numbers of units, unchecked."""
        return cls(problem.problem_id, tuple(int(k) for k in keep))
