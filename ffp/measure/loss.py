"""Next-token losses in float32; the LM head runs over chunks, so that never all logits are in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from ffp.core.errors import ConfigError
from ffp.models.placement import float64
from ffp.models.stream import windows_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_TOKENS = 128


@torch.no_grad()
def window_losses(
    model: PreTrainedModel, windows: torch.Tensor, *, batch_tokens: int, teacher: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the mean loss of each window, (n,) float64 on the CPU, in nats per predicted token.

    Args:
        model: A causal language model.
        windows: Token ids without padding, (n, context) int64.
        batch_tokens: Tokens in one forward; at least one window.
        teacher: `last_hidden` of the dense model on the same windows. The loss is then the KL divergence from its
            predictions over the whole vocabulary instead of the cross entropy of the text.
    """
    size = windows_at_once(batch_tokens, windows.shape[1])
    parts = []
    for start in range(0, len(windows), size):
        ids = windows[start : start + size].to(model.device)
        if teacher is None:
            by_token = token_losses(model, ids)
        else:
            by_token = token_divergences(model, ids, teacher[start : start + size])
        parts.append(float64(by_token).mean(1).cpu())
    return torch.cat(parts)


def token_losses(model: PreTrainedModel, input_ids: torch.Tensor, *, chunk: int = CHUNK_TOKENS) -> torch.Tensor:
    """Returns the cross entropy of every predicted token in nats, (batch, context - 1) float32.

    Under autograd each chunk's logits are computed again in the backward instead of being kept.

    Args:
        model: A causal language model of any dtype.
        input_ids: (batch, context) int64, without padding.
        chunk: Tokens whose logits exist at the same time.
    """
    return _in_chunks(_chunk_losses, model, last_hidden(model, input_ids), input_ids[:, 1:], chunk)


def last_hidden(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Returns what the LM head reads at all positions but the last, (batch, context - 1, hidden), in the model's dtype.

    Pruning leaves the LM head alone, so that these states stand for the logits exactly, in a fraction of their memory.

    Raises:
        ConfigError: The windows have one token, which is never predicted.
    """
    if input_ids.shape[1] < 2:
        raise ConfigError("nothing is predicted in a window of 1 token. Give windows of at least 2 tokens.")
    hidden: torch.Tensor = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    return hidden


def token_divergences(model: PreTrainedModel, input_ids: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Returns the KL divergence from the teacher's predictions at every predicted token, (batch, context - 1) float32.

    Under autograd each chunk's logits are computed again in the backward instead of being kept.

    Args:
        model: A causal language model of any dtype.
        input_ids: (batch, context) int64, without padding.
        teacher: `last_hidden` of the dense model on the same tokens.
    """
    return _in_chunks(_chunk_divergences, model, last_hidden(model, input_ids), teacher, CHUNK_TOKENS)


def _in_chunks(
    losses: Callable[..., torch.Tensor], model: PreTrainedModel, hidden: torch.Tensor, goals: torch.Tensor, chunk: int
) -> torch.Tensor:
    """The losses of all tokens, (batch, tokens), chunk by chunk; goals: what they are measured by, token by token."""
    parts = []
    for pair in zip(*(torch.split(each.flatten(0, 1), chunk) for each in (hidden, goals)), strict=True):
        if torch.is_grad_enabled() and pair[0].requires_grad:
            parts.append(checkpoint(losses, model, *pair, use_reentrant=False))
        else:
            parts.append(losses(model, *pair))
    return torch.cat(parts).view(hidden.shape[:2])


def _chunk_divergences(model: PreTrainedModel, hidden: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = (torch.log_softmax(_logits(model, states), dim=-1) for states in (hidden, teacher.to(hidden)))
    return torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def _chunk_losses(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = _logits(model, hidden)
    return torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")


def _logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Float32, scaled and capped where the family does so."""
    head: torch.nn.Module = model.get_output_embeddings()
    logits: torch.Tensor = head(hidden).float()
    config = model.config
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
