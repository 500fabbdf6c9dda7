"""Unit scores from the dense model and its calibration statistics: of each module, the best units stay.

All read the output projection's weight (o_proj, down_proj), since that is where a unit enters the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

# (weight (out, in) float32, mean of x^2 (in,), variance of x (in,)) -> score of each input column (in,)
ColumnScore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def wanda(weight: torch.Tensor, sq_mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Returns s_j = mean_i |W_ij| * ||X_j||_2, up to a factor common to all columns.

    Source: Sun et al., arXiv:2306.11695, averaged over output rows as FastForward's code does.
    """
    return weight.abs().mean(0).double() * sq_mean.sqrt()


def wifv(weight: torch.Tensor, sq_mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Returns s_j = Var(X_j) * ||W_:j||_2^2, the weighted input feature variance (An et al., arXiv:2312.11983)."""
    return variance * weight.double().square().sum(0)


def ifv(weight: torch.Tensor, sq_mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Returns s_j = Var(X_j), the input feature variance alone (An et al., arXiv:2312.11983)."""
    return variance


SCORES: Mapping[str, ColumnScore] = {"wanda": wanda, "wifv": wifv, "ifv": ifv}


def unit_order(column_scores: torch.Tensor, width: int) -> torch.Tensor:
    """Returns units from best to worst by the sum over their `width` columns; ties keep the lower index first."""
    return torch.argsort(column_scores.view(-1, width).sum(1), descending=True, stable=True)
