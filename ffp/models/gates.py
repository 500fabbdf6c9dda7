"""What a backward pass tells about a model's units: derivatives in gates on them, Fisher matrices, and gradients.

All tokens are taken as independent, so that second moments of their gradients stand for the curvature of the loss (the
empirical Fisher information).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ffp.models.modeling_pruned import selected_columns
from ffp.models.placement import float64, forward_as, is_borrowed
from ffp.models.prunable import PrunableModel, PrunableModule
from ffp.models.refit import Refit

GATE_TOKENS = 128  # whose changes a CurveGate computes at once


class UnitGate:
    """A gate on every unit of one decision: a factor on its columns, at the entry of the output linear.

    Attributes:
        slopes: Derivative of the loss in each factor, (n_units,) float64; a backward pass adds to it.
    """

    def __init__(self, module: PrunableModule, factors: torch.Tensor):
        """Takes the factors, (n_units,), in the order in which the module's units lie."""
        self.slopes = torch.zeros(len(factors), dtype=torch.float64)
        self._on = factors.float().repeat_interleave(module.output_width * module.decision.bundle)

    def attach(self, linear: nn.Linear) -> Any:
        """Puts the gates before the output linear; returns the handle of the hook."""
        return _gate(linear, self._on, self)

    def add(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds one backward pass; x, gradient: (batch, tokens, in) at the gates."""
        by_column = (x.float() * gradient.float()).flatten(0, -2).sum(0)
        self.slopes += float64(by_column).view(len(self.slopes), -1).sum(1).cpu()


class Gate:
    """The gates of one decision: lets through the units that are on, at the entry of its output linear.

    Units next to the threshold form two bands, those just inside and those just outside. All units of a band share one
    gate. g_t is the derivative of the loss in that gate at token t: the sum over the band's columns of input times
    gradient. A backward pass adds sum_t g_t (slope) and sum_t g_t^2 (curvature) to `sums`.

    Attributes:
        reach: Units that are let in, those with gate 0 included.
        bands: The units just inside and just outside the threshold.
        sums: (2 bands, 2) float64.
    """

    def __init__(self, module: PrunableModule, keep: int, band: float):
        n = module.decision.n_units
        size, self.width = max(1, round(band * n)), module.output_width * module.decision.bundle
        self.keep, self.reach = keep, min(n, keep + size)
        self.bands = (range(max(0, keep - size), keep), range(keep, self.reach))
        self.sums = torch.zeros(2, 2, dtype=torch.float64)
        self._columns = [slice(units.start * self.width, units.stop * self.width) for units in self.bands]

    def attach(self, linear: nn.Linear) -> Any:
        """Puts the gates before the output linear; returns the handle of the hook."""
        return _gate(linear, (torch.arange(self.reach * self.width) < self.keep * self.width).float(), self)

    def add(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds one backward pass to the sums; x, gradient: (batch, tokens, in) at the gates."""
        for sums, columns in zip(self.sums, self._columns, strict=True):
            _add_slopes(sums, x[..., columns].float() * gradient[..., columns].float())


class RefitGate(Gate):
    """The same where the other units make up for those that are off: a gate moves the refitted weight.

    Between the weights without and with a band, W(g) = W_without + g (W_with - W_without). The difference applied to
    an input x is (W L)_band r: r is what the band has that the units before it do not tell (see Refit).
    """

    def __init__(self, module: PrunableModule, keep: int, band: float, refit: Refit):
        super().__init__(module, keep, band)
        self._refit = refit

    def attach(self, linear: nn.Linear) -> Any:
        """Gives the linear the weight of the kept units, 0 for the others that are let in, and watches it."""
        weight = linear.weight.new_zeros(len(linear.weight), self.reach * self.width)
        weight[:, : self.keep * self.width] = self._refit.weight(self.keep * self.width)
        linear.weight.data = weight
        return _watch(linear, self, inputs=True)

    def add(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds one backward pass to the sums; x: (batch, tokens, in), gradient: (batch, tokens, out)."""
        for sums, columns in zip(self.sums, self._columns, strict=True):
            inverse = self._refit.inverse[columns, : columns.stop].to(x.device)
            projected = self._refit.projected[:, columns].to(x.device)
            residual = x[..., : columns.stop].float() @ inverse.T
            _add_slopes(sums, residual * (gradient.float() @ projected))


class CurveGate:
    """A gate on every unit of one decision, at the entry of its output linear: 1 on those that stay, 0 on the others.

    It tells what other numbers of units would do. If k stay instead of `keep`, the gates between the two change
    together. The derivative of the loss in that change at token t, d_t(k), is the sum of input times gradient over the
    columns of these units, negative where they leave. A backward pass adds sum_t d_t(k) (slope) and sum_t d_t(k)^2
    (curvature) to `sums`.

    Attributes:
        sums: (2, n_levels) float64.
    """

    def __init__(self, module: PrunableModule, keep: int, levels: Sequence[int] | npt.NDArray[np.int64]):
        """Takes the number of units that stay, and the numbers k to tell about, ascending."""
        width = module.output_width * module.decision.bundle
        self._n, self._kept = module.decision.n_units * width, keep * width
        self._levels = torch.as_tensor(levels) * width
        self.sums = torch.zeros(2, len(levels), dtype=torch.float64)

    def attach(self, linear: nn.Linear) -> Any:
        """Puts the gates before the output linear; returns the handle of the hook."""
        return _gate(linear, (torch.arange(self._n) < self._kept).float(), self)

    def add(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds one backward pass; x: (batch, tokens, in), gradient: of the gates' outputs, or of the linear's."""
        column = torch.arange(self._n, device=x.device)[:, None]
        between = (column < self._levels.to(x.device)).float()
        between -= (column < self._kept).float()
        flat, sums = (torch.split(each.flatten(0, -2), GATE_TOKENS) for each in (x, gradient)), []
        for some, slopes in zip(*flat, strict=True):
            changes = float64(self._by_column(some.float(), slopes.float()) @ between)
            sums.append(torch.stack([changes.sum(0), changes.square().sum(0)]))
        self.sums += torch.stack(sums).sum(0).cpu()

    def _by_column(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Returns what each column adds to a change, (tokens, in)."""
        return x * gradient


class RefitCurveGate(CurveGate):
    """The same where the other units make up for those that are off: a change goes to the refitted weight.

    The weights for k and for `keep` units differ, applied to an input x, by the sum over the columns between them of
    (W L)_j r_j: r_j is what column j has that the columns before it do not tell (see Refit).
    """

    def __init__(
        self, module: PrunableModule, keep: int, levels: Sequence[int] | npt.NDArray[np.int64], refit: Refit
    ):  # fmt: skip
        super().__init__(module, keep, levels)
        self._refit = refit

    def attach(self, linear: nn.Linear) -> Any:
        """Gives the linear the weight of the kept units, 0 for the others, and watches it."""
        weight = linear.weight.new_zeros(len(linear.weight), self._n)
        weight[:, : self._kept] = self._refit.weight(self._kept)
        linear.weight.data = weight
        return _watch(linear, self, inputs=True)

    def _by_column(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        residual = x @ self._refit.inverse.to(x.device).T
        found: torch.Tensor = residual * (gradient @ self._refit.projected.to(x.device))
        return found


class Total:
    """A sum over tokens and backward passes at the outputs of one linear.

    Attributes:
        total: Empty before the first backward pass.
    """

    reads_inputs: ClassVar[bool] = False

    def __init__(self) -> None:
        self.total = torch.empty(0)

    def attach(self, linear: nn.Linear) -> Any:
        """Watches the linear; returns the handle of the hook."""
        return _watch(linear, self, inputs=self.reads_inputs)

    def _add(self, found: torch.Tensor) -> None:
        self.total = self.total + found if len(self.total) else found


class Fisher(Total):
    """Second moment of the loss gradients at the outputs: the sum of g g^T, (out, out) float32."""

    def add(self, x: None, gradient: torch.Tensor) -> None:
        """Adds one backward pass; gradient: (batch, tokens, out)."""
        g = gradient.flatten(0, -2).float()
        self._add(g.T @ g)


class OutputSquares(Total):
    """Diagonal of Fisher: the sum of g_i^2 for each output, (out,) float64."""

    def add(self, x: None, gradient: torch.Tensor) -> None:
        """Adds one backward pass; gradient: (batch, tokens, out)."""
        self._add(float64(gradient.flatten(0, -2).float().square().sum(0)))


class WeightGradient(Total):
    """Gradient of the loss in the weight: the sum of g x^T, (out, in) float32, which needs no trained weight."""

    reads_inputs: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._given: torch.Tensor | None = None
        self._rows = 0

    def attach(self, linear: nn.Linear) -> Any:
        """Watches the linear; returns the handle of the hook."""
        self._given, self._rows = selected_columns(linear), linear.out_features
        return super().attach(linear)

    def add(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds one backward pass; x: (batch, tokens, in), gradient: (batch, tokens, out)."""
        g, inputs = gradient.flatten(0, -2).float(), x.flatten(0, -2).float()
        if self._given is not None:  # a KV head is given once for each query head that uses it
            g = g.new_zeros(len(g), self._rows).index_add_(1, self._given.to(g.device), g)
        self.total = self.total.addmm_(g.T, inputs) if len(self.total) else g.T @ inputs


def _gate(linear: nn.Linear, on: torch.Tensor, gate: Gate | UnitGate | CurveGate) -> Any:
    """Multiplies a linear's inputs by `on`, (in,), and reports the backward pass; returns the handle of the hook."""
    on = on.clone().requires_grad_()

    def multiply(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = arguments[0]
        return (_Gated.apply(x, on.to(x), gate), *arguments[1:])  # type: ignore[no-untyped-call]

    return linear.register_forward_pre_hook(multiply)


Watcher = Gate | UnitGate | CurveGate | Total


@contextmanager
def watched(prunable: PrunableModel, watchers: Iterable[tuple[str, Watcher]]) -> Iterator[None]:
    """Attaches watchers to linears, by path, while the context is open.

    Blocks are checkpointed, so that one block's activations are in memory at a time.
    """
    with ExitStack() as undo:
        for path, watcher in watchers:
            undo.callback(watcher.attach(prunable.linear(path)).remove)
        for block in prunable.blocks:
            undo.enter_context(forward_as(block, partial(checkpoint, block.forward, use_reentrant=False)))
            if is_borrowed(block):  # a forward that stops early would not give the weights back
                undo.enter_context(set_checkpoint_early_stop(False))
        yield


def _watch(linear: nn.Linear, watcher: Watcher, *, inputs: bool) -> Any:
    """Lets a backward pass report to a watcher; returns the handle of the hook. inputs: keep the linear's for it."""
    leaf = torch.zeros(()).requires_grad_()

    def watch(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = arguments[0].detach() if inputs else None
        found: torch.Tensor = _Watched.apply(output, x, leaf, watcher)  # type: ignore[no-untyped-call]
        return found.clone()  # since some families clip what a linear gives in place

    return linear.register_forward_hook(watch)


def _add_slopes(sums: torch.Tensor, products: torch.Tensor) -> None:
    """Adds the slope and its square, token by token; products: what each unit's columns add to it, (..., columns)."""
    slopes = float64(products.sum(-1))
    sums += torch.stack([slopes.sum(), slopes.square().sum()]).cpu()


class _Gated(torch.autograd.Function):
    """x * on, whose backward reports to the gate.

    `on` is not trained; it has requires_grad only so that autograd runs the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, on: torch.Tensor, gate: Gate | UnitGate | CurveGate) -> torch.Tensor:
        ctx.save_for_backward(x, on)
        ctx.gate = gate
        return x * on

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, on = ctx.saved_tensors
        ctx.gate.add(x, gradient)
        return gradient * on, None, None


class _Watched(torch.autograd.Function):
    """A linear's output as it is, whose backward reports the linear's input and the gradient; `leaf` as `on` above."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, x: torch.Tensor | None, leaf: torch.Tensor, to: Any) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.to = to
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        ctx.to.add(ctx.saved_tensors[0], gradient)
        return gradient, None, None, None
