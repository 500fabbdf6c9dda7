"""Problems, statistics and a reward that stand for a model: tests of the methods run in milliseconds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from ffp.allocators.base import LinearStats, Method, Search, SearchBudget
from ffp.allocators.tracker import Tracker
from ffp.core import projection
from ffp.core.problem import Allocation, CostCurve, Decision, FloatArray, Gates, IntArray, PruningProblem


def structured_problem(target: float = 0.2, blocks: int = 6) -> PruningProblem:
    """Blocks of 3 KV groups and 96 channels, a KV group worth 41.6 channels; output biases on the FFN."""
    decisions = []
    for block in range(blocks):
        decisions.append(Decision(name=f"block{block:02d}.attention", n_units=3, params_per_unit=2080))
        decisions.append(Decision(name=f"block{block:02d}.ffn", n_units=96, params_per_unit=50, fixed_params=16))
    return PruningProblem(tuple(decisions), target)


def unstructured_problem(target: float = 0.5, blocks: int = 4) -> PruningProblem:
    """Blocks of 600 attention weights and 1,500 FFN weights, each weight a unit."""
    decisions = []
    for block in range(blocks):
        decisions.append(Decision(name=f"block{block:02d}.attention", n_units=600, params_per_unit=1, min_keep=6))
        decisions.append(Decision(name=f"block{block:02d}.ffn", n_units=1500, params_per_unit=1, min_keep=15))
    return PruningProblem(tuple(decisions), target, "unstructured")


def grouped_problem(target: float = 0.5, blocks: int = 5, m: int = 8) -> PruningProblem:
    """Blocks of 1,600 weights, one of every m a unit; the last block is twice as large."""
    sizes = [1600 << (block + 1 == blocks) for block in range(blocks)]
    decisions = [
        Decision(name=f"block{block:02d}", n_units=m, params_per_unit=size // m) for block, size in enumerate(sizes)
    ]
    return PruningProblem(tuple(decisions), target, f"n-of-{m}")


PROBLEMS = {
    "structured": structured_problem,
    "unstructured": unstructured_problem,
    "n-of-4": partial(grouped_problem, m=4),
    "n-of-8": partial(grouped_problem, m=8),
}


def keep_whole(problem: PruningProblem, whole: Callable[[Decision], bool], share: float = 0.5) -> PruningProblem:
    """Returns the problem with some decisions whole, at a share of the largest sparsity that is left."""
    decisions = tuple(dataclasses.replace(d, min_keep=d.n_units) if whole(d) else d for d in problem.decisions)
    found = PruningProblem(decisions, 0.0, problem.granularity)
    return found.at(share * projection.max_sparsity(found))


def run_search(
    method: Search,
    problem: PruningProblem,
    reward: SyntheticReward,
    budget: SearchBudget,
    *,
    seed: int = 0,
    policy=None,
) -> tuple[Allocation, Tracker]:
    """Runs a search as the pipeline does, and returns its answer with all that led to it."""
    tracker = Tracker(problem, reward, budget, method=method.name, seed=seed, initial_policy=policy)
    return method.run(tracker, np.random.default_rng(seed)), tracker


def answer(method: Method, problem: PruningProblem, budget: SearchBudget, *, seed: int = 0) -> Allocation:
    """Returns the answer of any method, on the synthetic statistics or reward."""
    if isinstance(method, Search):
        return run_search(method, problem, SyntheticReward(problem), budget, seed=seed)[0]
    return method.allocate(problem, SyntheticStats(problem))


class SyntheticReward:
    """exp(-damage), where damage is the mean over windows of sum_i c_iw * (share removed of decision i)^2.

    c_iw is a sensitivity of decision i, log-normal with spread `spread`, times a factor near 1 for each window. Damage
    is convex and separable, so the best allocation exists and is far from uniform.
    """

    def __init__(self, problem: PruningProblem, *, n_windows: int = 8, window_tokens: int = 10, spread: float = 1.2):
        rng = np.random.default_rng(int(hashlib.sha256(repr(problem.decisions).encode()).hexdigest()[:8], 16))
        n_decisions = len(problem.decisions)
        sensitivity = np.exp(spread * rng.standard_normal(n_decisions))
        sensitivity *= 12 / sensitivity.sum()
        self.damage = sensitivity * np.exp(0.3 * rng.standard_normal((n_windows, n_decisions)))
        self.held_out = sensitivity * np.exp(0.3 * rng.standard_normal((4, n_decisions)))
        self.noise = [0.5 / n * rng.standard_normal((n_windows, n)) for n in problem.n_units]
        self.decisions = problem.decisions
        self.n_windows, self.window_tokens = n_windows, window_tokens
        self.spent_tokens = self.evaluations = self.selections = 0
        self._memo: set[tuple[tuple[int, ...], int]] = set()

    def loss(self, keep: Sequence[int], damage: FloatArray) -> float:
        """Returns the mean excess loss over the rows of `damage`."""
        removed = [(decision.n_units - k) / decision.n_units for decision, k in zip(self.decisions, keep, strict=True)]
        return float((damage @ np.square(removed)).mean())

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        fresh = [window for window in windows if (allocation.keep, window) not in self._memo]
        self._memo.update((allocation.keep, window) for window in fresh)
        self.spent_tokens += len(fresh) * self.window_tokens
        self.evaluations += bool(fresh)
        return float(np.exp(-self.loss(allocation.keep, self.damage[list(windows)])))

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> FloatArray:
        """Returns the first derivative and half the second one, which is exact for this reward.

        Charges a forward and a backward. The reward on the same windows is free afterwards.
        """
        self.spent_tokens += 3 * len(windows) * self.window_tokens
        self.evaluations += 1
        self._memo.update((allocation.keep, window) for window in windows)
        damage = self.damage[list(windows)].mean(axis=0)
        utility = np.full((len(self.decisions), 2, 3), np.nan)
        for i, (decision, keep) in enumerate(zip(self.decisions, allocation.keep, strict=True)):
            scale = damage[i] / decision.n_units**2 / decision.params_per_unit
            for side, there in enumerate((keep > 0, keep < decision.n_units)):
                if there:
                    utility[i, side] = 2 * (decision.n_units - keep) * scale, (1 - 2 * side) * scale, 0.0
        return utility

    def cost_curves(self, allocation: Allocation, *, windows: Sequence[int]) -> list[CostCurve]:
        """Returns the expansion and the costs of all removals, both exact for this reward; a forward and a backward.

        The reward on the same windows is free afterwards.
        """
        self._memo.update((allocation.keep, window) for window in windows)
        damage, curves = self.damage[list(windows)].mean(axis=0), []
        for (level, table), c, keep in zip(self.removal_costs(windows), damage, allocation.keep, strict=True):
            less, removed = (keep - level) / level[-1], 1 - keep / level[-1]
            curves.append(CostCurve(level, 2 * c * removed * less, c * less**2, table))
        return curves

    def removal_costs(self, windows: Sequence[int]) -> list[tuple[IntArray, FloatArray]]:
        """Returns each decision's own damage, which is exact for this reward; charges a forward and a backward."""
        self.spent_tokens += 3 * len(windows) * self.window_tokens
        self.evaluations += 1
        damage = self.damage[list(windows)].mean(axis=0)
        return [
            (np.arange(d.n_units + 1), c * (np.arange(d.n_units, -1, -1) / d.n_units) ** 2)
            for c, d in zip(damage, self.decisions, strict=True)
        ]

    def taylor_scores(self, windows: Sequence[int]) -> list[FloatArray]:
        """Returns what each unit adds to its decision's own damage, the last kept one least; a forward and a backward.

        At the dense model the derivative of this reward is 0; a score of the real one is not.
        """
        return [cost[:-1] - cost[1:] for _, cost in self.removal_costs(windows)]

    def gated(self, gates: Gates, windows: Sequence[int]) -> float:
        """Returns exp(-damage) of a model whose units have factors: units of a decision differ by noise alone."""
        self.spent_tokens += len(windows) * self.window_tokens
        self.evaluations += 1
        removed = np.array([1 - gate.mean() for gate in gates])
        loss = float((self.damage[list(windows)] @ removed**2).mean())
        for noise, gate in zip(self.noise, gates, strict=True):
            loss += float((noise[list(windows)] @ (1 - gate)).mean())
        return float(np.exp(-loss))

    def gate_slopes(self, gates: Gates, windows: Sequence[int]) -> tuple[float, list[FloatArray]]:
        """Returns the same, and the derivative of the damage in every factor; charges a forward and a backward."""
        value, damage = self.gated(gates, windows), self.damage[list(windows)].mean(axis=0)
        self.spent_tokens += 2 * len(windows) * self.window_tokens
        return value, [
            -2 * c * (1 - gate.mean()) / len(gate) - noise[list(windows)].mean(axis=0)
            for c, gate, noise in zip(damage, gates, self.noise, strict=True)
        ]

    def select(self, allocation: Allocation) -> float:
        self.selections += 1
        return float(np.exp(-self.loss(allocation.keep, self.held_out)))


class SyntheticStats:
    """Random weights and inputs with tails that get heavier from block to block; two linears a module.

    The second one writes to the residual stream; its columns are the module's units, two columns a unit of attention.
    """

    def __init__(self, problem: PruningProblem, *, seed: int = 0):
        rng = np.random.default_rng(seed)
        sizes = {(decision.block, decision.module): decision.n_units for decision in problem.decisions}
        self._blocks: list[list[LinearStats]] = []
        for number, block in enumerate(dict.fromkeys(decision.block for decision in problem.decisions)):
            self._blocks.append([])
            for module in ("attention", "ffn"):
                decision = f"{block}.{module}" if (block, module) in sizes else block
                units = sizes[block, module] if problem.granularity == "structured" else 20
                for part, columns in (("in", 20), ("out", units * (1 + (module == "attention")))):
                    weight = rng.standard_t(2 + 2 * number + (module == "ffn"), size=(12, columns)).astype(np.float32)
                    square = rng.gamma(1.0, size=columns)
                    name, output = f"{block}.{module}.{part}", part == "out"
                    linear = LinearStats(name, decision, weight, square, 0.9 * square, 100, module, output)
                    self._blocks[-1].append(linear)

    @property
    def n_blocks(self) -> int:
        return len(self._blocks)

    def linears(self, block: int) -> Iterator[LinearStats]:
        return iter(self._blocks[block])

    def block_influence(self) -> FloatArray:
        return np.cos(np.arange(1, self.n_blocks + 1)) ** 2
