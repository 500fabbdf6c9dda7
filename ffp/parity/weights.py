"""Single weights as the references remove them: the same pruners as the grid's, with the references' own quotas."""

from __future__ import annotations

import numpy as np
import torch

from ffp.calibration import Calibration, collect
from ffp.models.adapter import Adapter
from ffp.pruning.unstructured import prune
from ffp.search.owl import outlier_share, published_sparsities

Masks = dict[str, torch.Tensor]


def magnitude(adapter: Adapter, tokens: torch.Tensor, sparsity: float, n: int, m: int) -> Masks:
    """A threshold for each matrix: its entry number int(numel * sparsity) in order goes too, so one more than that."""
    sizes = {path: adapter.linear(path).weight.numel() for path in adapter.decisions("unstructured")}
    remove = {path: size * n // m if m else int(size * sparsity) + 1 for path, size in sizes.items()}
    return prune(adapter, remove, pruner="magnitude", m=m)


def wanda(adapter: Adapter, tokens: torch.Tensor, sparsity: float, n: int, m: int) -> Masks:
    """floor(in * sparsity) weights of every output row, or n of every m."""
    remove = _groups_of_m(adapter, n, m) if m else _row_quota(adapter, [sparsity] * len(adapter.blocks))
    return prune(adapter, remove, pruner="wanda", m=m, windows=tokens, batch_tokens=1)


def sparsegpt(adapter: Adapter, tokens: torch.Tensor, sparsity: float, n: int, m: int) -> Masks:
    """The share of every matrix, exactly; the published code removes one weight more in each block of columns."""
    sizes = {path: adapter.linear(path).weight.numel() for path in adapter.decisions("unstructured")}
    remove = _groups_of_m(adapter, n, m) if m else {path: int(size * sparsity) for path, size in sizes.items()}
    return prune(adapter, remove, pruner="sparsegpt", m=m, windows=tokens, batch_tokens=1)


def owl(adapter: Adapter, tokens: torch.Tensor, sparsity: float, multiple: float, strength: float) -> Masks:
    """Ratios from the dense model, then Wanda's row quota with each block's own."""
    calibration = Calibration(adapter, collect(adapter, tokens, batch_tokens=1), tokens.numel())
    blocks = range(calibration.n_blocks)
    shares = np.array([outlier_share(list(calibration.linears(block)), multiple) for block in blocks])
    remove = _row_quota(adapter, published_sparsities(shares, strength, sparsity))
    return prune(adapter, remove, pruner="wanda", windows=tokens, batch_tokens=1)


def _row_quota(adapter: Adapter, sparsities: list[float]) -> dict[str, int]:
    """floor(in * sparsity of its block) for every row of every linear."""
    return {
        path: adapter.linear(path).out_features * int(adapter.linear(path).in_features * sparsity)
        for block, sparsity in enumerate(sparsities)
        for path, _ in adapter.linears(block)
    }


def _groups_of_m(adapter: Adapter, n: int, m: int) -> dict[str, int]:
    return {path: adapter.linear(path).weight.numel() * n // m for path in adapter.decisions("unstructured")}
