"""Single weights: what a pruner compares and which weights it removes.

A pruner compares weights within groups and removes equally many from each. For `magnitude` the group is the whole
matrix, for `wanda` an output row; with n-of-M it is M adjacent weights of a row, whatever the pruner. A matrix loses
exactly the requested number of weights: the remainder of the division is taken one weight each from the groups whose
next one scores least. Masks of one score are therefore nested in the number of removed weights.
"""

from __future__ import annotations

import torch

PRUNERS = ("wanda", "wanda-dense", "magnitude", "sparsegpt")


def saliency(weight: torch.Tensor, sq_mean: torch.Tensor | None) -> torch.Tensor:
    """Returns |W_ij| * ||X_j||_2 up to a common factor, (out, in) float32; |W_ij| without `sq_mean`.

    Source: Sun et al., arXiv:2306.11695, equation 1.

    Args:
        weight: (out, in).
        sq_mean: Mean over tokens of x_j^2, (in,).
    """
    score = weight.abs().float()
    return score if sq_mean is None else score * sq_mean.sqrt().to(score)


def grouped(score: torch.Tensor, pruner: str, m: int) -> torch.Tensor:
    """Returns a view of (out, in) scores as (groups, size), the groups being what is compared.

    Args:
        score: (out, in).
        pruner: One of PRUNERS.
        m: M of "n-of-M", 0 otherwise.
    """
    if m:
        return score.reshape(-1, m)
    return score.reshape(1, -1) if pruner == "magnitude" else score


def smallest(score: torch.Tensor, remove: int) -> torch.Tensor:
    """Returns which `remove` entries of (groups, size) scores go, a boolean mask.

    Each group loses remove // groups of its smallest; the remainder comes one each from the groups whose next entry
    is smallest. Ties go by position. Wanda's reference has a quota for each row instead, which is
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
    """Masks the first `quota` entries of each row in a stable ascending order; by selection, not by sorting."""
    if quota == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    bound = score.kthvalue(quota, dim=1, keepdim=True).values
    gone = score <= bound
    for row in (gone.sum(1) != quota).nonzero().flatten():  # of ties at the bound the first go
        gone[row] = score[row] < bound[row]
        tied = (score[row] == bound[row]).nonzero().flatten()
        gone[row, tied[: quota - int(gone[row].sum())]] = True
    return gone


def removal_rank(score: torch.Tensor) -> torch.Tensor:
    """Returns the position of each entry within its group, 0 for the smallest, in the smallest integer type."""
    size = score.shape[1]
    dtype = torch.uint8 if size <= 256 else torch.int16 if size <= 1 << 15 else torch.int32
    order = score.argsort(dim=1, stable=True)
    rank = torch.empty_like(order, dtype=dtype)
    return rank.scatter_(1, order, torch.arange(size, device=score.device).to(dtype).expand_as(order))
