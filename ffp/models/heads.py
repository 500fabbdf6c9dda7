"""Tells an attention of which units were removed or sorted how many heads it has, and which KV head each query uses."""

from __future__ import annotations

import torch

from ffp.models.modeling_pruned import select_heads, set_count, skip_attention
from ffp.models.prunable import PrunableModel, PrunableModule


def set_heads(prunable: PrunableModel, module: PrunableModule, kept: torch.Tensor) -> None:
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
