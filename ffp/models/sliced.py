"""One resident model whose units are presorted, so that any allocation is a prefix of its weights.

Heads (as KV groups) and FFN channels are permuted once, best first, in all matrices that share them; the dense
function is unchanged. Keeping k units is then a view of the first rows or columns: no mask, no copy, no reload,
and the forward gets cheaper with sparsity. A linear that stacks several matrices (fused qkv or gate and up) is the
exception: its prefixes are gathered when the allocation changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ffp.models.adapter import Adapter, Segment, Unit, rows
from ffp.models.modeling_pruned import set_count
from ffp.models.placement import float64, forward_as
from ffp.types import Allocation


class SlicedModel:
    """A model of which any number of leading units can be switched on, decision by decision."""

    def __init__(self, adapter: Adapter, order: Mapping[str, Sequence[int] | npt.NDArray[np.int64]]):
        """Permute the model's weights in place.

        order: for each decision, by name, its indices from the one kept longest to the one removed first.
        """
        self.adapter = adapter
        self.model = adapter.model
        self.keep = tuple(unit.budget.n_groups for unit in adapter.units)
        for unit in adapter.units:
            _permute(adapter, unit, torch.as_tensor(order[unit.budget.name]))
        self._full: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for unit in adapter.units:
            for segment in unit.segments:
                linear = adapter.linear(segment.linear)
                self._full[segment.linear] = (linear.weight.data, None if linear.bias is None else linear.bias.data)

    def set_keep(self, keep: Sequence[int]) -> None:
        """Switch to the prefixes of these lengths, in the order of adapter.units; only changes cost anything."""
        for i, unit in enumerate(self.adapter.units):
            if keep[i] != self.keep[i]:
                self._slice(unit, int(keep[i]))
        self.keep = tuple(int(k) for k in keep)

    def set_allocation(self, allocation: Allocation) -> None:
        """Switch to an allocation of this model's problem."""
        self.set_keep(allocation.keep)

    @contextmanager
    def gated(self, keep: Sequence[int], band: float) -> Iterator[list[Gate]]:
        """Put a gate on every unit around each decision's threshold and learn its worth from a backward pass.

        keep: units on (gate 1). band: share of a decision's units beyond the threshold that are let in with gate 0,
        at least one where one is left: the function stays that of `keep`, and the gradients say what they would do.
        Yields the gates, in the order of adapter.units; blocks are checkpointed, so that one block's activations
        stand in memory at a time.
        """
        gates = [Gate(unit, k, band) for unit, k in zip(self.adapter.units, keep, strict=True)]
        self.set_keep([gate.reach for gate in gates])
        with ExitStack() as undo:
            for unit, gate in zip(self.adapter.units, gates, strict=True):
                undo.callback(self.adapter.linear(unit.output).register_forward_pre_hook(gate).remove)
            for block in self.adapter.blocks:
                undo.enter_context(forward_as(block, partial(checkpoint, block.forward, use_reentrant=False)))
            yield gates

    def _slice(self, unit: Unit, keep: int) -> None:
        by_linear: dict[str, list[Segment]] = {}
        for segment in unit.segments:
            by_linear.setdefault(segment.linear, []).append(segment)
        for path, segments in by_linear.items():
            weight, bias = self._full[path]
            spans = [slice(s.start, s.start + keep * unit.budget.size * s.width) for s in segments]
            linear = self.adapter.linear(path)
            if segments[0].axis == 1:
                linear.weight.data = weight[:, spans[0]]
            else:
                linear.weight.data = _prefix(weight, spans)
                if bias is not None:
                    linear.bias.data = _prefix(bias, spans)
            _set_features(linear)
        if unit.kind == "attention":
            set_heads(self.adapter, unit, keep)


class Gate:
    """The gates of one decision: a forward pre-hook of its output linear, which lets through the units that are on.

    Units next to the threshold form two bands, the ones just inside and just outside. With g_t the derivative of the
    loss with respect to a gate that a whole band shares at token t (the sum over the band's columns of input times
    gradient), a backward pass adds sum_t g_t and sum_t g_t^2 to `sums`, (2 bands, 2) float64. The second is the
    band's diagonal of the empirical Fisher information, with tokens taken as independent: its curvature.
    """

    def __init__(self, unit: Unit, keep: int, band: float):
        n = unit.budget.n_groups
        size, width = max(1, round(band * n)), unit.output_width * unit.budget.size
        self.reach = min(n, keep + size)
        self.bands = (range(max(0, keep - size), keep), range(keep, self.reach))
        self.sums = torch.zeros(2, 2, dtype=torch.float64)
        self._columns = [slice(units.start * width, units.stop * width) for units in self.bands]
        self._on = (torch.arange(self.reach * width) < keep * width).float().requires_grad_()

    def __call__(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = arguments[0]
        return (_Gated.apply(x, self._on.to(x), self), *arguments[1:])  # type: ignore[no-untyped-call]

    def take(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add what one backward pass tells; x, gradient: (batch, tokens, in) at the gates."""
        for sums, columns in zip(self.sums, self._columns, strict=True):
            slopes = float64((x[..., columns].float() * gradient[..., columns].float()).sum(-1))
            sums += torch.stack([slopes.sum(), slopes.square().sum()]).cpu()


class _Gated(torch.autograd.Function):
    """x * on, whose backward tells the gate. `on` needs no gradient; that it asks for one starts the backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, on: torch.Tensor, gate: Gate) -> torch.Tensor:
        ctx.save_for_backward(x, on)
        ctx.gate = gate
        return x * on

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, on = ctx.saved_tensors
        ctx.gate.take(x, gradient)
        return gradient * on, None, None


def cut(adapter: Adapter, kept: Mapping[str, Sequence[int]]) -> None:
    """Physically remove all units that are not in `kept` (by decision, ascending indices): new, smaller weights.

    The model that is left is an ordinary module: what is not kept takes no memory and no time.
    """
    for unit in adapter.units:
        cut_unit(adapter, unit, torch.as_tensor(kept[unit.budget.name], dtype=torch.int64))


def cut_unit(adapter: Adapter, unit: Unit, index: torch.Tensor) -> None:
    """Physically remove all units of one decision but `index`, ascending int64."""
    by_linear: dict[str, list[torch.Tensor]] = {}
    for segment in unit.segments:
        by_linear.setdefault(segment.linear, []).append(rows(index, segment))
    for path, parts in by_linear.items():
        axis = 1 if path == unit.output else 0
        linear = adapter.linear(path)
        picked = torch.cat(parts).to(linear.weight.device)
        linear.weight = nn.Parameter(linear.weight.data.index_select(axis, picked), requires_grad=False)
        if axis == 0 and linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data.index_select(0, picked), requires_grad=False)
        _set_features(linear)
    if unit.kind == "attention":
        set_heads(adapter, unit, len(index))


def mask(adapter: Adapter, kept: Mapping[str, Sequence[int]]) -> None:
    """Zero, in place, all parameters of the units that are not in `kept`: the dense shape, the pruned function."""
    for unit in adapter.units:
        gone = sorted(set(range(unit.n_indices)) - set(kept[unit.budget.name]))
        index = torch.as_tensor(gone, dtype=torch.int64)
        for segment in unit.segments:
            linear = adapter.linear(segment.linear)
            where = rows(index, segment).to(linear.weight.device)
            linear.weight.data.index_fill_(segment.axis, where, 0)
            if segment.axis == 0 and linear.bias is not None:
                linear.bias.data.index_fill_(0, where, 0)


def set_heads(adapter: Adapter, unit: Unit, groups: int) -> None:
    """Tell an attention module how many heads are left, where its class does not see it from the sizes."""
    family, block = adapter.family, adapter.blocks[unit.block]
    per_group = adapter.config.num_attention_heads // unit.budget.n_groups
    for name, role in family.head_counts.items():
        count = groups * (per_group if role == "q" else 1)
        set_count(adapter.model, block, f"{family.attention}.{name}", count)


def _permute(adapter: Adapter, unit: Unit, order: torch.Tensor) -> None:
    for segment in unit.segments:
        linear = adapter.linear(segment.linear)
        index = rows(order, segment).to(linear.weight.device)
        span = slice(segment.start, segment.start + len(index))
        if segment.axis == 1:
            linear.weight.data[:, span] = linear.weight.data.index_select(1, index)
        else:
            linear.weight.data[span] = linear.weight.data.index_select(0, index)
            if linear.bias is not None:
                linear.bias.data[span] = linear.bias.data.index_select(0, index)


def _prefix(full: torch.Tensor, spans: list[slice]) -> torch.Tensor:
    return full[spans[0]] if len(spans) == 1 else torch.cat([full[span] for span in spans])


def _set_features(linear: nn.Linear) -> None:
    linear.out_features, linear.in_features = linear.weight.shape
