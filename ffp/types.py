"""The vocabulary of the project: problems, allocations, methods and rewards. Imports nothing of ffp."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
# structured: KV groups and FFN channels, two decisions a block. unstructured: single weights, one decision a linear;
# biases are neither removed nor counted. n-of-M: of every M adjacent weights of a row N stay, one decision a block.
GRANULARITIES = ("structured", "unstructured", "n-of-4", "n-of-8")


class FfpError(Exception):
    """A fault that the user can mend: says the thing, its value, the limit and the remedy. Exit code 2."""

    exit_code = 2


class ConfigError(FfpError):
    """The configuration or the command line asks for something that does not exist or cannot be."""


class BudgetError(FfpError):
    """An allocation or a sparsity lies outside what the model allows."""


class AssetError(FfpError):
    """A model, text or task could not be fetched or is not what was asked for."""


class ArtifactError(FfpError):
    """A file on disk is damaged, of another schema, or does not belong to the files beside it. Exit code 3."""

    exit_code = 3


@dataclass(frozen=True)
class LayerBudget:
    """One decision of an allocation: a module ("block03.ffn"), one of its linears ("block03.ffn.up_proj") or a block.

    n_groups: what is removed or kept as a whole, called units (KV groups, FFN channels or bundles of them, single
    weights, or one weight of every M); group_params: parameters that go with one unit, its biases included;
    fixed_params: parameters of the same linears that no unit takes along (output biases), which count in the
    denominator; min_keep: units that must stay. size: heads' groups, channels or weights in one unit; above 1 where
    kept sizes are aligned.
    """

    name: str
    n_groups: int
    group_params: int
    fixed_params: int = 0
    min_keep: int = 1
    size: int = 1

    @property
    def params(self) -> int:
        """Parameters of the module's linears, biases included."""
        return self.n_groups * self.group_params + self.fixed_params

    @property
    def facts(self) -> list[str | int]:
        """The arguments that make this budget again, for a file or a digest."""
        facts: list[str | int] = [self.name, self.n_groups, self.group_params, self.fixed_params, self.min_keep]
        return facts if self.size == 1 else [*facts, self.size]

    @property
    def block(self) -> str:
        """The block that the decision belongs to, e.g. "block03"."""
        return self.name.partition(".")[0]

    @property
    def module(self) -> str:
        """ "attention" or "ffn"; empty where a decision spans the block."""
        return (*self.name.split("."), "")[1]


@dataclass(frozen=True)
class PruningProblem:
    """What an allocator receives: the decisions in forward order and the share of their parameters to remove.

    target: sparsity, removed parameters / parameters of the units, 0 <= target < 1.
    granularity: one of GRANULARITIES.
    """

    units: tuple[LayerBudget, ...]
    target: float
    granularity: str = "structured"

    @property
    def total_params(self) -> int:
        return sum(unit.params for unit in self.units)

    @property
    def n_groups(self) -> npt.NDArray[np.int64]:
        return np.array([unit.n_groups for unit in self.units], dtype=np.int64)

    @property
    def group_params(self) -> npt.NDArray[np.int64]:
        return np.array([unit.group_params for unit in self.units], dtype=np.int64)

    @property
    def min_keep(self) -> npt.NDArray[np.int64]:
        return np.array([unit.min_keep for unit in self.units], dtype=np.int64)

    @property
    def problem_id(self) -> str:
        """Digest of the decisions and the target: an allocation names the problem that it answers."""
        facts = [unit.facts for unit in self.units]
        text = json.dumps([facts, round(self.target, 12), self.granularity])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def at(self, target: float) -> PruningProblem:
        """The same decisions at another sparsity."""
        return PruningProblem(self.units, target, self.granularity)

    def sparsity_of(self, keep: Sequence[int] | npt.NDArray[np.int64]) -> float:
        """Removed parameters / all parameters of the units, for kept units per decision."""
        removed = int(np.dot(self.n_groups - np.asarray(keep, dtype=np.int64), self.group_params))
        return removed / self.total_params


@dataclass(frozen=True)
class Allocation:
    """Whole units kept by each decision of a problem, in the problem's order."""

    problem_id: str
    keep: tuple[int, ...]

    def check(self, problem: PruningProblem) -> None:
        """Raise BudgetError unless this answers `problem`: bounds, and a sparsity of at least the target."""
        if self.problem_id != problem.problem_id or len(self.keep) != len(problem.units):
            raise BudgetError(
                f"allocation for problem {self.problem_id} ({len(self.keep)} decisions) does not answer problem "
                f"{problem.problem_id} ({len(problem.units)} decisions). Allocate again for this model and sparsity."
            )
        for unit, keep in zip(problem.units, self.keep, strict=True):
            if not unit.min_keep <= keep <= unit.n_groups:
                raise BudgetError(
                    f"allocation keeps {keep} units of {unit.name}, outside {unit.min_keep}..{unit.n_groups}. "
                    "Every allocation has to pass ffp.budget."
                )
        realised = problem.sparsity_of(self.keep)
        if realised < problem.target - 1e-12:
            raise BudgetError(
                f"allocation removes {realised:.6f} of the parameters, less than the target {problem.target:.6f}. "
                "Every allocation has to pass ffp.budget."
            )


@dataclass(frozen=True)
class LinearStats:
    """One linear layer as the heuristics see it.

    weight: (out, in) float32. input_sq_mean: (in,), mean over tokens of x_j^2. input_var: (in,), variance of x_j
    over tokens. n_tokens: tokens behind them. unit: name of the LayerBudget that the layer belongs to.
    module: "attention" or "ffn". output: whether it feeds the residual stream, so that its columns are the module's
    units (o_proj, down_proj).
    """

    name: str
    unit: str
    weight: npt.NDArray[np.float32]
    input_sq_mean: FloatArray
    input_var: FloatArray
    n_tokens: int
    module: str = ""
    output: bool = False


class CalibrationStats(Protocol):
    """What calibration knows of a model, block by block; weights are read lazily, one block at a time."""

    @property
    def n_blocks(self) -> int: ...

    def linears(self, block: int) -> Iterator[LinearStats]:
        """The linear layers of one block, in forward order."""
        ...

    def block_influence(self) -> FloatArray:
        """(n_blocks,): 1 - mean over tokens of the cosine between a block's input and output."""
        ...


@runtime_checkable
class Reward(Protocol):
    """Scores allocations on the search text. Counts its own work: tokens forwarded, evaluations.

    Windows are indices into the search text's token windows; candidates are compared on the same windows.
    """

    @property
    def n_windows(self) -> int: ...

    @property
    def window_tokens(self) -> int: ...

    @property
    def spent_tokens(self) -> int:
        """Tokens forwarded on the search text so far; a backward counts as two forwards, a memo hit as none."""
        ...

    @property
    def evaluations(self) -> int:
        """Candidates scored so far, memo hits not counted."""
        ...

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        """PPL_dense / PPL_pruned on these windows: higher is better, in (0, 1] in practice, always finite."""
        ...

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> FloatArray:
        """(n_units, 2, 3): rise of the mean loss, nats per token and parameter, for the last units of a decision.

        Axis 1: of the units just inside the threshold if they went, and of those just outside, which are gone; NaN
        where there are none. Axis 2: the slope, the curvature term to add to it for a finite step, the slope's standard
        error.
        """
        ...

    def select(self, allocation: Allocation) -> float:
        """The reward on the whole selection text, disjoint from the search text: for finalists only."""
        ...


@dataclass(frozen=True)
class SearchBudget:
    """How much a search may spend, the same for every method.

    evaluations: candidates at full fidelity; windows: windows of the search text behind one of them.
    A method that scores on fewer windows gets more candidates: what is equal is the number of tokens.
    finalists: distinct candidates re-scored on the selection text at the end.
    """

    evaluations: int
    windows: int
    finalists: int = 4

    def tokens(self, window_tokens: int) -> int:
        """Tokens of the search text that may be forwarded."""
        return self.evaluations * self.windows * window_tokens


@dataclass(frozen=True)
class SearchResult:
    """What an allocator returns: the answer, every evaluation behind it, and what a later search can reuse.

    trace: one row per evaluation, plain values only, in the order they happened; see search/base.py for columns.
    policy: arrays of a learned policy, empty for methods that learn none.
    answers: (tokens spent, kept units) whenever the allocation that the search would have given changed: what an
    anytime comparison needs.
    """

    allocation: Allocation
    trace: tuple[Mapping[str, Any], ...] = ()
    policy: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    answers: tuple[tuple[int, tuple[int, ...]], ...] = ()


class Allocator(Protocol):
    """A method: hyper-parameters as dataclass fields, one call. `version` rises whenever its numbers can change."""

    name: str
    version: str

    def allocate(
        self,
        problem: PruningProblem,
        *,
        stats: CalibrationStats | None,
        reward: Reward | None,
        budget: SearchBudget,
        seed: int,
    ) -> SearchResult:
        """Answer `problem`. Same arguments, same answer."""
        ...


@runtime_checkable
class Learner(Protocol):
    """An allocator that leaves a policy behind, and can start from one."""

    def started_from(self, policy: Mapping[str, npt.NDArray[Any]]) -> Allocator:
        """The same allocator with another one's policy as its first; its sizes are checked by allocate()."""
        ...
