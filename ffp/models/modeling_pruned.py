"""A model of transformers whose blocks keep their own numbers of heads and FFN channels.

This file travels inside pruned checkpoints. It needs torch and transformers only.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


def resize(model: Any, prefix: str = "") -> None:
    """Gives the linears of every block the sizes of a pruned checkpoint, before its weights are loaded.

    Args:
        model: The parent model as its class builds it; its blocks are changed in place. Its config.pruned is
            {"blocks": path of the list of blocks, "attention": path of a block's attention, "output": path of its
            output linear, "linears": {path in the block: {"in", "out", "bias": one value a block}}, "counts": {path
            of an attribute in the block: one value a block}, "missing_kv_heads": one value a block, "head": name of
            the model's output layer}, and, where query heads were removed one by one, "selected_heads": {path of a
            linear in the block: heads of its output or null, one value a block}.
        prefix: What the path of the blocks begins with and the model lacks, for the model without its head.
    """
    pruned = model.config.pruned
    for index, block in enumerate(model.get_submodule(pruned["blocks"].removeprefix(prefix))):
        for path, sizes in pruned["linears"].items():
            old = block.get_submodule(path)
            like = {"device": old.weight.device, "dtype": old.weight.dtype}
            new = nn.Linear(sizes["in"][index], sizes["out"][index], bias=sizes["bias"][index], **like)
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, new)
        for path, counts in pruned["counts"].items():
            set_count(model, block, path, counts[index])
        for path, heads in pruned.get("selected_heads", {}).items():
            select_heads(block.get_submodule(path), heads[index], pruned["head_dim"])
        attention = block.get_submodule(pruned["attention"])
        skip_attention(attention, pruned["output"], pruned["linears"][pruned["output"]]["in"][index] == 0)
        share_cache(attention, pruned["missing_kv_heads"][index])


def set_count(model: Any, block: Any, path: str, value: int) -> None:
    """Sets an attribute of a module in a block, e.g. "self_attn.num_heads", or of the module's config.

    "self_attn.config.num_attention_heads" is set for that module alone.
    """
    parent, _, name = path.rpartition(".")
    if not parent.endswith(".config"):
        setattr(block.get_submodule(parent), name, value)
        return
    module, shared = block.get_submodule(parent.removesuffix(".config")), model.config
    own = {**(module.config.own if isinstance(module.config, OwnConfig) else {}), name: value}
    own = {name: value for name, value in own.items() if value != getattr(shared, name)}
    module.config = OwnConfig(shared, own) if own else shared


class OwnConfig:
    """A module's view of the model's configuration, with some values of its own.

    All others are those that the model has now: a copy would keep the kind of attention that the model had then, while
    the masks are made for the one that it has now.
    """

    def __init__(self, shared: Any, own: dict[str, Any]):
        self.shared, self.own = shared, own

    def __getattr__(self, name: str) -> Any:
        if name in ("shared", "own"):  # of one that is being copied
            raise AttributeError(name)
        return self.own[name] if name in self.own else getattr(self.shared, name)


def select_heads(linear: Any, heads: list[int] | None, width: int) -> None:
    """Lets a linear give some heads of its output, in this order and as often as they are named; None for all.

    A KV head is named once for each query head that uses it, where the numbers of these differ between KV heads.

    Args:
        linear: The module.
        heads: Numbers of the heads.
        width: Columns of the output that make a head.
    """
    for name in ("heads", "columns"):
        linear.__dict__.pop(name, None)
    replace_forward(linear, None if heads is None else with_selected_heads)
    if heads is None:
        return
    linear.heads = heads
    with torch.inference_mode(False):  # else no backward could use them
        columns = torch.tensor(heads, device="cpu")[:, None] * width + torch.arange(width, device="cpu")
        linear.columns = columns.flatten()


def selected_heads(linear: Any) -> list[int] | None:
    """Returns what select_heads was given."""
    heads: list[int] | None = linear.__dict__.get("heads")
    return heads


def selected_columns(linear: Any) -> Any:
    """Returns which columns of its output a linear gives, (n,) int64; None for all as they are."""
    return linear.__dict__.get("columns")


def with_selected_heads(linear: Any, inputs: Any) -> Any:
    """The forward of a linear of which some heads are given."""
    if linear.columns.device != inputs.device:
        with torch.inference_mode(False):
            linear.columns = linear.columns.to(inputs.device)
    return nn.functional.linear(inputs, linear.weight, linear.bias).index_select(-1, linear.columns)


def skip_attention(attention: Any, output: str, skip: bool) -> None:
    """Lets an attention without heads return what is left of it, or computes an attention with heads again.

    Args:
        attention: The module.
        output: Path of its output linear in the block.
        skip: Whether it has no heads.
    """
    replace_forward(attention, without_heads if skip else None)
    attention.__dict__.pop("output_name", None)
    if skip:
        attention.output_name = output.rpartition(".")[2]


def replace_forward(module: Any, function: Any) -> None:
    """Gives a module another forward, or with None the one back that it had: the class's own, or a hooked one."""
    if "first_forward" in module.__dict__:
        before = module.__dict__.pop("first_forward")
        module.__dict__.pop("forward", None)
        if before is not None:
            module.forward = before
    if function is not None:
        module.first_forward = module.__dict__.get("forward")
        module.forward = partial(function, module)  # a method would be pickled as an attribute of its module's class


def without_heads(attention: Any, hidden_states: Any, *arguments: Any, **keywords: Any) -> tuple[Any, None]:
    """The forward of an attention without heads: zeros, or the bias of its output linear."""
    cache = keywords.get("past_key_values", keywords.get("layer_past"))
    if cache is not None:
        count_tokens(cache, attention.layer_idx, hidden_states)
    return attention.get_submodule(attention.output_name)(hidden_states[..., :0]), None


def count_tokens(cache: Any, layer: int, hidden_states: Any) -> None:
    """Stores zeros, one a token, as the keys and values of an attention without heads.

    Masks of sliding and of full attention take the length of the past from the first layer of their kind.

    Args:
        cache: Of transformers; a quantised one, whose masks read the first layer of all, stays as it is.
        layer: Number of the layer.
        hidden_states: What the attention is given, (n, tokens, hidden size).
    """
    known = cache.layers[layer] if layer < len(cache.layers) else None
    if hasattr(known or getattr(cache, "layer_class_to_replicate", None), "_quantize"):
        return
    keys = getattr(known, "keys", None)  # a static one may have its size before its first token
    heads, width = (keys.shape[1], keys.shape[3]) if keys is not None and keys.dim() == 4 else (1, 1)
    zeros = hidden_states.new_zeros(hidden_states.shape[0], heads, hidden_states.shape[1], width)
    cache.update(zeros, zeros, layer)


def share_cache(attention: Any, missing: int) -> None:
    """Lets an attention with fewer KV heads than the parent's use the cache of continuous batching.

    That cache has the parent's number of KV heads for every block: the missing ones are stored as zeros.
    """
    if missing:
        attention.register_forward_pre_hook(partial(with_padded_cache, missing), with_kwargs=True)


def with_padded_cache(missing: int, attention: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
    """The arguments of an attention's forward, where there are other ones to take."""
    if keywords.get("cache") is None:
        return None
    return arguments, {**keywords, "cache": pad_cache(keywords["cache"], missing)}


def pad_cache(cache: Any, missing: int) -> Any:
    """Returns the same cache, for keys and values (1, heads, tokens, head_dim) that lack some heads."""
    if missing < 0:
        raise ValueError(
            "query heads of this checkpoint were removed one by one, so that an attention has more KV heads than the "
            "cache of continuous batching holds. Generate without it."
        )

    def update(key_states: Any, value_states: Any, *arguments: Any, **keywords: Any) -> Any:
        heads = key_states.shape[1]
        padded = [nn.functional.pad(states, (0, 0, 0, 0, 0, missing)) for states in (key_states, value_states)]
        return tuple(states[:, :heads] for states in cache.update(*padded, *arguments, **keywords))

    view = copy.copy(cache)  # of the same class, as attention asks, and with the same memory
    view.update = update
    return view


@contextmanager
def one_size(config: Any) -> Iterator[None]:
    """Lets the parent's class read a configuration as if all blocks had the parent's sizes."""
    values = config.__dict__.pop("_heterogeneity_spec", None)
    try:
        yield
    finally:
        if values is not None:
            config.__dict__["_heterogeneity_spec"] = values


class PrunedBase:
    """Mixin before the class of a model without its head: builds it with the sizes of config.pruned."""

    def __init__(self, config: Any, *arguments: Any, **keywords: Any):
        with one_size(config):
            super().__init__(config, *arguments, **keywords)  # type: ignore[call-arg]
            resize(self, self.base_model_prefix + ".")  # type: ignore[attr-defined]


class Pruned:
    """Mixin before a causal language model's class: builds the model with the sizes of config.pruned."""

    def __init__(self, config: Any, *arguments: Any, **keywords: Any):
        with one_size(config):
            super().__init__(config, *arguments, **keywords)  # type: ignore[call-arg]
            resize(self)
        if not hasattr(self, config.pruned["head"]):
            raise ValueError(
                f"the output layer of this checkpoint is {config.pruned['head']}, as transformers 5 names it. Install "
                "transformers>=5."
            )
