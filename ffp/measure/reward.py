"""The reward of an allocation: slices or masks the model in memory and measures its loss.

Losses are remembered by allocation and window, and every forward is put into a journal the moment it is done. A search
is a deterministic function of its seed and its losses, so a killed search that starts again makes the same choices,
gets its losses from the journal instead of from forwards, and ends with the same result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ffp.core.errors import ConfigError
from ffp.core.knapsack import levels
from ffp.core.problem import Allocation, CostCurve, FloatArray, Gates, IntArray
from ffp.measure.journal import Journal, MemoryJournal
from ffp.measure.loss import last_hidden, token_losses, window_losses
from ffp.measure.text import Text, reward_of
from ffp.models.gates import Gate
from ffp.models.placement import float64
from ffp.models.sliced import SlicedModel
from ffp.models.stream import windows_at_once
from ffp.pruning.cuts import Candidates
from ffp.store.files import digest

GATE_BAND = 0.1
SLOPE_DIGITS = 4


class ModelReward:
    """Reward of allocations on the search text, and of finalists on the selection text.

    Attributes:
        evaluations: Candidates scored so far; those whose losses were all known are not counted.
        spent_tokens: Tokens forwarded on the search text; a backward counts as two forwards.
        selection_tokens: Tokens forwarded on the selection text.
        earlier_s: Seconds of earlier attempts behind the measurements that the journal gave.
    """

    def __init__(
        self, candidates: Candidates, search: Text, selection: Text, *, batch_tokens: int,
        journal: Journal | None = None, fitness: str = "ppl",
    ):  # fmt: skip
        """Prepares to score candidates.

        Args:
            candidates: The dense model, ready to switch between allocations. Gate gradients need a SlicedModel.
            search: Text that candidates are scored on.
            selection: Text that finalists are scored on.
            batch_tokens: Tokens in one forward; at least one window.
            journal: Where measurements are kept and looked up.
            fitness: "ppl": PPL_dense / PPL_pruned. "kl": exp of minus the mean KL divergence from the dense model's
                predictions; its last hidden states of both texts then stay in memory, and computing them costs no
                search tokens.
        """
        self.candidates, self.search, self.selection = candidates, search, selection
        self.batch_tokens = batch_tokens
        self._teacher: dict[str, torch.Tensor] = {}
        self.fitness = fitness
        if fitness == "kl":
            self._teacher = {text.name: self._dense_states(text) for text in (search, selection)}
            self.search, self.selection = (Text(t.name, t.windows, 0 * t.dense_loss) for t in (search, selection))
        self.journal = MemoryJournal() if journal is None else journal
        self.evaluations = self.spent_tokens = self.selection_tokens = 0
        self.earlier_s = 0.0
        self._memo: dict[tuple[str, tuple[int, ...]], dict[int, float]] = {}

    @property
    def n_windows(self) -> int:
        """Windows of the search text."""
        return len(self.search.windows)

    @property
    def window_tokens(self) -> int:
        """Tokens of one window of the search text."""
        return self.search.context

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        """Returns exp(dense loss - pruned loss) over windows of the search text, positive and finite."""
        losses, fresh = self._losses(self.search, allocation, windows)
        self.evaluations += fresh > 0
        self.spent_tokens += fresh * self.window_tokens
        return reward_of(self.search, windows, losses)

    def select(self, allocation: Allocation) -> float:
        """Returns exp(dense loss - pruned loss) over the whole selection text; its tokens are counted apart."""
        everything = range(len(self.selection.windows))
        losses, fresh = self._losses(self.selection, allocation, everything)
        self.selection_tokens += fresh * self.selection.context
        return reward_of(self.selection, everything, losses)

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> FloatArray:
        """Returns what the units at each decision's threshold are worth, nats per token and parameter.

        Costs one forward and one backward, counted as three forwards of the windows and one evaluation. The loss of the
        forward is remembered, so that rewarding the same allocation on the same windows costs nothing more.

        Args:
            allocation: The candidate.
            windows: Indices into the search text's windows.

        Returns:
            (n_decisions, 2, 3). Axis 1: GATE_BAND of the decision just inside (kept) and just outside, NaN where there
            are none. Axis 2: the slope and the curvature term of a second-order expansion of the mean loss in a gate
            that the band shares,
                L(off) - L(on) = -g + h/2 from inside (gate 1),   -g - h/2 from outside (gate 0),
            g the derivative, h the empirical Fisher information (see models/gates.Gate); then the slope's standard
            error, sqrt(h / tokens), where the loss is a mean over independent tokens.

        Raises:
            ConfigError: The fitness is kl.
        """
        self._check_gradients()
        windows = list(dict.fromkeys(windows))
        key = f"gates:{digest([allocation.keep, windows])}"
        values = self._by_backward(key, windows, lambda: self._gate_gradients(allocation, windows))
        self._remember(self.search, allocation, windows, values[: len(windows)])
        return np.array(values[len(windows) :]).reshape(-1, 2, 3)

    def cost_curves(self, allocation: Allocation, *, windows: Sequence[int]) -> list[CostCurve]:
        """Returns what other numbers of kept units would cost each decision alone, beside an allocation.

        Costs one forward and one backward, counted as three forwards of the windows and one evaluation. The loss of the
        forward is remembered, so that rewarding the same allocation on the same windows costs nothing more. Costs have
        SLOPE_DIGITS digits, much fewer than their noise leaves, so that a journal stays small.

        Args:
            allocation: The candidate.
            windows: Indices into the search text's windows.

        Returns:
            For each decision, at its levels: the two terms of a second-order expansion of the mean loss at the
            candidate (see models/gates.CurveGate), with the empirical Fisher information as curvature; and
            removal_costs with the candidate's gradients in place of the dense model's.

        Raises:
            ConfigError: The fitness is kl, the candidates are not structured, or there are no Gram matrices.
        """
        self._check_gradients()
        candidates, windows = self._structured(), list(dict.fromkeys(windows))
        key = f"curves:{digest([allocation.keep, windows])}"
        values = self._by_backward(key, windows, lambda: self._measure_curves(allocation, windows))
        self._remember(self.search, allocation, windows, values[: len(windows)])
        priced = [levels(module.decision.n_units) for module in candidates.prunable.modules]
        ends = np.cumsum([len(level) for level in priced])
        parts = np.split(np.array(values[len(windows) :]).reshape(3, -1), ends[:-1], axis=1)
        return [CostCurve(level, *part) for level, part in zip(priced, parts, strict=True)]

    def removal_costs(self, windows: Sequence[int]) -> list[tuple[IntArray, FloatArray]]:
        """Returns what removals would cost each decision alone, see removal_costs of SlicedModel and MaskedModel.

        Costs one forward and one backward of the dense model, counted as three forwards of the windows and one
        evaluation. Measured at the levels of each decision.

        Args:
            windows: Indices into the search text's windows.

        Returns:
            For each decision, numbers of kept units, ascending, and the rise of the mean loss in nats per token if so
            many stay.

        Raises:
            ConfigError: The candidates are n-of-M, or the calibration has no Gram matrices.
        """
        windows = list(dict.fromkeys(windows))
        decisions = self.candidates.prunable.problem(0.0, self.candidates.granularity).decisions
        priced = [levels(decision.n_units) for decision in decisions]
        values = self._by_backward(f"table:{digest(windows)}", windows, lambda: self._measure_costs(windows, priced))
        parts = np.split(np.array(values), np.cumsum([len(level) for level in priced])[:-1])
        return list(zip(priced, parts, strict=True))

    def taylor_scores(self, windows: Sequence[int]) -> list[FloatArray]:
        """Returns the sum of |gradient * weight| over each unit's weights, see SlicedModel.taylor_scores.

        Costs one forward and one backward of the dense model, counted as three forwards of the windows and one
        evaluation.

        Args:
            windows: Indices into the search text's windows.

        Returns:
            For each decision, nats per token, in the order in which units are kept: (n_units,).

        Raises:
            ConfigError: The candidates are not structured.
        """
        self._structured()
        windows = list(dict.fromkeys(windows))
        values = self._by_backward(f"taylor:{digest(windows)}", windows, lambda: self._measure_scores(windows))
        counts = [module.decision.n_units for module in self.candidates.prunable.modules]
        return np.split(np.array(values), np.cumsum(counts)[:-1])

    def gated(self, gates: Gates, windows: Sequence[int]) -> float:
        """Returns the reward of the dense model with a factor on every unit, see SlicedModel.unit_gates.

        Costs one forward of the windows and one evaluation.

        Args:
            gates: By decision, factors on its units in the order in which they are kept.
            windows: Indices into the search text's windows.

        Raises:
            ConfigError: The candidates are not structured.
        """
        windows = list(dict.fromkeys(windows))
        losses = self._gated_losses(self.search, gates, windows)
        self.evaluations += 1
        self.spent_tokens += len(windows) * self.window_tokens
        return reward_of(self.search, windows, losses)

    def gate_slopes(self, gates: Gates, windows: Sequence[int]) -> tuple[float, list[FloatArray]]:
        """Returns the same, and the derivative of the mean loss in every factor.

        Costs one forward and one backward, counted as three forwards of the windows and one evaluation. Derivatives
        have SLOPE_DIGITS digits, much fewer than their noise leaves, so that a journal stays small.

        Returns:
            The reward, and for each decision nats per token, (n_units,).

        Raises:
            ConfigError: The candidates are not structured, or the fitness is kl.
        """
        self._check_gradients()
        windows = list(dict.fromkeys(windows))
        key = f"slopes:{_key(gates, windows)}"
        values = self._by_backward(key, windows, lambda: self._measure_slopes(gates, windows))
        losses, slopes = values[: len(windows)], np.array(values[len(windows) :])
        ends = np.cumsum([len(each) for each in gates])
        return reward_of(self.search, windows, losses), np.split(slopes, ends[:-1])

    def select_gated(self, gates: Gates) -> float:
        """Returns the reward of `gated` over the whole selection text; its tokens are counted apart."""
        everything = range(len(self.selection.windows))
        losses = self._gated_losses(self.selection, gates, everything)
        self.selection_tokens += len(everything) * self.selection.context
        return reward_of(self.selection, everything, losses)

    def by_index(self, gates: Gates) -> dict[str, npt.NDArray[np.float32]]:
        """Returns the same factors in the model's own order, see SlicedModel.by_index."""
        return self._structured().by_index(gates)

    def _gated_losses(self, text: Text, gates: Gates, windows: Sequence[int]) -> list[float]:
        """Mean loss of each window of a gated model."""
        candidates = self._structured()

        def measure() -> list[float]:
            with candidates.unit_gates(gates):
                return self._forward(text, windows)

        return self._known(f"{text.name}:{_key(gates, windows)}", len(windows) * text.context, measure)

    def _measure_slopes(self, gates: Gates, windows: Sequence[int]) -> list[float]:
        """The mean loss of each window, then the derivatives of each decision's units, one after the other."""
        with self._structured().unit_gates(gates) as found:
            losses = self._backward(windows)
        slopes = torch.cat([gate.slopes for gate in found]) / (len(windows) * (self.window_tokens - 1))
        return losses + [float(f"{slope:.{SLOPE_DIGITS - 1}e}") for slope in slopes.tolist()]

    def _check_gradients(self) -> None:
        if self._teacher:
            raise ConfigError("gate gradients are of the perplexity: this method knows no fitness kl. Use ppl.")

    def _structured(self) -> SlicedModel:
        if not isinstance(self.candidates, SlicedModel):
            raise ConfigError("scores of units are known of structured pruning only. Take another method.")
        return self.candidates

    def _measure_scores(self, windows: Sequence[int]) -> list[float]:
        """The scores of each decision's units, one after the other."""
        candidates = self._structured()
        with candidates.weight_gradients() as gradients:
            self._backward(windows)
        scores = candidates.taylor_scores(gradients, len(windows) * (self.window_tokens - 1))
        return [float(value) for by_unit in scores for value in by_unit]

    def _measure_costs(self, windows: Sequence[int], priced: Sequence[IntArray]) -> list[float]:
        """The costs of each decision at the priced numbers of units, one after the other."""
        candidates, n_tokens = self.candidates, len(windows) * (self.window_tokens - 1)
        if isinstance(candidates, SlicedModel):
            with candidates.output_fishers() as fishers:
                self._backward(windows)
            every = candidates.removal_costs(fishers, n_tokens)
            costs = [cost[level] for cost, level in zip(every, priced, strict=True)]
        else:
            with candidates.output_squares() as squares:
                self._backward(windows)
            costs = candidates.removal_costs(squares, n_tokens, priced)
        return [float(value) for cost in costs for value in cost]

    def _backward(self, windows: Sequence[int]) -> list[float]:
        """A backward pass of the summed token losses; returns the mean loss of each window."""
        losses: list[float] = []
        model, batch = self.candidates.model, windows_at_once(self.batch_tokens, self.window_tokens)
        for ids in torch.split(self.search.windows[list(windows)], batch):
            with torch.enable_grad():
                by_token = token_losses(model, ids.to(model.device))
                torch.autograd.backward(by_token.sum())
            losses += float64(by_token.detach()).mean(1).tolist()
        return losses

    def _losses(self, text: Text, allocation: Allocation, windows: Sequence[int]) -> tuple[list[float], int]:
        """Mean loss of each window, and how many of them were not in the memo."""
        memo = self._memo.setdefault((text.name, allocation.keep), {})
        fresh = [w for w in dict.fromkeys(windows) if w not in memo]
        if fresh:
            key, tokens = f"{text.name}:{digest([allocation.keep, fresh])}", len(fresh) * text.context
            values = self._known(key, tokens, lambda: self._measure(text, allocation, fresh))
            self._remember(text, allocation, fresh, values)
        return [memo[w] for w in windows], len(fresh)

    def _remember(self, text: Text, allocation: Allocation, windows: Sequence[int], losses: Sequence[float]) -> None:
        """Keeps losses: the one place that every measured loss passes, whether it is new or from the journal."""
        self._memo.setdefault((text.name, allocation.keep), {}).update(zip(windows, losses, strict=True))

    def _known(self, key: str, tokens: int, measure: Callable[[], list[float]]) -> list[float]:
        """Values from the journal, or measured now and put there."""
        if (entry := self.journal.find(key)) is not None:
            self.earlier_s += entry["s"]
            return list(entry["values"])
        started = time.perf_counter()
        values = measure()
        self.journal.add(key, values, time.perf_counter() - started, tokens=tokens)
        return values

    def _by_backward(self, key: str, windows: Sequence[int], measure: Callable[[], list[float]]) -> list[float]:
        """The same for what takes a forward and a backward, which it charges as an evaluation."""
        tokens = 3 * len(windows) * self.window_tokens
        values = self._known(key, tokens, measure)
        self.evaluations += 1
        self.spent_tokens += tokens
        return values

    def _measure(self, text: Text, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """Mean loss of each window by a forward of the candidate."""
        self.candidates.set_allocation(allocation)
        return self._forward(text, windows)

    def _forward(self, text: Text, windows: Sequence[int]) -> list[float]:
        """Mean loss of each window by a forward of the candidates' model as it is."""
        chosen = list(windows)
        teacher = self._teacher[text.name][chosen] if self._teacher else None
        losses = window_losses(
            self.candidates.model, text.windows[chosen], batch_tokens=self.batch_tokens, teacher=teacher
        )
        return list(losses.tolist())

    def _gate_gradients(self, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """The mean loss of each window, then the six values of each decision."""
        with self._structured().gated(allocation.keep, GATE_BAND) as gates:
            losses = self._backward(windows)
        return losses + self._gate_values(gates, len(windows) * (self.window_tokens - 1))

    def _gate_values(self, gates: Sequence[Gate], n_tokens: int) -> list[float]:
        """Slope, curvature term and standard error of each decision's two bands; see marginal_utility."""
        values: list[float] = []
        for module, gate in zip(self.candidates.prunable.modules, gates, strict=True):
            for sign, band, (slope, square) in zip((0.5, -0.5), gate.bands, gate.sums.tolist(), strict=True):
                scale = n_tokens * max(1, len(band)) * module.decision.params_per_unit
                found = [-slope / scale, sign * square / scale, math.sqrt(square) / scale]
                values += found if band else [math.nan] * 3
        return values

    def _measure_curves(self, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """The mean loss of each window; then all slopes, all curvatures and all costs by Kronecker factors."""
        candidates, n_tokens = self._structured(), len(windows) * (self.window_tokens - 1)
        priced = [levels(module.decision.n_units) for module in candidates.prunable.modules]
        with candidates.curve_gates(allocation.keep, priced) as (gates, fishers):
            losses = self._backward(windows)
        slopes, squares = np.concatenate([gate.sums.numpy() for gate in gates], axis=1) / n_tokens
        every = zip(candidates.removal_costs(fishers, n_tokens), priced, strict=True)
        table = np.concatenate([cost[level] for cost, level in every])
        return losses + [float(f"{v:.{SLOPE_DIGITS - 1}e}") for v in np.concatenate([slopes, squares / 2, table])]

    @torch.no_grad()
    def _dense_states(self, text: Text) -> torch.Tensor:
        """The dense model's last hidden states, (n, context - 1, hidden); called before anything is switched off."""
        model, batch = self.candidates.model, windows_at_once(self.batch_tokens, text.context)
        return torch.cat([last_hidden(model, ids.to(model.device)) for ids in torch.split(text.windows, batch)])


def _key(gates: Gates, windows: Sequence[int]) -> str:
    """A digest of factors and windows, for the journal."""
    return digest([np.concatenate(gates).astype(np.float64).tobytes().hex(), list(windows)])
