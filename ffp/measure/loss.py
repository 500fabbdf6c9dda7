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
    hidden = last_hidden(model, input_ids)
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


def last_hidden(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """What the LM head sees of all positions but the last, (batch, context - 1, hidden), in the model's dtype."""
    hidden: torch.Tensor = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    return hidden


def window_divergences(
    model: PreTrainedModel, input_ids: torch.Tensor, teacher: torch.Tensor, *, chunk: int = CHUNK_TOKENS
) -> torch.Tensor:
    """Mean KL divergence from the dense model's predictions, over the whole vocabulary, (batch,) float64 nats a token.

    teacher: `last_hidden` of the dense model on the same tokens. Pruning leaves the LM head alone, so that these states
    stand for its logits exactly, in a fraction of their memory.
    """
    hidden = last_hidden(model, input_ids)
    pairs = zip(*(torch.split(states.flatten(0, 1), chunk) for states in (hidden, teacher)), strict=True)
    parts = [_chunk_divergences(model, ours, theirs.to(ours)) for ours, theirs in pairs]
    return float64(torch.cat(parts).view(hidden.shape[:2])).mean(1)


def _chunk_divergences(model: PreTrainedModel, hidden: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = (torch.log_softmax(_logits(model, states), dim=-1) for states in (hidden, teacher))
    return torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def _logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Float32, capped where the family caps them."""
    head: torch.nn.Module = model.get_output_embeddings()
    logits: torch.Tensor = head(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _chunk_losses(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = _logits(model, hidden)
    return torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
