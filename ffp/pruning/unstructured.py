"""Prunes single weights of a whole model block by block, each on what the pruned blocks before it let through."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffp.core.errors import ArtifactError
from ffp.models.placement import forward_as
from ffp.models.prunable import PrunableModel, group_size
from ffp.models.stream import BlockStream
from ffp.pruning.moments import InputSums, watch_block
from ffp.pruning.pruners import Pruner, find_pruner
from ffp.pruning.weights import smallest

log = logging.getLogger("ffp")
SQUARE_ROWS = 64  # see InputSums


def removals(prunable: PrunableModel, granularity: str, keep: Sequence[int]) -> dict[str, int]:
    """Returns how many weights each linear loses, by path; keep: units of each decision, in the problem's order."""
    names, m = prunable.decision_names(granularity), group_size(granularity)
    kept = dict(zip(dict.fromkeys(names.values()), keep, strict=True))
    sizes = {path: prunable.linear(path).weight.numel() for path in names}
    return {path: size - (kept[names[path]] * size // m if m else kept[names[path]]) for path, size in sizes.items()}


@torch.no_grad()
def prune_weights(
    prunable: PrunableModel, remove: Mapping[str, int], *, pruner: str, m: int = 0,
    windows: torch.Tensor | None = None, batch_tokens: int = 0,
    sq_means: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Zeroes so many weights of each linear, in place.

    Memory of a pruner that reads the stream: hidden states of the windows, one block, and, if it changes kept weights,
    one Gram matrix for each distinct input of a block.

    Args:
        prunable: The dense model.
        remove: Weights to remove, by the linear's path.
        pruner: One of ffp.pruning.pruners.PRUNERS. One that reads "dense" needs `sq_means`. One that reads "stream"
            pushes the windows through the model: a block's statistics are taken with its own weights still whole on
            the stream of the pruned blocks before it, as in the references.
        m: M of "n-of-M", 0 otherwise.
        windows: Calibration tokens, (n, context) int64.
        batch_tokens: Tokens that pass a block at once.
        sq_means: Mean square of each input feature of the dense model, (in,), by path.

    Returns:
        Keep masks, boolean (out, in), by path.

    Raises:
        ConfigError: There is no such pruner.
    """
    rule = find_pruner(pruner)
    if rule.reads == "nothing":
        return {path: _zero(prunable.linear(path), None, count, rule, m) for path, count in remove.items()}
    if rule.reads == "dense":
        assert sq_means is not None, f"{pruner} needs the dense model's statistics"
        known = {path: torch.from_numpy(sq_means[path]) for path in remove}
        return {path: _zero(prunable.linear(path), known[path], count, rule, m) for path, count in remove.items()}
    assert windows is not None, f"{pruner} needs calibration tokens"

    def cut(path: str, sums: InputSums) -> torch.Tensor:
        if rule.solve is None:
            return _zero(prunable.linear(path), sums.sq_mean, remove[path], rule, m)
        return rule.solve(prunable.linear(path), sums.gram, remove[path], m, path)

    return prune_stream(prunable, windows, cut, full=rule.changes_kept, batch_tokens=batch_tokens)


@torch.no_grad()
def prune_stream(
    prunable: PrunableModel, windows: torch.Tensor, cut: Callable[[str, InputSums], torch.Tensor], *, full: bool,
    batch_tokens: int,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Prunes linear by linear with sums of its inputs.

    A block's inputs are seen while its own weights are whole, on the stream of the pruned blocks before it.

    Args:
        prunable: The dense model.
        windows: Calibration tokens, (n, context) int64.
        cut: Given a linear's path and sums, prunes it in place and returns its keep mask.
        full: Whether `cut` needs the Gram matrix of the inputs; otherwise it gets their mean squares.
        batch_tokens: Tokens that pass a block at once.

    Returns:
        Keep masks by path.
    """
    new_sums = partial(InputSums, "gram" if full else "sq_mean", square_rows=SQUARE_ROWS)
    masks: dict[str, torch.Tensor] = {}
    stream = BlockStream(prunable, windows, batch_tokens=batch_tokens)
    blocks = len(prunable.blocks)
    for block in range(blocks):
        with ExitStack() as hooks:
            sums = watch_block(prunable, block, new_sums, hooks)
            hooks.enter_context(_zero_output(prunable.linear(list(sums)[-1])))
            stream.run(block)
        masks |= {path: cut(path, found) for path, found in sums.items()}
        del sums
        if block + 1 < blocks:
            stream.advance(block)
        log.info("prune: block %d/%d", block + 1, blocks)
    return masks


def _zero(linear: nn.Linear, sq_mean: torch.Tensor | None, remove: int, rule: Pruner, m: int) -> torch.Tensor:
    """Zeroes the `remove` weights with the lowest scores; returns the mask of those that stay."""
    weight = linear.weight.data
    score = rule.grouped_scores(weight, None if sq_mean is None else sq_mean.to(weight.device), m)
    gone = smallest(score, remove).view(weight.shape)
    weight.masked_fill_(gone, 0)
    return ~gone


@contextmanager
def _zero_output(linear: nn.Linear) -> Iterator[None]:
    """Lets a linear return zeros: of a block's last one only the input is needed, and its product costs most."""

    def zeros(input: torch.Tensor) -> torch.Tensor:
        return input.new_zeros(1).expand(*input.shape[:-1], linear.out_features)

    with forward_as(linear, zeros):
        yield


def pack_masks(masks: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[np.uint8]]:
    """Returns keep masks as bits: numpy.packbits of the row-major mask, by parameter name."""
    return {f"{path}.weight": np.packbits(mask.cpu().numpy().reshape(-1)) for path, mask in masks.items()}


def unpack_masks(
    prunable: PrunableModel, packed: Mapping[str, npt.NDArray[np.uint8]], source: object
) -> dict[str, torch.Tensor]:
    """Returns the keep masks of every block linear by path; `source` names what they were read from in errors.

    Raises:
        ArtifactError: They belong to another model.
    """
    masks = {}
    for path in prunable.decision_names("unstructured"):
        shape = prunable.linear(path).weight.shape
        bits = packed.get(f"{path}.weight")
        if bits is None or bits.dtype != np.uint8 or bits.size != (shape.numel() + 7) // 8:
            raise ArtifactError(f"{source} has no mask of {path} with {shape.numel()} weights. Apply again.")
        masks[path] = torch.from_numpy(np.unpackbits(bits, count=shape.numel()).astype(bool)).view(shape)
    return masks
