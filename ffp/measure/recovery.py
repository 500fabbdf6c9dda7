"""Recovery: trains what is left of a pruned model on a text, so that it makes up for what is gone.

Only the thin matrices of ffp.models.adapters are trained, by AdamW. On the CPU the same windows, settings and seed give
the same bytes, also where a killed training goes on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ffp.config.recover import RecoverSettings
from ffp.core.errors import ConfigError, FfpError
from ffp.measure.cost import CostMeter
from ffp.measure.loss import last_hidden, token_divergences, token_losses
from ffp.models.adapters import Adapters
from ffp.models.placement import BorrowBlock, forward_as
from ffp.models.prunable import PrunableModel
from ffp.models.stream import windows_at_once
from ffp.store.schemas import CURVE_COLUMNS

log = logging.getLogger("ffp")
Arrays = Mapping[str, npt.NDArray[Any]]
SAVE_EVERY = 8  # steps
LOG_LINES = 20
MAX_NORM = 1.0  # a gradient with a larger norm is scaled down to it
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, of each parameter


class TrainingState(Protocol):
    """Keeps a training that is under way; ffp.store.training keeps it in a file."""

    def load(self) -> Arrays | None:
        """Returns what an earlier attempt saved last, if there was one."""
        ...

    def save(self, arrays: Arrays) -> None:
        """Replaces what was saved."""
        ...


@dataclass(frozen=True)
class Recovery:
    """What a training gave.

    Attributes:
        updates: New weights of all linears of the blocks by parameter name, float32.
        curve: A row for each step with CURVE_COLUMNS; the loss in nats per token is that before the step.
        cost: Tokens and seconds. A backward pass counts as two forwards.
    """

    updates: Arrays
    curve: Sequence[Mapping[str, Any]]
    cost: CostMeter


def recover(
    prunable: PrunableModel, windows: torch.Tensor, settings: RecoverSettings, *, seed: int, batch_tokens: int,
    teacher: Any = None, state: TrainingState | None = None,
) -> Recovery:  # fmt: skip
    """Trains a model in place, as ffp.api.recover says: afterwards its linears hold the new weights.

    Where `settings.tokens` are more than those of the windows, these are read again, each time in another order; where
    they are fewer, a part is drawn. The state is saved every SAVE_EVERY steps.
    """
    check_trainable(prunable)
    if (settings.loss == "kl") != (teacher is not None):
        raise ConfigError(f"loss {settings.loss!r} of recovery takes {'a' if teacher is None else 'no'} teacher.")
    adapters = Adapters(prunable, rank=settings.rank, alpha=settings.alpha, seed=seed)
    with CostMeter() as cost, torch.enable_grad(), adapters:
        training = _Training(adapters, windows, settings, seed, batch_tokens, teacher)
        training.run(state)
        updates = adapters.merge()
        cost.earlier_s = training.earlier_s
        cost.n_tokens = training.tokens * (3 if teacher is None else 4)  # a teacher forwards each token once
    return Recovery(updates, training.curve, cost)


def check_trainable(prunable: PrunableModel) -> None:
    """Checks that a model can be trained.

    Raises:
        ConfigError: Its weights lie on the host.
    """
    if any(isinstance(getattr(block, "_hf_hook", None), BorrowBlock) for block in prunable.blocks):
        raise ConfigError("recovery trains the weights on the device, which offload keeps on the host. Leave one out.")


def window_order(count: int, total: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns which of `count` windows are read, (total,): all of them in a random order, then all in another one."""
    passes = [np.random.default_rng([seed, number]).permutation(count) for number in range(-(-total // count))]
    return np.concatenate(passes)[:total]


def rise_and_fall(step: int, steps: int, warmup: float) -> float:
    """Returns the share of the highest learning rate at a step, in (0, 1]."""
    rise = round(warmup * steps)
    return (step + 1) / (rise + 1) if step < rise else (steps - step) / (steps - rise)


class _Training:
    """One training: the adapters, the optimiser, and how far it is.

    Attributes:
        curve: A row for each step so far.
        earlier_s: Seconds of the steps that an earlier attempt made.
    """

    def __init__(
        self, adapters: Adapters, windows: torch.Tensor, settings: RecoverSettings, seed: int, batch_tokens: int,
        teacher: Any,
    ):  # fmt: skip
        self.curve: list[dict[str, Any]] = []
        self.earlier_s = 0.0
        self._adapters, self._windows, self._settings, self._teacher = adapters, windows, settings, teacher
        self._model, self._parameters = adapters.prunable.model, list(adapters.parameters.values())
        (count, context), self._batch = windows.shape, windows_at_once(batch_tokens, windows.shape[1])
        total, self._size = max(1, settings.tokens // context), max(1, settings.batch_tokens // context)
        self._order, self._steps = window_order(count, total, seed), -(-total // self._size)
        self._optimiser = torch.optim.AdamW(self._parameters, weight_decay=0.0, foreach=False, fused=False)
        passes = f"{total / count:.1f} passes over " if total > count else ""
        log.info("recover: %d tokens, %sa text of %d tokens", total * context, passes, windows.numel())

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return int(self.curve[-1]["tokens"]) if self.curve else 0

    def run(self, state: TrainingState | None) -> None:
        """Makes all steps that an earlier attempt did not make."""
        if state is not None and (kept := state.load()) is not None:
            self._restore(kept)
            log.info("resuming: recovery after step %d of %d", len(self.curve), self._steps)
        first, started, every = len(self.curve), time.perf_counter(), max(1, self._steps // LOG_LINES)
        with ExitStack() as undo:
            if self._settings.checkpoint:
                for block in self._adapters.prunable.blocks:
                    undo.enter_context(forward_as(block, partial(checkpoint, block.forward, use_reentrant=False)))
            for done in range(first + 1, self._steps + 1):
                loss = self._step(done - 1)
                seconds = time.perf_counter() - started
                if state is not None and done % SAVE_EVERY == 0:
                    state.save(self._arrays(self.earlier_s + seconds))
                if done % every == 0 or done == self._steps:
                    left = seconds / (done - first) * (self._steps - done)
                    log.info("recover: step %d/%d, loss %.4f, %.0f s left", done, self._steps, loss, left)

    def _step(self, step: int) -> float:
        """Makes one step of the optimiser; returns the loss before it."""
        ids = self._windows[torch.from_numpy(self._order[step * self._size : (step + 1) * self._size])]
        rate = self._settings.learning_rate * rise_and_fall(step, self._steps, self._settings.warmup)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        summed, predicted = 0.0, len(ids) * (ids.shape[1] - 1)
        for part in torch.split(ids, self._batch):
            losses = self._losses(part.to(self._model.device)).sum()
            losses.backward()  # type: ignore[no-untyped-call]  # of the sum: a mean's gradients vanish in float16
            summed += float(losses.detach())
        if not math.isfinite(summed):
            raise FfpError(
                f"the loss of recovery is {summed:g} at step {step + 1}: numbers overflow. Lower its learning_rate, or "
                "use dtype float32 or bfloat16."
            )
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad /= predicted
        nn.utils.clip_grad_norm_(self._parameters, MAX_NORM, foreach=False)
        self._optimiser.step()
        row = (step + 1, self.tokens + ids.numel(), rate, summed / predicted)
        self.curve.append(dict(zip(CURVE_COLUMNS, row, strict=True)))
        return summed / predicted

    def _losses(self, ids: torch.Tensor) -> torch.Tensor:
        """The loss of every predicted token."""
        if self._teacher is None:
            return token_losses(self._model, ids)
        with torch.no_grad():
            goal = last_hidden(self._teacher, ids)
        return token_divergences(self._model, ids, goal)

    def _arrays(self, seconds: float) -> dict[str, npt.NDArray[Any]]:
        """Everything that the next step depends on, and the seconds so far."""
        rows = [[row[name] for name in CURVE_COLUMNS] for row in self.curve]
        found: dict[str, npt.NDArray[Any]] = {"curve": np.array(rows, dtype=np.float64), "seconds": np.array([seconds])}
        for name, parameter in self._adapters.parameters.items():
            found[name] = parameter.detach().cpu().numpy()
            found |= {f"{name}.{key}": self._optimiser.state[parameter][key].cpu().numpy() for key in MOMENTS}
        return found

    def _restore(self, arrays: Arrays) -> None:
        for step, tokens, rate, loss in arrays["curve"].tolist():
            row = (int(step), int(tokens), rate, loss)
            self.curve.append(dict(zip(CURVE_COLUMNS, row, strict=True)))
        self.earlier_s = float(arrays["seconds"][0])
        for name, parameter in self._adapters.parameters.items():
            parameter.data.copy_(torch.from_numpy(arrays[name]))
            moments = {key: torch.from_numpy(arrays[f"{name}.{key}"]).to(parameter.device) for key in MOMENTS}
            self._optimiser.state[parameter] = {"step": torch.tensor(float(len(self.curve))), **moments}
