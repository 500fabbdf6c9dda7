"""One pass over the calibration text, which gives the statistics that all cells of a model share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffp.core.errors import ConfigError
from ffp.core.problem import FloatArray
from ffp.models.placement import float64, for_inference
from ffp.models.prunable import PrunableModel
from ffp.models.stream import watch_inputs, windows_at_once
from ffp.pruning.moments import GramSum, InputMoments, InputSums, watch_block
from ffp.pruning.statistics import ModelStatistics

log = logging.getLogger("ffp")


@torch.no_grad()
def collect(
    prunable: PrunableModel, windows: torch.Tensor, *, batch_tokens: int, grams: bool = False
) -> ModelStatistics:
    """Runs the dense model over the calibration windows and returns its statistics.

    Memory: the model, one batch's activations, and a few vectors a linear. Wanda (||X_j||_2), FLAP (Var X_j) and
    ShortGPT (influence of the blocks) need no more.

    Args:
        prunable: The dense model.
        windows: Calibration tokens, (n, context) int64.
        batch_tokens: Tokens in one forward; at least one window.
        grams: Whether to keep E[x x^T] of the inputs of every output projection: as much memory as 4 bytes times the
            squares of their widths.
    """
    products: dict[str, GramSum] = {module.output: GramSum() for module in prunable.modules if grams}
    sums: dict[str, InputSums] = {}
    size = windows_at_once(batch_tokens, windows.shape[1])
    with ExitStack() as hooks, BlockInfluence(prunable) as influence:
        for block in range(len(prunable.blocks)):
            sums |= watch_block(prunable, block, partial(InputSums, "mean", "sq_mean"), hooks)
        for path, product in products.items():
            hooks.enter_context(watch_inputs(prunable.linear(path), product.add))
        for start in range(0, len(windows), size):
            ids = windows[start : start + size].to(prunable.model.device)
            prunable.model.base_model(input_ids=ids, use_cache=False)
            log.info("calibrate: %d/%d windows", min(start + size, len(windows)), len(windows))
    moments = {path: InputMoments(s.mean.cpu().numpy(), s.sq_mean.cpu().numpy()) for path, s in sums.items()}
    found = {path: product.mean.cpu().numpy() for path, product in products.items()}
    return ModelStatistics(prunable, moments, windows.numel(), influence=influence.value(), grams=found)


def gram_matrices(
    prunable: PrunableModel, windows: torch.Tensor, *, batch_tokens: int
) -> Mapping[str, npt.NDArray[Any]]:
    """Collects Gram matrices alone, in a pass of their own.

    Args:
        prunable: The dense model.
        windows: Calibration tokens, (n, context) int64.
        batch_tokens: Tokens in one forward; at least one window.

    Returns:
        E[x x^T] of the inputs of every output projection by its path, (width, width) float32.

    Raises:
        ConfigError: The model's numbers overflow.
    """
    with for_inference(prunable.model):
        found = collect(prunable, windows, batch_tokens=batch_tokens, grams=True).grams
    check_finite(found, next(prunable.model.parameters()).dtype)
    return found


def check_finite(measured: Mapping[str, npt.NDArray[Any]], dtype: torch.dtype) -> None:
    """Checks what was measured of a dense model; a search would take what is not finite for a worthless candidate.

    Args:
        measured: Arrays by what they are, for the error.
        dtype: Precision of the model.

    Raises:
        ConfigError: A number is NaN or infinite.
    """
    precision = str(dtype).removeprefix("torch.")
    for name, values in measured.items():
        if not np.isfinite(values).all():
            remedy = (
                "Use dtype bfloat16 or float32."
                if precision == "float16"
                else "Fetch its weights again: they may be damaged."
            )
            raise ConfigError(f"the dense model's {name} is not finite: numbers overflow in {precision}. {remedy}")


class BlockInfluence:
    """While it is open, sums the cosine between what enters and what leaves each block, token by token, in float32."""

    def __init__(self, prunable: PrunableModel):
        self._blocks = prunable.blocks
        self._cosines = np.zeros(len(prunable.blocks))
        self._tokens = np.zeros(len(prunable.blocks))
        self._hooks = ExitStack()

    def __enter__(self) -> BlockInfluence:
        for number, block in enumerate(self._blocks):
            hook = block.register_forward_hook(partial(self._see, number), with_kwargs=True)
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def _see(self, number: int, block: torch.nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        before = inputs[0] if inputs else keywords["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self._cosines[number] += float(float64(cosine).sum())
        self._tokens[number] += cosine.numel()

    def value(self) -> FloatArray:
        """Returns 1 - the mean cosine, (n_blocks,). Source: Men et al., arXiv:2403.03853."""
        influence: FloatArray = 1 - self._cosines / self._tokens
        return influence
