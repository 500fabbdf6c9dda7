"""Perplexity over windows of token ids, with its standard error."""

from __future__ import annotations

import math
from typing import Any

import torch

from ffp.core.errors import FfpError
from ffp.measure.loss import window_losses


def perplexity(model: Any, windows: torch.Tensor, *, batch_tokens: int) -> dict[str, Any]:
    """Measures perplexity, losses in float32 whatever the model's precision.

    Args:
        model: A causal language model of transformers.
        windows: Token ids, (n, context) int64.
        batch_tokens: Tokens in one forward; at least one window.

    Returns:
        `value`, exp(mean loss) over all `n_tokens` = n * (context - 1) predicted tokens; `stderr`, by the delta method
        value * sd(window means) / sqrt(n), None for a single window; `n_windows`; `context`; and `loss_by_window`,
        mean nats per token of each window, by which two models can be compared on the same windows.

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
    }
