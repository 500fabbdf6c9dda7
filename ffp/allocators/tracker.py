"""What the searches share: scoring within the budget, the trace, progress, and the choice of the winner.

Rewards on different windows are never compared with each other here: candidates that compete are scored on the
same windows, and the finalists meet once more on the selection text.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ffp.allocators.base import Reward, SearchBudget, SearchResult
from ffp.core.errors import ConfigError, FfpError
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import kept_budget

log = logging.getLogger("ffp")
T = TypeVar("T")
L = TypeVar("L")
Windows = tuple[int, ...]

COLUMNS = ("evaluation", "tokens", "stage", "sparsity", "windows", "reward", "best", "keep")
LOG_LINES = 20


class Exhausted(Exception):
    """A candidate's cost exceeds what is left of the budget; it was not started. Never leaves a search."""


def needed(value: T | None, method: str, what: str) -> T:
    """`value`, or ConfigError where a method was not given what it needs ("a reward", "calibration statistics")."""
    if value is None:
        raise ConfigError(f"method {method!r} needs {what}, but got none. Hand the folder of calibrate to allocate.")
    return value


def check_number(method: str, key: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """ConfigError unless a hyper-parameter is a number, an integer where `whole`, in [low, high]."""
    right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right_type or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        limit = f"from {low:g} up" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise ConfigError(f"method {method!r}: {key} = {value!r} is not {kind} {limit}. Correct it in variants.")


def check_switch(method: str, key: str, value: Any) -> None:
    """ConfigError unless a hyper-parameter is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"method {method!r}: {key} = {value!r} is neither true nor false. Correct it in variants.")


def started(method: L, policy: Mapping[str, Any]) -> L:
    """A copy of a frozen dataclass of a method that starts from a policy."""
    warm = copy.copy(method)
    object.__setattr__(warm, "policy", policy)
    return warm


def check_shapes(policy: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """ConfigError unless a policy to start from has the arrays of the search's own, in number and shape."""
    shapes, wanted = ({name: np.shape(array) for name, array in arrays.items()} for arrays in (policy, own))
    if shapes != wanted:
        odd = next(name for name in sorted(shapes.keys() | wanted.keys()) if shapes.get(name) != wanted.get(name))
        raise ConfigError(
            f"the policy to start from does not fit: {odd} is {shapes.get(odd, 'absent')}, this search needs "
            f"{wanted.get(odd, 'none')}. Start from the same method, on a model with the same number of blocks."
        )


class Tracker:
    """Wraps the reward of one search: keeps to the budget, remembers scores, writes the trace, reports progress.

    Tokens are those that the reward forwarded since the tracker was made. What was measured before costs no tokens
    and gets no row. Since it is free, a loop that waits for the budget to run out may never end; bound it by
    `max_rounds`. In the trace, `best` is the highest reward so far of a candidate at the full target, on the
    budget's full number of windows.
    """

    def __init__(self, problem: PruningProblem, reward: Reward, budget: SearchBudget, *, method: str):
        """Raises BudgetError if the target is infeasible, ConfigError if the search text has too few windows."""
        kept_budget(problem)
        if budget.windows > reward.n_windows:
            raise ConfigError(
                f"search.windows_per_evaluation = {budget.windows} exceeds search.windows = {reward.n_windows}. "
                "Lower the first or raise the second."
            )
        self.problem = problem
        self.reward = reward
        self.budget = budget
        self.rows: list[Mapping[str, Any]] = []
        self.answers: list[tuple[int, tuple[int, ...]]] = []
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
        """`count` different windows of the search text, ascending; all of them where the text has no more."""
        chosen = rng.choice(self.reward.n_windows, size=min(count, self.reward.n_windows), replace=False)
        return tuple(sorted(int(window) for window in chosen))

    def score(
        self, candidates: Sequence[Allocation], windows: Windows, *, stage: str, target: float | None = None
    ) -> list[float]:
        """The reward of each candidate on the same windows.

        target: the sparsity that the candidates answer, the problem's own by default. Raises Exhausted before a
        candidate that the budget cannot pay for, FfpError on a reward that is no finite number.
        """
        target = self.problem.target if target is None else target
        return [self._score_one(candidate, windows, stage, target) for candidate in candidates]

    def utility(self, candidate: Allocation, windows: Windows, *, stage: str) -> FloatArray:
        """The marginal utility of every decision at a candidate, whose reward it yields too; costs three forwards.

        Raises Exhausted where the budget cannot pay for it, FfpError on values that are no finite numbers.
        """
        if 3 * len(windows) > self.windows_left:
            raise Exhausted
        before = self.spent
        utility = self.reward.marginal_utility(candidate, windows=windows)
        if not np.isfinite(np.nanmean(utility, axis=(1, 2))).all():
            raise FfpError(f"the gate gradients of {candidate.keep} are not finite. Use dtype float32 for this model.")
        self._measure(candidate, windows, stage, self.problem.target, before)
        return utility

    def _score_one(self, candidate: Allocation, windows: Windows, stage: str, target: float) -> float:
        key = (candidate.keep, windows)
        if key not in self._memory:
            if len(windows) > self.windows_left:
                raise Exhausted
            self._memory[key] = self._measure(candidate, windows, stage, target, self.spent)
        return self._memory[key]

    def _measure(self, candidate: Allocation, windows: Windows, stage: str, target: float, before: int) -> float:
        """The reward; a row for it if it cost tokens since `before`."""
        value = float(self.reward(candidate, windows=windows))
        if not math.isfinite(value):
            raise FfpError(f"the reward of {candidate.keep} is {value}. Check the model's dtype (float32 is safe).")
        if target == self.problem.target and len(windows) >= self.budget.windows:
            self._best = value if math.isnan(self._best) else max(self._best, value)
        if self.spent > before:
            self._record(candidate, windows, stage, target, value)
        return value

    def _record(self, candidate: Allocation, windows: Windows, stage: str, target: float, value: float) -> None:
        """Append a row and report."""
        row = (len(self.rows) + 1, self.spent, stage, target, len(windows), value, self._best, list(candidate.keep))
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))
        self._progress.step(len(self.rows), self.spent, self._best)

    def answer(self, allocation: Allocation) -> None:
        """Note what the search would answer if its budget ended now: the anytime curve is made of these."""
        if not self.answers or self.answers[-1][1] != allocation.keep:
            self.answers.append((self.spent, allocation.keep))

    def result(self, contenders: Sequence[Allocation], policy: Mapping[str, Any] | None = None) -> SearchResult:
        """The end of a search: the winner among its contenders (see finish) and all that led to it."""
        winner = self.finish(contenders)
        self.answer(winner)
        return SearchResult(winner, tuple(self.rows), policy or {}, tuple(self.answers))

    def finish(self, contenders: Sequence[Allocation]) -> Allocation:
        """The winner: the first `budget.finalists` distinct contenders, re-scored together on the selection text.

        contenders: candidates at the full target, best first by a comparison on common windows. Ties go to the
        earlier one. The selection text is no part of the search's budget.
        """
        self._progress.close()
        finalists = list(dict.fromkeys(contenders))[: self.budget.finalists]
        if len(finalists) == 1:
            return finalists[0]
        scores = [self.reward.select(candidate) for candidate in finalists]
        log.info("%s: selection text: %s", self._progress.method, ", ".join(f"{score:.4f}" for score in scores))
        return finalists[best_first(scores)[0]]


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; ties keep their order."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


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
        """Report after an evaluation."""
        if self._bar is not None:
            self._bar.set_postfix(evaluations=evaluations, best=f"{best:.4f}", refresh=False)
            self._bar.update(spent - self._bar.n)
        elif spent >= self._next:
            self._next += self._every * math.ceil((spent - self._next + 1) / self._every)
            rate = spent / max(time.monotonic() - self._start, 1e-9)
            left = (self._tokens - spent) / max(rate, 1e-9)
            line = "%s: %d evaluations, %d/%d tokens, best %.4f, %.0f tokens/s, %.0f s left"
            log.info(line, self.method, evaluations, spent, self._tokens, best, rate, left)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
