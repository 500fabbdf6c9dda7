"""Orders of removal that know how units act together: from the moments E[x x^T] of an output projection's inputs.

`pairwise` accounts for what removed units have in common, and changes no weight. `obs` removes what the others can make
up for best, refitting them on the way, so its order is meant for a cut with `compensate: ridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ffp.models.placement import float64
from ffp.models.refit import damped

ROUNDS = 32  # in which `obs` removes all units of a module; few units leave one by one

# (weight (out, in), gram (in, in), columns of a unit) -> units from best to worst, (n_units,)
UnitOrder = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def pairwise(weight: torch.Tensor, gram: torch.Tensor, width: int) -> torch.Tensor:
    """Removes the unit that adds least to E|W_P x_P|^2, P all that is removed so far; ties: the higher index first.

    The error is the sum over pairs of P of S = E[x x^T] o (W^T W), so that a removed unit p adds 2 S_pj to what unit j
    would cost.
    """
    w = float64(weight)
    pairs = float64(gram) * (w.T @ w)
    n = len(pairs) // width
    pairs = pairs.view(n, width, n, width).sum((1, 3))
    cost, removed = pairs.diagonal().clone(), []
    for _ in range(n):
        worst = n - 1 - int(cost.flip(0).argmin())
        removed.append(worst)
        cost += 2 * pairs[worst]
        cost[worst] = torch.inf
    return torch.tensor(removed[::-1])


def obs(weight: torch.Tensor, gram: torch.Tensor, width: int) -> torch.Tensor:
    """Removes in rounds the units with the least error after a refit of the others (Optimal Brain Surgeon).

    The error of unit p is tr(W_p [H^-1]_pp^-1 W_p^T); after a round W and H^-1 are those of the units that are left.
    Source: Hassibi and Stork, 1993; for structures, Kurtic et al., arXiv:2302.04089.
    """
    n = weight.shape[1] // width
    w, inverse = float64(weight).clone(), torch.linalg.inv(damped(gram))
    left, removed = torch.arange(n, device=w.device), torch.empty(0, dtype=torch.int64, device=w.device)
    size = max(1, n // ROUNDS)
    while len(left):
        worst = torch.argsort(_errors(w, inverse, width).flip(0), stable=True)[:size]
        worst = len(left) - 1 - worst  # of equal errors the higher index leaves first
        removed = torch.cat([removed, left[worst]])
        stays = torch.ones(len(left), dtype=torch.bool, device=w.device)
        stays[worst] = False
        w, inverse = _remove(w, inverse, stays.repeat_interleave(width))
        left = left[stays]
    return removed.flip(0).cpu()


def _errors(weight: torch.Tensor, inverse: torch.Tensor, width: int) -> torch.Tensor:
    """tr(W_p [H^-1]_pp^-1 W_p^T) of each unit p, (n,)."""
    if width == 1:
        return weight.square().sum(0) / inverse.diagonal()
    n = len(inverse) // width
    index = torch.arange(n, device=weight.device)
    blocks = inverse.view(n, width, n, width)[index, :, index, :]
    columns = weight.view(len(weight), n, width).permute(1, 2, 0)
    # By Cholesky, block by block: MKL's LU of a batch fails on several threads of some processors.
    halves = [
        torch.linalg.solve_triangular(torch.linalg.cholesky(b), c, upper=False)
        for b, c in zip(blocks, columns, strict=True)
    ]
    return torch.stack([half.square().sum() for half in halves])


def _remove(weight: torch.Tensor, inverse: torch.Tensor, stays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W and H^-1 of the columns that stay, refitted: what a Gaussian elimination of the others leaves."""
    factor = torch.linalg.cholesky(inverse[~stays][:, ~stays])
    across = torch.cholesky_solve(inverse[~stays][:, stays], factor)
    left = inverse[stays][:, stays] - inverse[stays][:, ~stays] @ across
    return weight[:, stays] - weight[:, ~stays] @ across, left


ORDERS: Mapping[str, UnitOrder] = {"pairwise": pairwise, "obs": obs}
