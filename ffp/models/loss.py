"""Next-token losses in float32, the LM head over chunks, so that logits of all tokens never stand in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from ffp.models.placement import float64

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_TOKENS = 128


def token_losses(model: PreTrainedModel, input_ids: torch.Tensor, *, chunk: int = CHUNK_TOKENS) -> torch.Tensor:
    """Cross entropy of every predicted token, in nats.

    input_ids: (batch, context) int64, without padding. chunk: tokens whose logits exist at the same time.
    Returns (batch, context - 1) float32, whatever the model's dtype. Under autograd each chunk's logits are
    computed again in the backward instead of being kept.
    """
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    batch, length, width = hidden.shape
    flat, targets = hidden.reshape(-1, width), input_ids[:, 1:].reshape(-1)
    parts = []
    for start in range(0, len(flat), chunk):
        piece, target = flat[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled() and piece.requires_grad:
            parts.append(checkpoint(_chunk_losses, model, piece, target, use_reentrant=False))
        else:
            parts.append(_chunk_losses(model, piece, target))
    return torch.cat(parts).view(batch, length)


def window_losses(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Mean loss of each window, (batch,) float64, nats per predicted token; input_ids as for token_losses."""
    return float64(token_losses(model, input_ids)).mean(1)


def _chunk_losses(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    head: torch.nn.Module = model.get_output_embeddings()
    logits = head(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
