"""One streaming pass over the calibration text: moments of every linear's input, shared by every cell of the grid."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffp.models.placement import float64
from ffp.models.prunable import PrunableModel
from ffp.pruning.statistics import InputMoments

log = logging.getLogger("ffp")




class _Columns:
    """Sums over tokens of x and x^2, float32 within a batch; once for all linears in a row that are given one x."""

    def __init__(self) -> None:
        self._seen: Callable[[], torch.Tensor | None] = lambda: None
        self._sums: tuple[torch.Tensor, torch.Tensor]

    def of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._seen() is not x:
            rows = x.detach().flatten(0, -2).float()
            self._sums = float64(rows.sum(0)), float64(rows.square().sum(0))
            self._seen = weakref.ref(x)
        return self._sums


class _Accumulator:
    """One linear's sums of x and x^2, float64 across batches."""

    def __init__(self, columns: _Columns) -> None:
        self.columns = columns
        self.total: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def __call__(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        total, squares = self.columns.of(arguments[0])
        self.total, self.squares = self.total + total, self.squares + squares


@torch.no_grad()
def collect(prunable: PrunableModel, windows: torch.Tensor, *, batch_tokens: int) -> dict[str, InputMoments]:
    """Run the dense model over the calibration windows and return the input moments of every block linear, by path.

    windows: (n, context) int64. batch_tokens: tokens in one forward, at least one window. Memory: the model, one
    batch's activations, and a few vectors a linear. Sources: Wanda (||X_j||_2) and FLAP (Var X_j) need just these.
    """
    sums: dict[str, _Accumulator] = {}
    columns = _Columns()
    with ExitStack() as hooks:
        for block in range(len(prunable.blocks)):
            for path, _ in prunable.linears(block):
                sums[path] = _Accumulator(columns)
                hooks.callback(prunable.linear(path).register_forward_pre_hook(sums[path]).remove)
        batch = max(1, batch_tokens // windows.shape[1])
        for start in range(0, len(windows), batch):
            prunable.model.base_model(input_ids=windows[start : start + batch].to(prunable.model.device), use_cache=False)
            log.info("calibrate: %d/%d windows", min(start + batch, len(windows)), len(windows))
    n = windows.numel()
    return {
        path: InputMoments((acc.total / n).cpu().numpy(), (acc.squares / n).cpu().numpy())  # type: ignore[union-attr]
        for path, acc in sums.items()
    }


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

    def value(self) -> npt.NDArray[np.float64]:
        """(n_blocks,): 1 - the mean cosine. Source: Men et al., arXiv:2403.03853."""
        influence: npt.NDArray[np.float64] = 1 - self._cosines / self._tokens
        return influence






