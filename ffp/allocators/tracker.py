"""What searches share: scoring within the budget, the trace, progress, and the choice of the answer.

Rewards on different windows are never compared: candidates that compete are scored on the same windows, and the
finalists are scored once more on the selection text.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ffp.allocators.base import MAX_SEED, Reward, SearchBudget
from ffp.core.errors import ConfigError, FfpError
from ffp.core.problem import Allocation, CostCurve, FloatArray, Gates, IntArray, PruningProblem
from ffp.core.projection import kept_budget

log = logging.getLogger("ffp")
Windows = tuple[int, ...]
Arrays = Mapping[str, npt.NDArray[Any]]
T = TypeVar("T")

TRACE_COLUMNS = ("evaluation", "tokens", "stage", "sparsity", "windows", "reward", "best", "keep")
GRADIENT_FORWARDS = 3  # one forward, and a backward counted as two
LOG_LINES = 20


class Exhausted(Exception):
    """A candidate costs more than is left of the budget, so it was not scored."""


class Answered(NamedTuple):
    """What a search would have answered after so many tokens; gates: which units stay, if it chose them itself."""

    tokens: int
    keep: tuple[int, ...]
    gates: Gates | None = None


class Tracker:
    """Wraps the reward of one search: keeps to the budget, remembers scores, writes the trace, reports progress.

    Only tokens that the reward forwards after the tracker was made are counted. Scoring a candidate again on the same
    windows is free and adds no row. So a loop may never use up the budget: limit it by `max_rounds`.

    Attributes:
        problem: What the search answers.
        reward: Scores candidates.
        budget: Limits of the search.
        seed: For libraries that take a number, from 0 to MAX_SEED.
        initial_policy: Arrays of another search's policy to start from; empty for none.
        keeps_scales: Whether scales of units become part of the result; what is spent on them is lost otherwise.
        policy: Arrays of the policy that the search learned, set by it; empty for none.
        rows: The trace, one row per evaluation with the keys TRACE_COLUMNS, plain values only. `best` is the highest
            reward so far among candidates at the problem's sparsity that were scored on at least `budget.windows`
            windows.
        answers: An entry whenever the allocation that the search would have given changed.
        max_rounds: Upper limit for a search's main loop.
    """

    def __init__(
        self, problem: PruningProblem, reward: Reward, budget: SearchBudget, *, method: str, seed: int,
        initial_policy: Arrays | None = None, keeps_scales: bool = True,
    ):  # fmt: skip
        """Checks that the target is feasible, that the search text is long enough and that libraries take the seed.

        Raises:
            BudgetError: The target is infeasible.
            ConfigError: The search text has too few windows, or the seed is too large.
        """
        kept_budget(problem)
        if not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"seed = {seed} is not from 0 to {MAX_SEED}. Give another.")
        if budget.windows > reward.n_windows:
            raise ConfigError(
                f"search.windows_per_evaluation = {budget.windows} exceeds search.windows = {reward.n_windows}. "
                "Lower the first or raise the second."
            )
        self.problem = problem
        self.reward = reward
        self.budget = budget
        self.seed = seed
        self.initial_policy: Arrays = initial_policy or {}
        self.keeps_scales = keeps_scales
        self.policy: Arrays = {}
        self.rows: list[dict[str, Any]] = []
        self.answers: list[Answered] = []
        self.max_rounds = 4 * budget.evaluations
        self._memory: dict[tuple[tuple[int, ...], Windows], float] = {}
        self._spent_before = reward.spent_tokens
        self._best = math.nan
        self._progress = _Progress(method, budget, budget.tokens(reward.window_tokens))

    @property
    def spent(self) -> int:
        """Tokens of the search text forwarded by this search."""
        return self.reward.spent_tokens - self._spent_before

    @property
    def windows_left(self) -> int:
        """Whole windows that the budget still pays for."""
        return (self.budget.tokens(self.reward.window_tokens) - self.spent) // self.reward.window_tokens

    def draw(self, rng: np.random.Generator, count: int) -> Windows:
        """Draws `count` different windows of the search text, ascending; all of them where it has no more."""
        chosen = rng.choice(self.reward.n_windows, size=min(count, self.reward.n_windows), replace=False)
        return tuple(sorted(int(window) for window in chosen))

    def score(
        self, candidates: Sequence[Allocation], windows: Windows, *, stage: str, target: float | None = None
    ) -> list[float]:
        """Scores candidates on the same windows.

        Args:
            candidates: Scored in this order.
            windows: Indices of the search text's windows.
            stage: Name of the part of the search, for the trace.
            target: Sparsity that the candidates answer; by default the problem's.

        Returns:
            The reward of each candidate.

        Raises:
            Exhausted: The budget cannot pay for the next candidate.
            FfpError: A reward is not finite.
        """
        target = self.problem.target if target is None else target
        return [self._score_one(candidate, windows, stage, target) for candidate in candidates]

    def utility(self, candidate: Allocation, windows: Windows, *, stage: str) -> FloatArray:
        """Returns the marginal utilities at a candidate, see `Reward.marginal_utility`, and records its reward.

        It costs GRADIENT_FORWARDS forwards of the windows.

        Raises:
            Exhausted: The budget cannot pay for it.
            FfpError: A utility is not finite.
        """
        self._check_affordable(GRADIENT_FORWARDS * len(windows))
        before = self.spent
        utility = self.reward.marginal_utility(candidate, windows=windows)
        if not np.isfinite(np.nanmean(utility, axis=(1, 2))).all():
            raise FfpError(f"the gate gradients of {candidate.keep} are not finite. Use dtype float32 for this model.")
        self._measure(candidate, windows, stage, self.problem.target, before)
        return utility

    def cost_curves(self, candidate: Allocation, windows: Windows, *, stage: str) -> list[CostCurve]:
        """Returns what other numbers of units would cost a candidate, see `Reward.cost_curves`, and records its reward.

        It costs GRADIENT_FORWARDS forwards of the windows.

        Raises:
            Exhausted: The budget cannot pay for it.
            FfpError: A cost is not finite.
        """
        self._check_affordable(GRADIENT_FORWARDS * len(windows))
        before = self.spent
        curves = self.reward.cost_curves(candidate, windows=windows)
        self._check_finite([np.stack(curve[1:]) for curve in curves], f"gate gradients of {candidate.keep}")
        self._measure(candidate, windows, stage, self.problem.target, before)
        return curves

    def removal_costs(self, windows: Windows) -> list[tuple[IntArray, FloatArray]]:
        """Returns what removals would cost each decision alone, see `Reward.removal_costs`; a row for the dense model.

        It costs GRADIENT_FORWARDS forwards of the windows.

        Raises:
            Exhausted: The budget cannot pay for it.
            FfpError: A cost is not finite.
        """
        costs = self._of_dense(self.reward.removal_costs, windows)
        self._check_finite([cost for _, cost in costs], "costs of removals")
        return costs

    def taylor_scores(self, windows: Windows) -> list[FloatArray]:
        """Returns the scores of all units, see `Reward.taylor_scores`; a row for the dense model.

        It costs GRADIENT_FORWARDS forwards of the windows.

        Raises:
            Exhausted: The budget cannot pay for it.
            FfpError: A score is not finite.
        """
        scores = self._of_dense(self.reward.taylor_scores, windows)
        self._check_finite(scores, "scores of units")
        return scores

    def gated(self, gates: Gates, windows: Windows, *, stage: str) -> float:
        """Returns the reward of the dense model with a factor on every unit, see `Reward.gated`.

        It costs a forward of the windows, whatever was scored before. The trace has the units whose factor is not 0.

        Raises:
            Exhausted: The budget cannot pay for it.
            FfpError: The reward is not finite.
        """
        self._check_affordable(len(windows))
        value = self.reward.gated(gates, windows)
        self._add_gated(gates, windows, stage, value)
        return value

    def gate_slopes(self, gates: Gates, windows: Windows, *, stage: str) -> list[FloatArray]:
        """Returns the derivative of the mean loss in a factor on every unit, see `Reward.gate_slopes`.

        It costs GRADIENT_FORWARDS forwards of the windows.

        Raises:
            Exhausted: The budget cannot pay for it.
            FfpError: A slope is not finite.
        """
        self._check_affordable(GRADIENT_FORWARDS * len(windows))
        value, slopes = self.reward.gate_slopes(gates, windows)
        self._check_finite(slopes, "slopes of the units' gates")
        self._add_gated(gates, windows, stage, value)
        return slopes

    def _add_gated(self, gates: Gates, windows: Windows, stage: str, value: float) -> None:
        """Records the reward of a gated model; its target is its own sparsity, where that is below the problem's."""
        keep = _kept(gates)
        target = min(self.problem.target, self.problem.sparsity_of(keep))
        self._record(keep, windows, stage, target, value)

    def _of_dense(self, measure: Callable[[Windows], T], windows: Windows) -> T:
        """Measures by a backward pass of the dense model, whose reward is 1."""
        self._check_affordable(GRADIENT_FORWARDS * len(windows))
        found = measure(windows)
        self._add_row("table", 0.0, windows, 1.0, self.problem.n_units.tolist())
        return found

    def _check_affordable(self, forwards: int) -> None:
        """Raises Exhausted where the budget cannot pay for so many forwards of a window."""
        if forwards > self.windows_left:
            raise Exhausted

    def _check_finite(self, found: Sequence[FloatArray], what: str) -> None:
        if not all(np.isfinite(values).all() for values in found):
            raise FfpError(f"the {what} are not finite. Use dtype float32 for this model.")

    def _score_one(self, candidate: Allocation, windows: Windows, stage: str, target: float) -> float:
        key = (candidate.keep, windows)
        if key not in self._memory:
            self._check_affordable(len(windows))
            self._memory[key] = self._measure(candidate, windows, stage, target, self.spent)
        return self._memory[key]

    def _measure(self, candidate: Allocation, windows: Windows, stage: str, target: float, before: int) -> float:
        """Returns the reward, and records it if it cost tokens since `before`."""
        value = float(self.reward(candidate, windows=windows))
        self._record(candidate.keep, windows, stage, target, value, is_new=self.spent > before)
        return value

    def _record(
        self, keep: tuple[int, ...], windows: Windows, stage: str, target: float, value: float, *, is_new: bool = True
    ) -> None:
        """Checks a reward, updates the best one, and adds a row if it cost tokens."""
        if not math.isfinite(value):
            raise FfpError(f"the reward of {keep} is {value}. Check the model's dtype (float32 is safe).")
        if target == self.problem.target and len(windows) >= self.budget.windows:
            self._best = value if math.isnan(self._best) else max(self._best, value)
        if is_new:
            self._add_row(stage, target, windows, value, list(keep))

    def _add_row(self, stage: str, target: float, windows: Windows, value: float, keep: list[int]) -> None:
        row = (len(self.rows) + 1, self.spent, stage, target, len(windows), value, self._best, keep)
        self.rows.append(dict(zip(TRACE_COLUMNS, row, strict=True)))
        self._progress.step(len(self.rows), self.spent, self._best)

    def answer(self, allocation: Allocation) -> None:
        """Notes what the search would answer if its budget ended now."""
        if not self.answers or self.answers[-1].keep != allocation.keep:
            self.answers.append(Answered(self.spent, allocation.keep))

    def answer_gated(self, gates: Gates) -> Allocation:
        """Notes the same of a search that chooses single units; returns the allocation that keeps as many.

        Args:
            gates: Factors on all units, in the order in which they are given; not 0 for those that stay.
        """
        allocation = Allocation.of(self.problem, _kept(gates))
        self.answers.append(Answered(self.spent, allocation.keep, tuple(gates)))
        return allocation

    def finish_gated(self, gates: Gates) -> Allocation:
        """Notes the answer of a search that chooses single units, see answer_gated, and returns its allocation."""
        self._progress.close()
        return self.answer_gated(gates)

    def finish(self, contenders: Sequence[Allocation], finalists: int | None = None) -> Allocation:
        """Chooses the answer among contenders and notes it.

        The first `finalists` distinct contenders are scored together on the selection text, which is no part of the
        search's budget. A single one is not scored.

        Args:
            contenders: Candidates at the problem's sparsity, sorted best first; they must have been compared on the
                same windows.
            finalists: By default the budget's.

        Returns:
            The best finalist; of equal ones the earlier.
        """
        self._progress.close()
        best = list(dict.fromkeys(contenders))[: self.budget.finalists if finalists is None else finalists]
        if len(best) > 1:
            scores = [self.reward.select(candidate) for candidate in best]
            log.info("%s: selection text: %s", self._progress.method, ", ".join(f"{score:.4f}" for score in scores))
            best = [best[i] for i in best_first(scores)]
        self.answer(best[0])
        return best[0]


def _kept(gates: Gates) -> tuple[int, ...]:
    """How many units of each decision have a factor that is not 0."""
    return tuple(int(np.count_nonzero(each)) for each in gates)


def best_first(scores: Sequence[float]) -> list[int]:
    """Returns indices by falling score; ties keep their order."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def rounded(values: Sequence[float] | FloatArray, step: float) -> FloatArray:
    """Rounds to multiples of `step`, for searches that compute with what they measure.

    Another processor adds the terms of a sum in another order. On SmolLM2-135M in float32 the loss of a pruned model
    then differs by about 4e-7 nats per token, at times by 1e-5. A search that only compares candidates hardly ever
    notices. One that computes with the numbers carries the difference into all that follows. Choose a step much larger
    than the difference and much smaller than the sampling noise. Rounding then hides the difference, except for rare
    values near a rounding border.
    """
    multiples: FloatArray = np.round(np.asarray(values, dtype=np.float64) / step) * step
    return multiples


def check_shapes(policy: Arrays, own: Arrays) -> None:
    """Checks that a policy to start from has the arrays of the search's own, in names and shapes.

    Raises:
        ConfigError: One is absent, superfluous or of another shape.
    """
    shapes, wanted = ({name: np.shape(array) for name, array in arrays.items()} for arrays in (policy, own))
    if shapes != wanted:
        odd = next(name for name in sorted(shapes.keys() | wanted.keys()) if shapes.get(name) != wanted.get(name))
        raise ConfigError(
            f"the policy to start from does not fit: {odd} is {shapes.get(odd, 'absent')}, this search needs "
            f"{wanted.get(odd, 'none')}. Start from the same method, on a model with the same number of blocks."
        )


class _Progress:
    """A bar where stderr is a terminal, otherwise about LOG_LINES plain lines a search."""

    def __init__(self, method: str, budget: SearchBudget, tokens: int):
        self.method = method
        self._tokens = tokens
        self._every = tokens / LOG_LINES
        self._next = self._every
        self._start = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=tokens, unit="tok", unit_scale=True, desc=method)
        log.info("%s: up to %d tokens, worth %d evaluations", method, tokens, budget.evaluations)

    def step(self, evaluations: int, spent: int, best: float) -> None:
        """Reports after an evaluation; best: NaN where no candidate was scored yet."""
        shown = "none yet" if math.isnan(best) else f"{best:.4f}"
        if self._bar is not None:
            self._bar.set_postfix(evaluations=evaluations, best=shown, refresh=False)
            self._bar.update(spent - self._bar.n)
        elif spent >= self._next:
            self._next += self._every * math.ceil((spent - self._next + 1) / self._every)
            rate = spent / max(time.monotonic() - self._start, 1e-9)
            left = (self._tokens - spent) / max(rate, 1e-9)
            line = "%s: %d evaluations, %d/%d tokens, best %s, %.0f tokens/s, %.0f s left"
            log.info(line, self.method, evaluations, spent, self._tokens, shown, rate, left)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()
