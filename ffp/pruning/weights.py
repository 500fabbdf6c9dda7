"""Single weights: what a pruner compares, which weights go, and SparseGPT's update of those that stay.

A pruner compares weights within groups and removes equally many from each. For `magnitude` the group is the whole
matrix, for `wanda` an output row; with n-of-M it is M adjacent weights of a row, whatever the pruner. A matrix gives
exactly as many weights as it is told: what does not divide among the groups is taken one weight each from the groups
whose next one scores least. Masks of one score are therefore nested in the number of removed weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ffp.types import FfpError

PRUNERS = ("wanda", "wanda-dense", "magnitude", "sparsegpt")
BLOCK = 128
DAMPING = 0.01
Quota = Callable[[int, int], int]  # entries that columns start..stop lose


def saliency(weight: torch.Tensor, sq_mean: torch.Tensor | None) -> torch.Tensor:
    """|W_ij| * ||X_j||_2 up to a common factor, in float32; |W_ij| where no moments are given.

    weight: (out, in). sq_mean: (in,), mean over tokens of x_j^2. Source: Sun et al., arXiv:2306.11695, equation 1.
    """
    score = weight.abs().float()
    return score if sq_mean is None else score * sq_mean.sqrt().to(score)


def grouped(score: torch.Tensor, pruner: str, m: int) -> torch.Tensor:
    """A view of (out, in) scores as (groups, size): what is compared with what. m: of n-of-M, 0 otherwise."""
    if m:
        return score.reshape(-1, m)
    return score.reshape(1, -1) if pruner == "magnitude" else score


def smallest(score: torch.Tensor, remove: int) -> torch.Tensor:
    """The `remove` entries that go, as a boolean mask like `score`, (groups, size).

    Each group loses remove // groups of its smallest; the remainder comes one each from the groups whose next entry
    is smallest. Ties go by position. A quota for every row alone, as the reference of Wanda has it, is
    remove = groups * floor(size * sparsity).
    """
    quota, extra = divmod(remove, len(score))
    gone = _lowest(score, quota)
    if extra:
        left = score.masked_fill(gone, torch.inf)
        column = left.argmin(1)
        rows = left.gather(1, column[:, None]).flatten().argsort(stable=True)[:extra]
        gone[rows, column[rows]] = True
    return gone


def _lowest(score: torch.Tensor, quota: int) -> torch.Tensor:
    """The first `quota` entries of each row in a stable ascending order, as a mask; by selection, not by sorting."""
    if quota == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    bound = score.kthvalue(quota, dim=1, keepdim=True).values
    gone = score <= bound
    for row in (gone.sum(1) != quota).nonzero().flatten():  # ties at the bound: the first of them go
        gone[row] = score[row] < bound[row]
        tied = (score[row] == bound[row]).nonzero().flatten()
        gone[row, tied[: quota - int(gone[row].sum())]] = True
    return gone


def removal_rank(score: torch.Tensor) -> torch.Tensor:
    """The position of each entry among those of its group, 0 for the smallest, in the smallest integer type."""
    size = score.shape[1]
    dtype = torch.uint8 if size <= 256 else torch.int16 if size <= 1 << 15 else torch.int32
    order = score.argsort(dim=1, stable=True)
    rank = torch.empty_like(order, dtype=dtype)
    return rank.scatter_(1, order, torch.arange(size, device=score.device).to(dtype).expand_as(order))


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
