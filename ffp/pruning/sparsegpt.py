"""SparseGPT: which weights go, and the update of those that stay (Frantar and Alistarh, arXiv:2301.00774)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ffp.core.errors import FfpError
from ffp.pruning.weights import smallest

BLOCK = 128
DAMPING = 0.01
Quota = Callable[[int, int], int]  # entries that columns start..stop lose


def exactly(remove: int, columns: int) -> Quota:
    """Returns quotas of blocks of columns that add up to `remove`."""
    return lambda start, stop: remove * stop // columns - remove * start // columns


def apply_sparsegpt(
    linear: nn.Linear, gram: torch.Tensor, quota: Quota, m: int, path: str, **settings: float
) -> torch.Tensor:
    """Replaces a linear's weight by SparseGPT's and returns the mask of the weights that stay; see sparsegpt."""
    weight = linear.weight.data
    new, gone = sparsegpt(weight.to(gram.device), gram, quota, m, name=path, **settings)  # type: ignore[arg-type]
    weight.copy_(new)
    return ~gone.to(weight.device)


def sparsegpt(
    weight: torch.Tensor, gram: torch.Tensor, quota: Quota, m: int = 0, *,
    block: int = BLOCK, damping: float = DAMPING, name: str = "a linear",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Removes entries of a weight and updates the others (algorithm 1 of the paper).

    Columns are pruned from left to right, `block` at a time; a block's mask is chosen by w^2 / [H^-1]_jj^2 across all
    rows, and the error of a removed entry is put into the columns on its right. With n-of-M each row keeps the same
    number of every M adjacent columns, chosen when the first of them is reached. Inputs that are always zero lose
    their weights first. Departs, with `exactly`: the published code removes one weight more in every block.

    Args:
        weight: (out, in).
        gram: X^T X of the inputs, (in, in), any positive multiple.
        quota: How many entries the columns start..stop lose.
        m: M of "n-of-M", 0 otherwise.
        block: Columns in a block.
        damping: Damping of H = X^T X, relative to its mean diagonal.
        name: What the weight is called in errors.

    Returns:
        The new weight, (out, in) float32, and the mask of removed entries.

    Raises:
        FfpError: H is not positive definite.
    """
    w = weight.float().clone()
    inverse = _inverse_factor(gram.float().clone(), w, damping, name)
    columns, gone = w.shape[1], []
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        gone.append(_prune_block(w, inverse, start, stop, quota(start, stop), m))
    return w, torch.cat(gone, dim=1)


def _inverse_factor(hessian: torch.Tensor, w: torch.Tensor, damping: float, name: str) -> torch.Tensor:
    """Returns the upper Cholesky factor of H^-1; zeroes the columns of `w` whose inputs are always zero, in place."""
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
    """Prunes columns start..stop of `w` in place and adds their errors to later ones; returns the mask of what went."""
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
