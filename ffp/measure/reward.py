"""The evaluator: an allocation becomes a reward by slicing or masking the resident model and measuring its loss.

Losses are memoised by allocation and window. With a journal every forward is also kept on disk the moment it is
done. A search is a deterministic function of its seed and its losses, so a killed search that starts again runs
through the same decisions, is given the journalled losses instead of forwards, and ends with the same result.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, FloatArray
from ffp.measure.journal import Journal
from ffp.measure.loss import last_hidden, token_losses, window_divergences, window_losses
from ffp.models.placement import float64
from ffp.models.sliced import SlicedModel
from ffp.pruning.masked import MaskedModel
from ffp.store.files import digest

log = logging.getLogger("ffp")
REWARD_FLOOR = 1e-6
GATE_BAND = 0.1




class Text:
    """Token windows of one text, (n, context), and the dense model's mean loss on each, (n,), nats per token."""

    def __init__(self, name: str, windows: torch.Tensor, dense_loss: FloatArray):
        self.name, self.windows, self.dense_loss = name, windows, dense_loss


class SlicedReward:
    """Reward of allocations on the search text, and of finalists on the selection text.

    fitness "ppl": PPL_dense / PPL_pruned. "kl": exp of minus the mean KL divergence from the dense model's predictions;
    the dense model's last hidden states of both texts then stay in memory, and its forwards are no search tokens.
    """

    def __init__(
        self,
        sliced: SlicedModel | MaskedModel,
        search: Text,
        selection: Text,
        *,
        batch_tokens: int,
        journal: Journal | None = None,
        fitness: str = "ppl",
    ):
        """batch_tokens: tokens in one forward, at least one window. Gate gradients need a SlicedModel."""
        self.sliced, self.search, self.selection = sliced, search, selection
        self.batch_tokens = batch_tokens
        self._teacher: dict[str, torch.Tensor] = {}
        if fitness == "kl":
            self._teacher = {text.name: self._dense_states(text) for text in (search, selection)}
            self.search, self.selection = (Text(t.name, t.windows, 0 * t.dense_loss) for t in (search, selection))
        self.journal = journal or Journal(None)
        self.evaluations = 0
        self.spent_tokens = 0
        self.selection_tokens = 0
        self.earlier_s = 0.0
        self._memo: dict[tuple[str, tuple[int, ...]], dict[int, float]] = {}

    @property
    def n_windows(self) -> int:
        return len(self.search.windows)

    @property
    def window_tokens(self) -> int:
        return int(self.search.windows.shape[1])

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        """exp(dense loss - pruned loss) over these windows of the search text, within [1e-6, inf) and finite."""
        losses, fresh = self._losses(self.search, allocation, windows)
        self.evaluations += fresh > 0
        self.spent_tokens += fresh * self.window_tokens
        return _reward(self.search, windows, losses)

    def select(self, allocation: Allocation) -> float:
        """The same over the whole selection text; its tokens are counted apart."""
        everything = range(len(self.selection.windows))
        losses, fresh = self._losses(self.selection, allocation, everything)
        self.selection_tokens += fresh * int(self.selection.windows.shape[1])
        return _reward(self.selection, everything, losses)

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> FloatArray:
        """(n_decisions, 2, 3): what the units at each decision's threshold are worth, nats per token and parameter.

        Axis 1: GATE_BAND of the decision just inside (kept) and just outside, NaN where there are none. Axis 2: the
        slope and the curvature term of a second-order expansion of the mean loss in a gate that the band shares:
            L(off) - L(on) = -g + h/2 from inside (gate 1),   -g - h/2 from outside (gate 0),
        g the derivative, h the empirical Fisher information (see models/sliced.Gate); then the slope's standard error,
        sqrt(h / tokens), where the loss is a mean over independent tokens. One forward and one backward;
        counted as three forwards of the windows and one evaluation. The loss that the forward yields goes into the
        memo, so that rewarding the same allocation on the same windows costs nothing more.
        """
        if self._teacher:
            raise ConfigError("gate gradients are of the perplexity: this method knows no fitness kl. Use ppl.")
        windows = list(dict.fromkeys(windows))
        key = f"gates:{digest([allocation.keep, windows])}"
        known = self.journal.find(key)
        if known is None:
            started = time.perf_counter()
            values = self._gate_gradients(allocation, windows)
            self.journal.add(key, values, time.perf_counter() - started)
        else:
            values = known["values"]
            self.earlier_s += known["s"]
        memo = self._memo.setdefault((self.search.name, allocation.keep), {})
        memo.update(zip(windows, values[: len(windows)], strict=True))
        self.evaluations += 1
        self.spent_tokens += 3 * len(windows) * self.window_tokens
        return np.array(values[len(windows) :]).reshape(-1, 2, 3)

    def _gate_gradients(self, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """The mean loss of each window, then the six values of each decision."""
        assert isinstance(self.sliced, SlicedModel), "methods that ask for gate gradients serve structured pruning only"
        losses: list[float] = []
        batch = max(1, self.batch_tokens // self.window_tokens)
        with self.sliced.gated(allocation.keep, GATE_BAND) as gates:
            for start in range(0, len(windows), batch):
                ids = self.search.windows[list(windows[start : start + batch])].to(self.sliced.model.device)
                with torch.enable_grad():
                    by_token = token_losses(self.sliced.model, ids)
                    torch.autograd.backward(by_token.sum())
                losses += float64(by_token.detach()).mean(1).tolist()
        values: list[float] = []
        n_tokens = len(windows) * (self.window_tokens - 1)
        for module, gate in zip(self.sliced.prunable.modules, gates, strict=True):
            for sign, band, (slope, square) in zip((0.5, -0.5), gate.bands, gate.sums.tolist(), strict=True):
                scale = n_tokens * max(1, len(band)) * module.decision.params_per_unit
                found = [-slope / scale, sign * square / scale, math.sqrt(square) / scale]
                values += found if band else [math.nan] * 3
        return losses + values

    def _losses(self, text: Text, allocation: Allocation, windows: Sequence[int]) -> tuple[list[float], int]:
        """Mean loss of each window, and how many of them were not in the memo."""
        memo = self._memo.setdefault((text.name, allocation.keep), {})
        fresh = [w for w in dict.fromkeys(windows) if w not in memo]
        if fresh:
            key = f"{text.name}:{digest([allocation.keep, fresh])}"
            known = self.journal.find(key)
            if known is None:
                started = time.perf_counter()
                values = self._measure(text, allocation, fresh)
                self.journal.add(key, values, time.perf_counter() - started)
            else:
                values = known["values"]
                self.earlier_s += known["s"]
            memo.update(zip(fresh, values, strict=True))
        return [memo[w] for w in windows], len(fresh)

    @torch.no_grad()
    def _measure(self, text: Text, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        self.sliced.set_allocation(allocation)
        losses: list[float] = []
        batch = max(1, self.batch_tokens // text.windows.shape[1])
        for start in range(0, len(windows), batch):
            chosen = list(windows[start : start + batch])
            ids = text.windows[chosen].to(self.sliced.model.device)
            if self._teacher:
                losses += window_divergences(self.sliced.model, ids, self._teacher[text.name][chosen]).tolist()
            else:
                losses += window_losses(self.sliced.model, ids).tolist()
        return losses

    @torch.no_grad()
    def _dense_states(self, text: Text) -> torch.Tensor:
        """The dense model's last hidden states, (n, context - 1, hidden); called before anything is switched off."""
        model, batch = self.sliced.model, max(1, self.batch_tokens // text.windows.shape[1])
        return torch.cat([last_hidden(model, ids.to(model.device)) for ids in torch.split(text.windows, batch)])


def _reward(text: Text, windows: Sequence[int], losses: Sequence[float]) -> float:
    """Bounded: a loss that is not finite gives the floor instead of wrecking the batch."""
    gap = float(np.mean(text.dense_loss[list(windows)]) - np.mean(losses))
    return max(math.exp(min(gap, 50.0)), REWARD_FLOOR) if math.isfinite(gap) else REWARD_FLOOR
