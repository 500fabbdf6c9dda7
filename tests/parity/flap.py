"""FLAP with the quirks that its reference's counts depend on (An et al., arXiv:2312.11983, and its code).

Statistics are of the dense model, window by window, summed in float32 in the reference's order. Its quirks:

- the mean in the variance's recurrence is the one that the same window has updated already;
- the first window adds no variance;
- a head counts as int(4 * head_dim / 3) channels, the fraction dropped;
- under an adaptive structure the unit at the threshold goes too.

The three metrics and four structures are as published. The reference knows multi-head attention only; where heads
share keys, a unit here is the group of heads.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from ffp.core.errors import ConfigError
from ffp.models.prunable import PrunableModel
from ffp.models.stream import watch_inputs
from tests.parity.settings import Settings

Scores = list[torch.Tensor]  # of each block, (columns of its output projection,)
Kept = tuple[torch.Tensor, torch.Tensor]  # masks of heads and of channels, (blocks, units)


class Fluctuation:
    """Running statistics of one linear's input, updated window by window as in the reference."""

    def __init__(self, width: int):
        self.mean, self.variance, self.sq_mean = torch.zeros(width), torch.zeros(width), torch.zeros(width)
        self.windows = 0

    def add(self, x: torch.Tensor) -> None:
        """Adds one window, (tokens, in)."""
        x, n = x.float().cpu(), self.windows
        self.mean = self.mean * (n / (n + 1)) + x.mean(0) / (n + 1)
        self.sq_mean = self.sq_mean * (n / (n + 1)) + x.T.norm(p=2, dim=1) ** 2 / (n + 1)
        if n:
            self.variance = self.variance * ((n - 1) / n) + (x - self.mean).square().sum(0) / (n + 1)
        self.windows += 1

    def metric(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Returns the metric `name` of a linear with this weight, (in,)."""
        weight = weight.float().cpu()
        if name == "WIFN":
            return (weight.abs() * self.sq_mean.sqrt()).mean(0)
        return self.variance if name == "IFV" else self.variance * weight.square().sum(0)


@torch.no_grad()
def flap(prunable: PrunableModel, tokens: torch.Tensor, settings: Settings) -> dict[str, Any]:
    """Returns which heads and channels of each block stay: heads_kept, ffn_kept (ascending indices), ffn_kept_count."""
    sparsity, structure, remove_heads = settings.sparsity, settings.structure, settings.remove_heads
    attention, ffn = _metrics(prunable, tokens, settings.metric)
    if structure == "AL-AM":
        heads, channels = _adaptive(prunable, attention, ffn, sparsity)
    elif structure == "AL-MM":
        heads, channels = _by_module(prunable, attention, ffn, sparsity, remove_heads)
    else:
        heads, channels = _uniform(prunable, attention, ffn, sparsity, remove_heads, structure == "UL-MM")
    return {
        "heads_kept": [row.nonzero().flatten().tolist() for row in heads],
        "ffn_kept_count": [int(row.sum()) for row in channels],
        "ffn_kept": [row.nonzero().flatten().tolist() for row in channels],
    }


def _metrics(prunable: PrunableModel, tokens: torch.Tensor, metric: str) -> tuple[Scores, Scores]:
    """The metric of each block's attention, squared as in the reference, and of its FFN."""
    seen = {module.output: Fluctuation(prunable.linear(module.output).in_features) for module in prunable.modules}
    with ExitStack() as hooks:
        for path, statistics in seen.items():
            hooks.enter_context(watch_inputs(prunable.linear(path), statistics.add))
        for window in tokens:
            prunable.model.base_model(input_ids=window[None].to(prunable.model.device), use_cache=False)
    found: dict[str, Scores] = {"attention": [], "ffn": []}
    for module in prunable.modules:
        score = seen[module.output].metric(metric, prunable.linear(module.output).weight)
        found[module.kind].append(score**2 if module.kind == "attention" else score)
    return found["attention"], found["ffn"]


def _adaptive(prunable: PrunableModel, attention: Scores, ffn: Scores, sparsity: float) -> Kept:
    """AL-AM: one ranking of all heads and channels, cut where the kept weight is nearest to its share."""
    heads, channels = _standardised_heads(prunable, attention), _standardised(ffn)
    score, order = torch.cat([heads.flatten(), channels.flatten()]).sort(descending=True)
    weights = torch.ones_like(order)
    weights[order < heads.numel()] = int(4 * prunable.modules[0].output_width / 3)
    distance = (weights.cumsum(0) - weights.sum() * (1 - sparsity)).abs()
    threshold = score[distance.argmin()]
    return heads > threshold, channels > threshold


def _by_module(prunable: PrunableModel, attention: Scores, ffn: Scores, sparsity: float, remove_heads: int) -> Kept:
    """AL-MM: one ranking of all heads, of which a given number goes, and one of all channels."""
    heads, channels = _standardised_heads(prunable, attention), _standardised(ffn)
    blocks = len(attention)
    gone = _channels_to_remove(prunable, sparsity * blocks, remove_heads, channels.numel())
    thresholds = [
        units.flatten().sort(descending=True)[0][-count] if count else units.min() - 1
        for units, count in ((heads, remove_heads), (channels, gone))
    ]
    return heads > thresholds[0], channels > thresholds[1]


def _uniform(
    prunable: PrunableModel, attention: Scores, ffn: Scores, sparsity: float, remove_heads: int, fixed_heads: bool
) -> Kept:
    """UL-UM: the same share of every module. UL-MM: a number of heads of each block, the rest from its FFN."""
    heads = torch.stack(attention).view(len(attention), -1, prunable.modules[0].output_width).sum(2)
    channels = torch.stack(ffn)
    per_block = remove_heads // len(attention)
    gone_heads = per_block if fixed_heads else int(sparsity * heads.shape[1])
    gone_channels = int(channels.shape[1] * sparsity)
    if fixed_heads:
        gone_channels = _channels_to_remove(prunable, sparsity, per_block, channels.shape[1])
    return tuple(  # type: ignore[return-value]
        units >= units.sort(dim=1)[0][:, gone, None] for units, gone in ((heads, gone_heads), (channels, gone_channels))
    )


def _channels_to_remove(prunable: PrunableModel, blocks_removed: float, heads: int, available: int) -> int:
    """How many channels must go besides `heads` to remove as many parameters as `blocks_removed` blocks have."""
    config, head_dim = prunable.config, prunable.modules[0].output_width
    hidden, inner = config.hidden_size, config.intermediate_size
    wanted = blocks_removed * (inner * hidden * 3 + hidden * hidden * 4) - hidden * 4 * heads * head_dim
    count = int(wanted / (hidden * 3))
    if not 0 <= count < available:
        raise ConfigError(f"with {heads} heads removed, {count} of {available} channels would go. Change remove_heads.")
    return count


def _standardised(rows: Scores) -> torch.Tensor:
    """(x - mean) / std within each block, (blocks, in); std is unbiased."""
    x = torch.stack(rows)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def _standardised_heads(prunable: PrunableModel, rows: Scores) -> torch.Tensor:
    return _standardised(rows).view(len(rows), -1, prunable.modules[0].output_width).mean(2)
