"""What methods are given and what they answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ffp.core.problem import Allocation, FloatArray, PruningProblem


@dataclass(frozen=True)
class LinearStats:
    """One linear layer as the heuristics see it.

    weight: (out, in) float32. input_sq_mean: (in,), mean over tokens of x_j^2. input_var: (in,), variance of x_j
    over tokens. n_tokens: tokens behind them. decision: name of the Decision that the layer belongs to.
    module: "attention" or "ffn". output: whether it feeds the residual stream, so that its columns are the module's
    units (o_proj, down_proj).
    """

    name: str
    decision: str
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
        """(n_decisions, 2, 3): rise of the mean loss, nats per token and parameter, for the last units of a decision.

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
