"""A model without the blocks in which nothing is left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ffp.models.prunable import PrunableModel

BY_BLOCK = ("layer_types", "no_rope_layers")  # keys of configurations with a value for each block


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
