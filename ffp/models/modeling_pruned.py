"""A causal language model of transformers whose blocks keep their own numbers of heads and FFN channels.

This file travels inside pruned checkpoints. It needs torch and transformers only.
"""

import copy
from typing import Any

from torch import nn


def resize(model: Any, pruned: dict[str, Any]) -> None:
    """Gives the linears of every block the sizes of a pruned checkpoint, before its weights are loaded.

    Args:
        model: The parent model as its class builds it; its blocks are changed in place.
        pruned: {"blocks": path of the list of blocks, "linears": {path in the block: {"in", "out", "bias": one value
            a block}}, "counts": {path of an attribute in the block: one value a block}}.
    """
    for index, block in enumerate(model.get_submodule(pruned["blocks"])):
        for path, sizes in pruned["linears"].items():
            old = block.get_submodule(path)
            like = {"device": old.weight.device, "dtype": old.weight.dtype}
            new = nn.Linear(sizes["in"][index], sizes["out"][index], bias=sizes["bias"][index], **like)
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, new)
        for path, counts in pruned["counts"].items():
            set_count(model, block, path, counts[index])


def set_count(model: Any, block: Any, path: str, value: int) -> None:
    """Sets an attribute of a module in a block, e.g. "self_attn.num_heads", or of the module's config.

    "self_attn.config.num_attention_heads" goes into a copy of the model's config that belongs to that module alone.
    """
    parent, _, name = path.rpartition(".")
    if not parent.endswith(".config"):
        setattr(block.get_submodule(parent), name, value)
        return
    module = block.get_submodule(parent.removesuffix(".config"))
    if module.config is model.config:
        module.config = copy.copy(model.config)
    setattr(module.config, name, value)


class Pruned:
    """Mixin before a causal language model's class: builds the model with the sizes of config.pruned."""

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        resize(self, config.pruned)
