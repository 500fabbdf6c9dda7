"""Tensors of a pruned model as llama.cpp's architectures `deci` and `openelm` want them, made one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffp.core.errors import ConfigError

if TYPE_CHECKING:
    from ffp.models.prunable import PrunableModel

ZERO_CHANNELS = 32  # stand for an FFN without channels where llama.cpp needs one: one block of its quantised types
ZERO = -1  # in an index: a row or column of zeros


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: Its name in the file.
        shape: (rows, columns), or (n,).
        read: Makes it, in the model's dtype, on the host.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """What the file says about sizes, and its tensors.

    Attributes:
        heads: Query heads of each block, those of zeros included; 0 where the file has no attention.
        groups: KV heads of each block.
        channels: FFN channels of each block.
        tensors: All tensors, in the order of the file.
    """

    heads: list[int]
    groups: list[int]
    channels: list[int]
    tensors: list[Tensor]


def lay_out(prunable: PrunableModel, arch: str, *, pad: int) -> Layout:
    """Returns sizes and tensors of a model that was cut.

    Attention or an FFN that is gone (width 0) is left out where the architecture computes a block without it rightly.
    Elsewhere one head, or 32 channels, of zeros stand for it; so they do where its output linear has a bias.

    Args:
        prunable: The model.
        arch: "deci" or "openelm".
        pad: The inputs of attn_output and ffn_down are filled up with zeros to multiples of this.

    Raises:
        ConfigError: A linear has a bias that the architecture has no place for.
    """
    blocks: Any = prunable.blocks
    found = Layout([], [], [], [])
    model: Any = prunable.model
    found.tensors.append(_whole("token_embd.weight", model.get_input_embeddings().weight))
    for number, block in enumerate(blocks):
        _add_block(found, block, f"blk.{number}", arch, pad=pad, first=number == 0, last=number == len(blocks) - 1)
    found.tensors.append(_whole("output_norm.weight", model.model.norm.weight))
    if not is_tied(model):
        found.tensors.append(_whole("output.weight", model.get_output_embeddings().weight))
    return found


def is_tied(model: Any) -> bool:
    """Returns whether the model reads and writes tokens by one matrix."""
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def _add_block(found: Layout, block: Any, name: str, arch: str, *, pad: int, first: bool, last: bool) -> None:
    attention, ffn, fused = block.self_attn, block.mlp, arch == "openelm"
    if fused:
        _refuse_biases(block)
    no_attention = attention.o_proj.in_features == 0 and not _is_biased(attention.o_proj) and not first and not fused
    no_ffn = ffn.down_proj.in_features == 0 and not _is_biased(ffn.down_proj) and no_attention and not last
    heads = groups = channels = 0
    if not no_attention:
        found.tensors.append(_whole(f"{name}.attn_norm.weight", block.input_layernorm.weight))
        heads, groups, tensors = _attention(attention, name, fused, pad)
        found.tensors.extend(tensors)
    if not no_ffn:
        found.tensors.append(_whole(f"{name}.ffn_norm.weight", block.post_attention_layernorm.weight))
        channels, tensors = _ffn(ffn, name, pad)
        found.tensors.extend(tensors)
    for sizes, size in ((found.heads, heads), (found.groups, groups), (found.channels, channels)):
        sizes.append(size)


def _attention(attention: Any, name: str, fused: bool, pad: int) -> tuple[int, int, list[Tensor]]:
    """Query heads, KV heads and tensors of an attention module."""
    width = attention.head_dim
    old_groups = attention.k_proj.out_features // width
    per_group = attention.q_proj.out_features // width // max(1, old_groups)
    groups, wide = padded_heads(old_groups, per_group, width, pad)
    of_q = _blocked(old_groups, per_group, groups, wide, width)
    of_kv = _blocked(old_groups, 1, groups, 1, width)
    out = _columns(f"{name}.attn_output.weight", attention.o_proj.weight, of_q)
    if fused:
        indices = (of_q, of_kv, of_kv)
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        tensors = [
            _fused(f"{name}.attn_qkv.weight", linears, indices),
            _whole(f"{name}.attn_q_norm.weight", attention.q_norm.weight),
            _whole(f"{name}.attn_k_norm.weight", attention.k_norm.weight),
        ]
        return groups * wide, groups, [*tensors, out]
    turn = _interleaved(width)
    tensors = [
        *_rows(f"{name}.attn_q", attention.q_proj, of_q.view(-1, width)[:, turn].reshape(-1)),
        *_rows(f"{name}.attn_k", attention.k_proj, of_kv.view(-1, width)[:, turn].reshape(-1)),
        *_rows(f"{name}.attn_v", attention.v_proj, of_kv),
        out,
        *_bias(f"{name}.attn_output", attention.o_proj),
    ]
    return groups * wide, groups, tensors


def _ffn(ffn: Any, name: str, pad: int) -> tuple[int, list[Tensor]]:
    """Channels and tensors of an FFN."""
    old = ffn.down_proj.in_features
    channels = -(-(old or ZERO_CHANNELS) // pad) * pad
    index = torch.full((channels,), ZERO)
    index[:old] = torch.arange(old)
    tensors = [
        *_rows(f"{name}.ffn_gate", ffn.gate_proj, index),
        *_rows(f"{name}.ffn_up", ffn.up_proj, index),
        _columns(f"{name}.ffn_down.weight", ffn.down_proj.weight, index),
        *_bias(f"{name}.ffn_down", ffn.down_proj),
    ]
    return channels, tensors


def padded_heads(groups: int, per_group: int, width: int, pad: int) -> tuple[int, int]:
    """Returns the KV groups, and query heads in each, that hold the given ones in a multiple of `pad` columns.

    Among these the fewest columns, then the fewest groups. There is at least one head.

    Args:
        groups: KV groups.
        per_group: Query heads of a group.
        width: Columns of a head.
        pad: What the columns shall be a multiple of.
    """
    groups, per_group = max(1, groups), max(1, per_group)
    found = []
    for count in range(groups, groups + pad):
        step = pad // gcd(pad, count * width)
        found.append((count * -(-per_group // step) * step, count))
    heads, count = min(found)
    return count, heads // count


def _blocked(groups: int, per_group: int, new_groups: int, new_per_group: int, width: int) -> torch.Tensor:
    """Index of heads with heads of zeros behind those of each group and behind the last group."""
    index = torch.full((new_groups, new_per_group, width), ZERO)
    index[:groups, :per_group] = torch.arange(groups * per_group * width).view(groups, per_group, width)
    return index.reshape(-1)


def _interleaved(width: int) -> torch.Tensor:
    """Order of a head's rows in which the two halves of a rotated pair are neighbours, as `deci` rotates them."""
    return torch.arange(width).view(2, width // 2).T.reshape(-1)


def _rows(name: str, linear: nn.Linear, index: torch.Tensor) -> Iterator[Tensor]:
    """The weight's rows, and the bias if there is one."""
    weight, bias = linear.weight, linear.bias
    yield Tensor(f"{name}.weight", (len(index), weight.shape[1]), lambda: take(weight, index, 0))
    if bias is not None:
        yield Tensor(f"{name}.bias", (len(index),), lambda: take(bias, index, 0))


def _columns(name: str, weight: torch.Tensor, index: torch.Tensor) -> Tensor:
    return Tensor(name, (weight.shape[0], len(index)), lambda: take(weight, index, 1))


def _fused(name: str, linears: tuple[nn.Linear, ...], indices: tuple[torch.Tensor, ...]) -> Tensor:
    """The rows of several weights below each other."""

    def read() -> torch.Tensor:
        return torch.cat([take(one.weight, index, 0) for one, index in zip(linears, indices, strict=True)])

    return Tensor(name, (sum(map(len, indices)), linears[0].in_features), read)


def _bias(name: str, linear: nn.Linear) -> Iterator[Tensor]:
    if linear.bias is not None:
        yield _whole(f"{name}.bias", linear.bias)


def _whole(name: str, weight: torch.Tensor) -> Tensor:
    return Tensor(name, tuple(weight.shape), lambda: weight.detach().cpu())


def take(weight: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Returns rows (axis 0) or columns (axis 1) of a tensor by an index; -1 stands for zeros."""
    there = (index != ZERO).nonzero().view(-1)
    found = weight.detach().cpu()
    if len(there) == len(index):
        return found.index_select(axis, index)
    shape = [*found.shape]
    shape[axis] = len(index)
    return found.new_zeros(shape).index_copy_(axis, there, found.index_select(axis, index[there]))


def _is_biased(linear: nn.Linear) -> bool:
    return linear.bias is not None and bool(linear.bias.any())


def _refuse_biases(block: Any) -> None:
    """Raises ConfigError for a bias that is not zero."""
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear) and _is_biased(module):
            raise ConfigError(
                f"{path} has a bias, which llama.cpp's openelm, the only architecture for pruned qwen3, has no place "
                "for. Prune with compensation ridge or none, or use --format transformers."
            )
