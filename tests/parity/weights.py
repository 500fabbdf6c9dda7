"""Single weights as the references remove them, with their quotas, thresholds and ties.

A reference has a share (or an N of N:M) for each block, and a rule by which a linear loses it:

    wanda      floor(inputs * share) of each row. `variant`: the entries whose scores sum up to a part alpha of the
               row's sum; bisection in [0, 0.8] finds the alpha that comes within 0.001 of the share of the matrix
    magnitude  all entries up to number int(numel * share) in ascending order, that one and its ties included
    sparsegpt  in each block of columns all entries up to number int(numel * share), that one included

With N:M every rule removes the N least of every M adjacent weights. Sources: Sun et al., arXiv:2306.11695; Frantar
and Alistarh, arXiv:2301.00774; Yin et al., arXiv:2310.05175; and their code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ffp.allocators.heuristics.owl import outlier_share, published_sparsities
from ffp.core.errors import ConfigError
from ffp.core.problem import FloatArray
from ffp.measure.calibration import collect
from ffp.models.prunable import PrunableModel
from ffp.pruning.moments import InputSums
from ffp.pruning.pruners import saliency
from ffp.pruning.sparsegpt import Quota, apply_sparsegpt
from ffp.pruning.unstructured import prune_stream
from ffp.pruning.weights import smallest
from tests.parity.settings import Settings

Masks = dict[str, torch.Tensor]
STEP = 0.001  # Wanda's variant stops this near to the share, or at an interval this narrow


@torch.no_grad()
def prune_as_published(prunable: PrunableModel, tokens: torch.Tensor, settings: Settings) -> Masks:
    """Prunes in place, one window at a time as the references do.

    Returns:
        Which weights are not zero afterwards, boolean (out, in), by the linear's path.
    """
    if settings.prune_m:
        prunable.check_groups(settings.prune_m)
    goals = _owl(prunable, tokens, settings) if settings.method == "owl" else _uniform(prunable, settings)
    share = {path: goals[block] for block in range(len(goals)) for path, _ in prunable.linears(block)}
    pruner = settings.pruner if settings.method == "owl" else settings.method
    if pruner == "magnitude":
        for path, goal in share.items():
            _magnitude(prunable.linear(path), goal, settings)
    else:
        rule = RULES[pruner]

        def cut(path: str, seen: InputSums) -> torch.Tensor:
            rule(prunable.linear(path), seen, share[path], settings)
            return prunable.linear(path).weight.data != 0

        prune_stream(prunable, tokens, cut, full=pruner == "sparsegpt", batch_tokens=1)
    return {path: prunable.linear(path).weight.data != 0 for path in share}


def _uniform(prunable: PrunableModel, settings: Settings) -> list[float]:
    return [settings.prune_n or settings.sparsity] * len(prunable.blocks)


def _owl(prunable: PrunableModel, tokens: torch.Tensor, settings: Settings) -> list[float]:
    """Each block's share, or its N of N:M, from the dense model's outliers."""
    calibration = collect(prunable, tokens, batch_tokens=1)
    blocks = range(calibration.n_blocks)
    shares = np.array([outlier_share(list(calibration.linears(i)), settings.outlier_multiple) for i in blocks])
    if not settings.prune_m:
        return published_sparsities(shares, settings.strength, settings.sparsity)
    counts = published_counts(shares, settings.strength, settings.prune_n, special=settings.special)
    if not 0 <= min(counts) <= max(counts) <= settings.prune_m:
        raise ConfigError(
            f"strength {settings.strength} has blocks lose {min(counts)} to {max(counts)} of every "
            f"{settings.prune_m} weights. Lower it."
        )
    return [float(count) for count in counts]


def published_counts(outlier_share: FloatArray, strength: float, n: int, *, special: bool = False) -> list[int]:
    """Returns how many of every M weights each block loses under OWL's N:M.

    That is `n` less what the block's outliers save, rounded half to even.

    Args:
        outlier_share: D of each block, (n_blocks,), in [0, 1].
        strength: lambda, the range of the savings before rounding (for shares the range is twice that).
        n: N of N:M, the mean of the counts.
        special: A saving of 1 becomes one of 2.
    """
    percent = outlier_share * 100
    spread = float(np.ptp(percent))
    saved = (percent - percent.min()) * (1 / spread * strength) if spread else np.zeros(len(percent))
    rounded = np.round(saved - np.mean(saved))
    if special:
        rounded[rounded == 1] = 2
    return [int(count) for count in n - rounded]


def _magnitude(linear: nn.Linear, goal: float, settings: Settings) -> None:
    weight = linear.weight.data
    score = saliency(weight, None)
    if settings.prune_m:
        gone = _n_of_m(score, goal, settings.prune_m)
    else:
        gone = score <= score.flatten().kthvalue(int(score.numel() * goal) + 1).values
    weight.masked_fill_(gone, 0)


def _wanda(linear: nn.Linear, seen: InputSums, goal: float, settings: Settings) -> None:
    weight = linear.weight.data
    score = saliency(weight, seen.sq_mean)
    if settings.prune_m:
        gone = _n_of_m(score, goal, settings.prune_m)
    elif settings.variant:
        gone = _cumulative(score, goal)
    else:
        gone = smallest(score, len(score) * int(score.shape[1] * goal))
    weight.masked_fill_(gone, 0)


def _sparsegpt(linear: nn.Linear, seen: InputSums, goal: float, settings: Settings) -> None:
    rows, m = linear.out_features, settings.prune_m

    def one_more(start: int, stop: int) -> int:
        return min(int(rows * (stop - start) * goal) + 1, rows * (stop - start))

    quota: Quota = (lambda start, stop: rows * (stop - start) * int(goal) // m) if m else one_more
    apply_sparsegpt(linear, seen.gram, quota, m, "a linear", block=settings.block_size, damping=settings.damping)


RULES: dict[str, Callable[[nn.Linear, InputSums, float, Settings], None]] = {"wanda": _wanda, "sparsegpt": _sparsegpt}


def _n_of_m(score: torch.Tensor, n: float, m: int) -> torch.Tensor:
    groups = score.reshape(-1, m)
    return smallest(groups, int(n) * len(groups)).view_as(score)


def _cumulative(score: torch.Tensor, share: float) -> torch.Tensor:
    """What Wanda's variant removes: the smallest of each row that sum up to the same part of every row's sum."""
    ordered = score.sort(dim=1, stable=True).values
    running, total = ordered.cumsum(1), score.sum(1, keepdim=True)
    low, alpha, high = 0.0, 0.4, 0.8
    while True:
        last = (running <= total * alpha).sum(1, keepdim=True) - 1
        gone = (score <= ordered.gather(1, last.clamp(min=0))) & (last >= 0)
        found = gone.sum() / gone.numel()
        if not (found - share).abs() > STEP or high - low < STEP:
            return gone
        if found > share:
            alpha, high = (alpha + low) / 2, alpha
        else:
            alpha, low = (alpha + high) / 2, alpha
