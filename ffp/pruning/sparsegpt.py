"""SparseGPT: which weights go, and the update of those that stay."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ffp.core.errors import FfpError
from ffp.pruning.weights import smallest

BLOCK = 128


DAMPING = 0.01


Quota = Callable[[int, int], int]  # entries that columns start..stop lose


def exactly(remove: int, columns: int) -> Quota:
    """Quotas of blocks of columns that add up to `remove`."""
    return lambda start, stop: remove * stop // columns - remove * start // columns


def sparsegpt(
    weight: torch.Tensor, gram: torch.Tensor, quota: Quota, m: int = 0, *,
    block: int = BLOCK, damping: float = DAMPING, name: str = "a linear",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The weight, (out, in) float32, after SparseGPT removed entries and updated the others; what it removed.

    gram: X^T X of the inputs, (in, in), any positive multiple. quota: how many entries columns start..stop lose.
    Columns are pruned from left to right, `block` at a time; a block's mask is chosen by w^2 / [H^-1]_jj^2 across all
    rows, H damped by `damping` times its mean diagonal, and what a removed entry did is put into the columns on its
    right. m: with n-of-M each row keeps the same number of every M adjacent columns, chosen when the first of them is
    reached. Inputs that never fire lose their weights first. FfpError if H is not positive definite. Source: Frantar
    and Alistarh, arXiv:2301.00774, algorithm 1. Departs, with `exactly`: the published code removes one weight more in
    every block.
    """
    w = weight.float().clone()
    inverse = _inverse_factor(gram.float().clone(), w, damping, name)
    columns, gone = w.shape[1], []
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        gone.append(_prune_block(w, inverse, start, stop, quota(start, stop), m))
    return w, torch.cat(gone, dim=1)


def _inverse_factor(hessian: torch.Tensor, w: torch.Tensor, damping: float, name: str) -> torch.Tensor:
    """The upper Cholesky factor of H^-1; zeroes, in place, the columns of `w` whose inputs are dead."""
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    w[:, dead] = 0
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        raise FfpError(f"the inputs of {name} give no positive definite Hessian. Calibrate on more windows.")
    factor: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor


def _prune_block(w: torch.Tensor, inverse: torch.Tensor, start: int, stop: int, quota: int, m: int) -> torch.Tensor:
    """Prune columns start..stop of `w` in place and pass their errors on to the later ones; what went, a mask."""
    part, factor = w[:, start:stop], inverse[start:stop, start:stop]
    diagonal = factor.diagonal()
    gone = torch.zeros_like(part, dtype=torch.bool)
    if not m:
        score = part.square() / diagonal.square()
        gone = smallest(score.reshape(1, -1), quota).view_as(part)
    errors = torch.zeros_like(part)
    for i in range(stop - start):
        if m and i % m == 0:
            score = part[:, i : i + m].square() / diagonal[i : i + m].square()
            gone[:, i : i + m] = smallest(score, quota * m // (stop - start))
        kept = part[:, i].masked_fill(gone[:, i], 0)
        errors[:, i] = (part[:, i] - kept) / factor[i, i]
        part[:, i + 1 :] -= errors[:, i, None] * factor[i, i + 1 :]
        part[:, i] = kept
    w[:, stop:] -= errors @ inverse[start:stop, stop:]
    return gone
