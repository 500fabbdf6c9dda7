"""One model in memory whose units are sorted once, so that any allocation is a prefix of its weights.

Heads (as KV groups) and FFN channels are permuted, best first, in all matrices that share them; the dense function is
unchanged. Keeping k units is then a view of the first rows or columns: no mask, no copy, no reload, and the forward
gets cheaper with sparsity. A linear that stacks several matrices (fused qkv or gate and up) is the exception: its
prefixes are copied together when the allocation changes.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ffp.core.problem import Allocation
from ffp.models.modeling_pruned import select_heads, set_count, skip_attention
from ffp.models.placement import float64, forward_as
from ffp.models.prunable import PrunableModel, PrunableModule, Segment

BY_BLOCK = ("layer_types", "no_rope_layers")  # keys of configurations with a value for each block


class SlicedModel:
    """A model of which any number of leading units can be switched on, decision by decision."""

    def __init__(self, prunable: PrunableModel, order: Mapping[str, Sequence[int] | npt.NDArray[np.int64]]):
        """Permutes the model's weights in place.

        Args:
            prunable: The dense model.
            order: By decision, its KV groups, heads or channels from the one kept longest to the one removed first.
        """
        self.prunable = prunable
        self.model = prunable.model
        self.keep = tuple(module.decision.n_units for module in prunable.modules)
        self._order = [torch.as_tensor(order[module.decision.name]) for module in prunable.modules]
        for module, units in zip(prunable.modules, self._order, strict=True):
            _permute(prunable, module, units)
            _set_heads(prunable, module, units)
        self._full: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for module in prunable.modules:
            for segment in module.segments:
                linear = prunable.linear(segment.linear)
                self._full[segment.linear] = (linear.weight.data, None if linear.bias is None else linear.bias.data)

    def set_keep(self, keep: Sequence[int]) -> None:
        """Keeps so many units of each decision, in the order of `prunable.modules`; only changes cost time."""
        for i, module in enumerate(self.prunable.modules):
            if keep[i] != self.keep[i]:
                self._slice(module, self._order[i][: int(keep[i]) * module.decision.bundle])
        self.keep = tuple(int(k) for k in keep)

    def set_allocation(self, allocation: Allocation) -> None:
        """Switches to an allocation of this model's problem."""
        self.set_keep(allocation.keep)

    def restore(self) -> None:
        """Makes the model dense again, its units in their first order; this object cannot be used afterwards."""
        self.set_keep([module.decision.n_units for module in self.prunable.modules])
        for module, units in zip(self.prunable.modules, self._order, strict=True):
            _permute(self.prunable, module, units.argsort())
            _set_heads(self.prunable, module, units.sort().values)

    @contextmanager
    def gated(self, keep: Sequence[int], band: float) -> Iterator[list[Gate]]:
        """Puts a gate on the units around each decision's threshold; a backward pass fills the gates' sums.

        The function stays that of `keep`, and the gradients say what a change would do. Blocks are checkpointed, so
        that one block's activations are in memory at a time.

        Args:
            keep: Units that are on (gate 1), by decision.
            band: Width of a band, as a share of the decision's units, in (0, 1]: that many removed units are let in
                with gate 0 (at least one, if any was removed).

        Yields:
            The gates, in the order of `prunable.modules`.
        """
        gates = [Gate(module, k, band) for module, k in zip(self.prunable.modules, keep, strict=True)]
        self.set_keep([gate.reach for gate in gates])
        with ExitStack() as undo:
            for module, gate in zip(self.prunable.modules, gates, strict=True):
                undo.callback(self.prunable.linear(module.output).register_forward_pre_hook(gate).remove)
            for block in self.prunable.blocks:
                undo.enter_context(forward_as(block, partial(checkpoint, block.forward, use_reentrant=False)))
            yield gates

    def _slice(self, module: PrunableModule, kept: torch.Tensor) -> None:
        for path, segments in segments_by_linear(module).items():
            weight, bias = self._full[path]
            spans = [segment.prefix(len(kept)) for segment in segments]
            linear = self.prunable.linear(path)
            if segments[0].axis == 1:
                linear.weight.data = weight[:, spans[0]]
            else:
                linear.weight.data = _prefix(weight, spans)
                if bias is not None:
                    linear.bias.data = _prefix(bias, spans)
            _set_features(linear)
        _set_heads(self.prunable, module, kept)


class Gate:
    """The gates of one decision: a forward pre-hook of its output linear, which lets through the units that are on.

    Units next to the threshold form two bands, those just inside and those just outside. All units of a band share one
    gate. g_t is the derivative of the loss in that gate at token t: the sum over the band's columns of input times
    gradient. A backward pass adds sum_t g_t (slope) and sum_t g_t^2 (curvature, by the empirical Fisher information,
    with tokens taken as independent) to `sums`.

    Attributes:
        reach: Units that are let in, those with gate 0 included.
        bands: The units just inside and just outside the threshold.
        sums: (2 bands, 2) float64.
    """

    def __init__(self, module: PrunableModule, keep: int, band: float):
        n = module.decision.n_units
        size, width = max(1, round(band * n)), module.output_width * module.decision.bundle
        self.reach = min(n, keep + size)
        self.bands = (range(max(0, keep - size), keep), range(keep, self.reach))
        self.sums = torch.zeros(2, 2, dtype=torch.float64)
        self._columns = [slice(units.start * width, units.stop * width) for units in self.bands]
        self._on = (torch.arange(self.reach * width) < keep * width).float().requires_grad_()

    def __call__(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Multiplies the linear's inputs by the gates."""
        x = arguments[0]
        return (_Gated.apply(x, self._on.to(x), self), *arguments[1:])  # type: ignore[no-untyped-call]

    def add(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds one backward pass to the sums; x, gradient: (batch, tokens, in) at the gates."""
        for sums, columns in zip(self.sums, self._columns, strict=True):
            slopes = float64((x[..., columns].float() * gradient[..., columns].float()).sum(-1))
            sums += torch.stack([slopes.sum(), slopes.square().sum()]).cpu()


class _Gated(torch.autograd.Function):
    """x * on, whose backward reports to the gate.

    `on` is not trained; it has requires_grad only so that autograd runs the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, on: torch.Tensor, gate: Gate) -> torch.Tensor:
        ctx.save_for_backward(x, on)
        ctx.gate = gate
        return x * on

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, on = ctx.saved_tensors
        ctx.gate.add(x, gradient)
        return gradient * on, None, None


def cut(prunable: PrunableModel, kept: Mapping[str, Sequence[int] | npt.NDArray[Any]]) -> None:
    """Removes all units that are not kept from the weights, in place.

    The model that is left is an ordinary module: what is not kept takes no memory and no time.

    Args:
        prunable: The dense model.
        kept: By decision, the KV groups, heads or channels that stay, ascending.
    """
    for module in prunable.modules:
        cut_module(prunable, module, torch.as_tensor(kept[module.decision.name], dtype=torch.int64))


def cut_module(prunable: PrunableModel, module: PrunableModule, kept: torch.Tensor) -> None:
    """Removes all units of one module but `kept`: KV groups, heads or channels, ascending int64."""
    for path, segments in segments_by_linear(module).items():
        axis = segments[0].axis
        linear = prunable.linear(path)
        index = torch.cat([segment.indices(kept) for segment in segments]).to(linear.weight.device)
        linear.weight = nn.Parameter(linear.weight.data.index_select(axis, index), requires_grad=False)
        if axis == 0 and linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data.index_select(0, index), requires_grad=False)
        _set_features(linear)
    _set_heads(prunable, module, kept)


@contextmanager
def without_empty_blocks(prunable: PrunableModel) -> Iterator[None]:
    """Takes the blocks in which nothing is left out of the model while the context is open.

    Block 0 always stays, since its attention keeps a KV group. Configurations that name a kind of attention for each
    block lose those of the blocks that are left out.
    """
    model, blocks, config = prunable.model, prunable.blocks, prunable.model.config
    stay = [number for number in range(len(blocks)) if not _is_empty(prunable, number)]
    if len(stay) == len(blocks):
        yield
        return
    owner, _, name = prunable.family.blocks.rpartition(".")
    shorter = copy.copy(config)
    shorter.num_hidden_layers = len(stay)
    for key in BY_BLOCK:
        if values := getattr(config, key, None):
            setattr(shorter, key, [values[number] for number in stay])
    prunable.blocks = nn.ModuleList([blocks[number] for number in stay])
    setattr(model.get_submodule(owner), name, prunable.blocks)
    prunable.config = model.config = shorter
    try:
        yield
    finally:
        prunable.blocks, prunable.config, model.config = blocks, config, config
        setattr(model.get_submodule(owner), name, blocks)


def _is_empty(prunable: PrunableModel, block: int) -> bool:
    """Whether neither attention nor FFN of a block has a unit or a bias left."""
    outputs = [prunable.linear(module.output) for module in prunable.modules if module.block == block]
    return all(linear.in_features == 0 and linear.bias is None for linear in outputs)


def mask(prunable: PrunableModel, kept: Mapping[str, Sequence[int] | npt.NDArray[Any]]) -> None:
    """Zeroes all parameters of the units that are not kept, in place: the dense shape, the pruned function."""
    for module in prunable.modules:
        gone = sorted(set(range(module.n_indices)) - set(kept[module.decision.name]))
        units = torch.as_tensor(gone, dtype=torch.int64)
        for segment in (segment for segment in module.segments if not segment.fixed):
            linear = prunable.linear(segment.linear)
            index = segment.indices(units).to(linear.weight.device)
            linear.weight.data.index_fill_(segment.axis, index, 0)
            if segment.axis == 0 and linear.bias is not None:
                linear.bias.data.index_fill_(0, index, 0)


def segments_by_linear(module: PrunableModule) -> dict[str, list[Segment]]:
    """Returns the segments of a module by the path of their linear."""
    found: dict[str, list[Segment]] = defaultdict(list)
    for segment in module.segments:
        found[segment.linear].append(segment)
    return found


def _set_heads(prunable: PrunableModel, module: PrunableModule, kept: torch.Tensor) -> None:
    """Tells an attention how many heads it has, where its class does not infer that, and which KV head each query uses.

    Args:
        prunable: The model.
        module: Attention or FFN, which has nothing to be told.
        kept: KV groups or query heads that are there, in the order of their rows.
    """
    if module.kind != "attention":
        return
    family, block, all_kv = prunable.family, prunable.blocks[module.block], prunable.kv_heads
    selected = None
    if not module.per_group:
        heads, kv_heads = (len(kept) * n // module.n_indices for n in (prunable.heads, all_kv))
    elif _is_grouped(kept // module.per_group, all_kv):
        heads, kv_heads = len(kept), all_kv if len(kept) else 0
    else:
        heads, kv_heads, selected = len(kept), len(kept), (kept // module.per_group).tolist()
    counts = {"q": heads, "k": kv_heads, "q/k": heads // max(1, kv_heads)}
    for name, role in family.head_counts.items():
        set_count(prunable.model, block, f"{family.attention}.{name}", counts[role])
    for name, roles in family.attention_inputs if module.per_group else ():
        select_heads(block.get_submodule(name), _picked(roles, heads, all_kv, selected), prunable.head_dim)
    skip_attention(block.get_submodule(family.attention), family.attention_output, len(kept) == 0)


def _is_grouped(groups: torch.Tensor, n: int) -> bool:
    """Whether query heads that use these KV heads, (heads,), lie as attention expects: as many for each of `n`."""
    return torch.equal(groups, torch.arange(n).repeat_interleave(len(groups) // n))


def _picked(roles: tuple[str, ...], heads: int, kv_heads: int, selected: list[int] | None) -> list[int] | None:
    """Which heads of its output a linear with these roles has to give; None for all as they are."""
    if selected is None or roles == ("q",):
        return None
    found, start = [], 0
    for role in roles:
        found += [start + head for head in (range(heads) if role == "q" else selected)]
        start += heads if role == "q" else kv_heads
    return found


def _permute(prunable: PrunableModel, module: PrunableModule, order: torch.Tensor) -> None:
    for segment in (segment for segment in module.segments if not segment.fixed):
        linear = prunable.linear(segment.linear)
        index = segment.indices(order).to(linear.weight.device)
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
