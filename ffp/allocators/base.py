"""What a method declares, what it is given and what it answers.

A method decides how many units of each decision stay when the total is fixed. It sees a problem, and calibration
statistics or a reward, never a model. A `Heuristic` answers from sizes and statistics; a `Search` scores candidates
through a `Tracker`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ffp.core.errors import ConfigError
from ffp.core.problem import GRANULARITIES, Allocation, CostCurve, FloatArray, Gates, IntArray, PruningProblem

if TYPE_CHECKING:
    from ffp.allocators.tracker import Tracker

MAX_SEED = 2**32 - 1  # the largest that every library takes: that of numpy's RandomState


@dataclass(frozen=True)
class LinearStats:
    """One linear layer as heuristics see it.

    Attributes:
        name: Path of the layer, e.g. "block03.ffn.up_proj".
        decision: Name of the Decision that the layer belongs to.
        weight: (out, in) float32.
        input_sq_mean: (in,), mean over tokens of x_j^2.
        input_var: (in,), variance over tokens of x_j.
        n_tokens: Tokens behind both.
        module: "attention" or "ffn".
        output: Whether the layer writes to the residual stream (o_proj, down_proj); its columns are then the
            module's units.
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
    """Statistics of a model's inputs, block by block; weights are read lazily, one block at a time."""

    @property
    def n_blocks(self) -> int:
        """Transformer blocks of the model."""
        ...

    def linears(self, block: int) -> Iterator[LinearStats]:
        """Yields the linear layers of one block, in forward order."""
        ...

    def block_influence(self) -> FloatArray:
        """Returns 1 - mean cosine over tokens between each block's input and output, (n_blocks,)."""
        ...


@runtime_checkable
class Reward(Protocol):
    """Scores allocations on the search text, and counts the tokens and evaluations that this takes.

    Windows are indices into the search text's token windows. Candidates are compared on the same windows.
    """

    @property
    def n_windows(self) -> int:
        """Windows of the search text."""
        ...

    @property
    def window_tokens(self) -> int:
        """Tokens of a window."""
        ...

    @property
    def spent_tokens(self) -> int:
        """Tokens of the search text forwarded so far; a backward counts as two forwards, a memo hit as none."""
        ...

    @property
    def evaluations(self) -> int:
        """Candidates scored so far, memo hits not counted."""
        ...

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        """Returns PPL_dense / PPL_pruned on these windows: higher is better, in (0, 1] in practice, always finite."""
        ...

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> FloatArray:
        """Returns what the units at each decision's threshold are worth, (n_decisions, 2, 3).

        The worth is the rise of the mean loss, in nats per token and parameter. Axis 1: of the last kept units if they
        were removed, and of the first removed ones; NaN where there are none. Axis 2: slope, the curvature term to add
        to it for a finite step, standard error of the slope.
        """
        ...

    def cost_curves(self, allocation: Allocation, *, windows: Sequence[int]) -> list[CostCurve]:
        """Returns for each decision what other numbers of kept units would cost, by gradients at the allocation."""
        ...

    def removal_costs(self, windows: Sequence[int]) -> list[tuple[IntArray, FloatArray]]:
        """Returns what removals cost each decision alone, by an expansion of the loss at the dense model.

        Of each decision: numbers of kept units, ascending from 0 to n_units, and the rise of the mean loss in nats per
        token if so many stay.
        """
        ...

    def taylor_scores(self, windows: Sequence[int]) -> list[FloatArray]:
        """Returns the sum over each unit's weights of |gradient * weight|, of the loss at the dense model.

        Each array, (n_units,), is in the order in which the decision's units are kept; nats per token.
        """
        ...

    def gated(self, gates: Gates, windows: Sequence[int]) -> float:
        """Returns the reward of the dense model with a factor on every unit; it is forwarded every time."""
        ...

    def gate_slopes(self, gates: Gates, windows: Sequence[int]) -> tuple[float, list[FloatArray]]:
        """Returns the same, and the derivative of the mean loss in every factor, nats per token.

        It charges a forward and a backward.
        """
        ...

    def select(self, allocation: Allocation) -> float:
        """Returns the reward on the whole selection text, disjoint from the search text: for finalists only."""
        ...


@dataclass(frozen=True)
class SearchBudget:
    """How much a search may spend, the same for every method.

    What is equal between methods is the number of tokens: one that scores on fewer windows gets more candidates.

    Attributes:
        evaluations: Candidates at full fidelity.
        windows: Windows of the search text behind one of them.
        finalists: Distinct candidates scored again on the selection text at the end.
    """

    evaluations: int
    windows: int
    finalists: int = 4

    def tokens(self, window_tokens: int) -> int:
        """Returns the tokens of the search text that may be forwarded, with windows of `window_tokens`."""
        return self.all_windows * window_tokens

    @property
    def all_windows(self) -> int:
        """Windows of the search text that may be forwarded, one as often as it is forwarded."""
        return self.evaluations * self.windows


class Method(BaseModel):
    """A method. Its fields are the hyper-parameters: typed, bounded, described.

    Attributes:
        name: Name in the grid.
        version: Raised whenever the method's numbers can change; its cells, and no others, then run again.
        summary: The idea in half a line, without a full stop.
        citation: Source, "-" for none.
        equation: LaTeX, one display equation a line, shown by the documentation.
        granularities: Granularities that the method serves; see served.
        fitnesses: What it may be rewarded for: "ppl", or "kl" too; see `fitness` of a variant.
        file_parameters: Hyper-parameters that name files; the content of these files counts as a setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str]
    equation: ClassVar[str] = ""
    granularities: ClassVar[frozenset[str]] = frozenset(GRANULARITIES)
    fitnesses: ClassVar[tuple[str, ...]] = ("ppl",)
    file_parameters: ClassVar[tuple[str, ...]] = ()

    @property
    def served(self) -> frozenset[str]:
        """Granularities that the method serves with its hyper-parameters."""
        return self.granularities

    def check_fitness(self, fitness: str) -> None:
        """Checks that the method knows a fitness.

        Raises:
            ConfigError: It does not; one line with the remedy.
        """
        if fitness not in self.fitnesses:
            raise ConfigError(f"{self.name} knows no fitness {fitness}. Leave it out, or take another method.")

    def check(self, problem: PruningProblem) -> None:
        """Checks that the method can answer a problem; called before anything costly is done for it.

        Raises:
            ConfigError: It cannot; one line with the remedy.
        """


class Heuristic(Method, ABC):
    """A method that answers from sizes and calibration statistics. It evaluates nothing and draws nothing.

    Attributes:
        reads_weights: False for a method that answers from sizes alone, so that the model's weights are not loaded.
    """

    reads_weights: ClassVar[bool] = True

    @abstractmethod
    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Returns the answer to `problem`.

        Raises:
            BudgetError: The target is infeasible.
            ArtifactError: `stats` lack a decision of the problem.
        """


class Search(Method, ABC):
    """A method that scores candidates.

    Attributes:
        learns_policy: Whether it sets `tracker.policy`, which another search can start from (`init` in a variant).
        takes_gradients: Whether it asks for marginal utilities, curves of costs, costs of removals, Taylor scores or
            slopes of gates; False plans less memory.
        holds_gradients: Whether it asks for Taylor scores, which take the gradients of all weights of the decisions.
        reads_grams: Whether it asks for costs of removals or curves, for which calibration keeps Gram matrices; see
            needs_grams.
    """

    fitnesses: ClassVar[tuple[str, ...]] = ("ppl", "kl")

    learns_policy: ClassVar[bool] = False
    takes_gradients: ClassVar[bool] = True
    holds_gradients: ClassVar[bool] = False
    reads_grams: ClassVar[bool] = False

    @property
    def needs_grams(self) -> bool:
        """Whether it asks for costs of removals with its hyper-parameters."""
        return self.reads_grams

    @property
    def scores_compensated(self) -> bool:
        """Whether compensated candidates change its measurements, with its hyper-parameters.

        Not where it scores nothing but gates on the dense model's units.
        """
        return True

    @property
    def learns_scales(self) -> bool:
        """Whether it learns scales of the units that stay, with its hyper-parameters."""
        return False

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether a budget pays for at least one step of what the search is named after.

        With less it answers with what it starts from, or as a simpler method does; see ffp.allocators.shortage, which
        looks for the least budget that is enough: some budget has to be.

        Args:
            problem: What it answers.
            budget: What it may spend.
            n_windows: Windows of the search text.
            has_policy: Whether it starts from another search's policy.
        """
        return True

    def policy_sizes(self, problem: PruningProblem) -> tuple[int, ...]:
        """Returns how many numbers the policy of a search has for each decision: one, where it says nothing else.

        A search can start from the policy of another one only where these are the same.
        """
        return (1,) * len(problem.decisions)

    @abstractmethod
    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Returns the answer to `tracker.problem`, by `tracker.finish` or `finish_gated`. Same seed, same answer.

        Args:
            tracker: Scores candidates within the budget. Its `seed` is for libraries that take a number.
            rng: The only other source of randomness.

        Raises:
            ConfigError: `tracker.initial_policy` does not fit this search.
        """
