"""Perplexity over windows of token ids, with its standard error."""

from __future__ import annotations

import math
from typing import Any

import torch

from ffp.core.errors import FfpError
from ffp.measure.loss import window_losses


def perplexity(model: Any, windows: torch.Tensor, *, batch_tokens: int, n_bytes: int | None = None) -> dict[str, Any]:
    """Measures perplexity, losses in float32 whatever the model's precision.

    Args:
        model: A causal language model of transformers.
        windows: Token ids, (n, context) int64.
        batch_tokens: Tokens in one forward; at least one window.
        n_bytes: Bytes that the predicted tokens spell, see ffp.measure.spelled; None where they are not known.

    Returns:
        `value`, exp(mean loss) over all `n_tokens` = n * (context - 1) predicted tokens; `stderr`, by the delta method
        value * sd(window means) / sqrt(n), None for a single window; `n_windows`; `context`; `loss_by_window`, mean
        nats per token of each window, by which two models can be compared on the same windows; and with n_bytes this
        number and `bits_per_byte`.

    Raises:
        FfpError: The model's numbers overflow.
    """
    count, context = windows.shape
    by_window = window_losses(model, windows, batch_tokens=batch_tokens).numpy()
    loss = float(by_window.mean())
    if not math.isfinite(loss) or loss > 700.0:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise FfpError(
            f"the mean loss on {count} windows is {loss:.4g} nats a token, so that no perplexity can be given: the "
            f"model's numbers overflow in {dtype}. Use dtype float32 or bfloat16, or a lower sparsity."
        )
    value = math.exp(loss)
    stderr = value * float(by_window.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return {
        "value": value,
        "stderr": stderr,
        "n_windows": count,
        "context": context,
        "n_tokens": count * (context - 1),
        "loss_by_window": by_window.tolist(),
        **({} if n_bytes is None else in_bytes(loss, count * (context - 1), n_bytes)),
    }


def in_bytes(loss: float, n_tokens: int, n_bytes: int) -> dict[str, Any]:
    """Returns `n_bytes` and `bits_per_byte`: the loss of all predicted tokens in bits, over the bytes that they spell.

    It compares models of different tokenizers, whose tokens are of different length.

    Args:
        loss: Mean loss, nats per predicted token.
        n_tokens: Predicted tokens.
        n_bytes: UTF-8 bytes of the text that these spell, at least 1.
    """
    return {"n_bytes": n_bytes, "bits_per_byte": loss * n_tokens / math.log(2) / n_bytes}
