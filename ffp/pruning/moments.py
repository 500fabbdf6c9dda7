"""Running sums over the inputs of linears: the one place where calibration, pruners and compensation add them up.

Sums are float32 within a batch and float64 across batches; Gram matrices are float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ffp.models.placement import float64
from ffp.models.prunable import PrunableModel
from ffp.models.stream import watch_inputs

STRIPE = 256  # rows of a Gram matrix that are computed at once


@dataclass(frozen=True)
class InputMoments:
    """Moments of each input feature of one linear over all calibration tokens.

    Attributes:
        mean: (in,) float64.
        sq_mean: Mean of the squares, (in,) float64.
    """

    mean: npt.NDArray[np.float64]
    sq_mean: npt.NDArray[np.float64]

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """(in,) float64, not below 0."""
        return np.maximum(self.sq_mean - self.mean**2, 0.0)


class InputSums:
    """Sums over tokens of a linear's inputs x: of x ("mean"), x^2 ("sq_mean") and x x^T ("gram")."""

    def __init__(self, *kinds: str, square_rows: int | None = None):
        """Starts with empty sums.

        Args:
            kinds: Which sums to keep.
            square_rows: Rows that are squared and added at once on a CPU; all of a batch by default. Parts that fit
                the cache are two to four times as fast, but give other last bits, so that every user keeps its own.
        """
        self.tokens = 0
        self._kinds, self._square_rows = kinds, square_rows
        self._totals: dict[str, torch.Tensor] = {}

    def add(self, x: torch.Tensor) -> None:
        """Adds a batch of inputs, (tokens, in)."""
        x = x.float()
        self.tokens += len(x)
        for kind in self._kinds:
            if kind not in self._totals:
                width = x.shape[1]
                self._totals[kind] = float64(x.new_zeros((width, width) if kind == "gram" else width))
            total = self._totals[kind]
            if kind == "gram":
                add_product(total, x, x)
            else:
                total += (x.sum(0) if kind == "mean" else self._squares(x)).to(total.device)

    def _squares(self, x: torch.Tensor) -> torch.Tensor:
        rows = self._square_rows if x.device.type == "cpu" else None
        return torch.stack([part.square().sum(0) for part in torch.split(x, rows or len(x))]).sum(0)

    @property
    def mean(self) -> torch.Tensor:
        """Mean of x, (in,) float64."""
        return self._totals["mean"] / self.tokens

    @property
    def sq_mean(self) -> torch.Tensor:
        """Mean of x^2, (in,) float64."""
        return self._totals["sq_mean"] / self.tokens

    @property
    def gram(self) -> torch.Tensor:
        """Mean of x x^T, (in, in) float64."""
        return self._totals["gram"] / self.tokens


class GramSum:
    """The mean over tokens of x x^T of a linear's inputs, float32; what lies below the diagonal is not computed."""

    def __init__(self) -> None:
        self.tokens = 0
        self._total = torch.empty(0)

    def add(self, x: torch.Tensor) -> None:
        """Adds a batch of inputs, (tokens, in)."""
        x = x.float()
        if not self.tokens:
            self._total = x.new_zeros(x.shape[1], x.shape[1])
        self.tokens += len(x)
        for start in range(0, x.shape[1], STRIPE):
            rows = slice(start, start + STRIPE)
            self._total[rows, start:] += x[:, rows].T @ x[:, start:]

    @property
    def mean(self) -> torch.Tensor:
        """E[x x^T], (in, in) float32, symmetric to the last bit."""
        upper = self._total.triu() / self.tokens
        return upper + upper.triu(1).T


def add_product(
    total: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, columns: int | None = None, upper: bool = False
) -> None:
    """Adds x^T y to a total in place.

    Args:
        total: (n, m) float64.
        x: (tokens, n) float32.
        y: (tokens, m) float32.
        columns: Columns of x that are multiplied at once, which bounds the temporary product; all by default.
        upper: Whether the product is symmetric: only blocks of so many columns on and above its diagonal are added.
    """
    step = columns or x.shape[1]
    for start in range(0, x.shape[1], step):
        first = start if upper else 0
        total[start : start + step, first:] += (x[:, start : start + step].T @ y[:, first:]).to(total.device)


def watch_block(
    prunable: PrunableModel, block: int, new_sums: Callable[[], InputSums], hooks: ExitStack
) -> dict[str, InputSums]:
    """Adds up the inputs of a block's linears while `hooks` is open.

    Returns:
        Sums by the linear's path, in forward order; linears that are given the same input share theirs.
    """
    found: dict[str, InputSums] = {}
    for module in (module for module in prunable.modules if module.block == block):
        entries = dict.fromkeys(segment.linear for segment in module.segments if segment.linear != module.output)
        for paths in (list(entries), [module.output]):
            sums = new_sums()
            hooks.enter_context(watch_inputs(prunable.linear(paths[0]), sums.add))
            found |= dict.fromkeys(paths, sums)
    return found
