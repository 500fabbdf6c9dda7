"""Single weights: what a pruner compares, which weights go, and SparseGPT's update of those that stay.

A pruner compares weights within groups and removes equally many from each. For `magnitude` the group is the whole
matrix, for `wanda` an output row; with n-of-M it is M adjacent weights of a row, whatever the pruner. A matrix gives
exactly as many weights as it is told: what does not divide among the groups is taken one weight each from the groups
whose next one scores least. Masks of one score are therefore nested in the number of removed weights.
"""

from __future__ import annotations

import torch

PRUNERS = ("wanda", "wanda-dense", "magnitude", "sparsegpt")


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








