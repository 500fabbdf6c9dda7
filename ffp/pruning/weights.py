"""Single weights: which of a matrix's scored weights go; see pruners.py for their groups.

A matrix loses exactly the requested number of weights, equally many from each group. The remainder of the division is
taken one weight each from the groups whose next one scores least. Masks of one score are therefore nested in the number
of removed weights.
"""

from __future__ import annotations

import torch


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
    """Returns the position of each entry within its group, 0 for the smallest, in the smallest integer type.

    The type holds the size of a group too, with which ranks are compared.
    """
    size = score.shape[1]
    dtype = torch.uint8 if size < 1 << 8 else torch.int16 if size < 1 << 15 else torch.int32
    order = score.argsort(dim=1, stable=True)
    rank = torch.empty_like(order, dtype=dtype)
    return rank.scatter_(1, order, torch.arange(size, device=score.device).to(dtype).expand_as(order))
