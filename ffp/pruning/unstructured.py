"""Pruning single weights of a whole model, block by block, each on what the pruned ones before it let through."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffp.core.errors import ArtifactError
from ffp.models.placement import float64
from ffp.models.prunable import PrunableModel, group_size
from ffp.models.stream import BlockStream, Inputs
from ffp.pruning.sparsegpt import Quota, exactly, sparsegpt
from ffp.pruning.weights import grouped, saliency, smallest

log = logging.getLogger("ffp")
Removals = Mapping[str, int]
CACHED_ROWS = 64  # squared at once: two to four times as fast as all at once


def removals(prunable: PrunableModel, granularity: str, keep: Sequence[int]) -> dict[str, int]:
    """How many weights each linear loses, by path. keep: in the order of the granularity's decisions."""
    decisions, m = prunable.decisions(granularity), group_size(granularity)
    kept = dict(zip(dict.fromkeys(decisions.values()), keep, strict=True))
    sizes = {path: prunable.linear(path).weight.numel() for path in decisions}
    return {
        path: size - (kept[decisions[path]] * size // m if m else kept[decisions[path]]) for path, size in sizes.items()
    }


@torch.no_grad()
def prune(
    prunable: PrunableModel, remove: Removals, *, pruner: str, m: int = 0, windows: torch.Tensor | None = None,
    batch_tokens: int = 0, sq_means: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Zero that many weights of each linear, in place; the keep masks, boolean (out, in), by path.

    pruner: "magnitude"; "wanda-dense", on the dense model's moments `sq_means`; or "wanda" and "sparsegpt", which
    push the calibration `windows`, (n, context), through the model: a block's statistics are taken with its own
    weights still whole on the stream of the pruned blocks before it, as in the references. Memory of the latter two:
    hidden states of the windows, one block, and for sparsegpt one Gram matrix for each distinct input of a block.
    """
    masks: dict[str, torch.Tensor] = {}
    if pruner in ("magnitude", "wanda-dense"):
        for path, count in remove.items():
            known = None if pruner == "magnitude" or sq_means is None else torch.from_numpy(sq_means[path])
            masks[path] = _zero(prunable.linear(path), known, count, pruner, m)
        return masks
    assert windows is not None

    def cut(path: str, seen: Seen) -> torch.Tensor:
        linear = prunable.linear(path)
        if pruner != "sparsegpt":
            return _zero(linear, seen.sq_mean, remove[path], pruner, m)
        return replace(linear, seen.gram, exactly(remove[path], linear.in_features), m, path)

    return prune_stream(prunable, windows, cut, full=pruner == "sparsegpt", batch_tokens=batch_tokens)


@torch.no_grad()
def prune_stream(
    prunable: PrunableModel, windows: torch.Tensor, cut: Callable[[str, Seen], torch.Tensor], *, full: bool, batch_tokens: int
) -> dict[str, torch.Tensor]:
    """Hand each linear's path and inputs to `cut`, which prunes it in place and answers its keep mask; all of them.

    A block's inputs are seen while its own weights are whole, on the stream of the pruned blocks before it. full:
    whether their Gram matrix is wanted.
    """
    masks: dict[str, torch.Tensor] = {}
    stream = BlockStream(prunable, windows, batch_tokens=batch_tokens)
    blocks = len(prunable.blocks)
    for block in range(blocks):
        paths = [path for path, _ in prunable.linears(block)]
        for path, seen in observe(prunable, stream, block, paths, full=full).items():
            masks[path] = cut(path, seen)
        if block + 1 < blocks:
            stream.advance(block)
        log.info("prune: block %d/%d", block + 1, blocks)
    return masks


def replace(linear: nn.Linear, gram: torch.Tensor, quota: Quota, m: int, path: str, **settings: float) -> torch.Tensor:
    """Put SparseGPT's weight into a linear; the mask of those that stay. settings: its block and damping."""
    weight = linear.weight.data
    new, gone = sparsegpt(weight.to(gram.device), gram, quota, m, name=path, **settings)  # type: ignore[arg-type]
    weight.copy_(new)
    return ~gone.to(weight.device)


def _zero(linear: nn.Linear, sq_mean: torch.Tensor | None, remove: int, pruner: str, m: int) -> torch.Tensor:
    """Zero the `remove` least salient weights; the mask of those that stay."""
    weight = linear.weight.data
    score = grouped(saliency(weight, None if sq_mean is None else sq_mean.to(weight.device)), pruner, m)
    gone = smallest(score, remove).view(weight.shape)
    weight.masked_fill_(gone, 0)
    return ~gone


class Seen:
    """Running sums over one linear's inputs: mean square, or the Gram matrix; float32 in a batch, float64 across."""

    def __init__(self, *, full: bool):
        self.full, self.tokens = full, 0
        self.sums: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor) -> None:
        self.tokens += len(x)
        self.sums = self.sums + float64(x.float().T @ x.float() if self.full else sum_of_squares(x))

    @property
    def sq_mean(self) -> torch.Tensor:
        assert isinstance(self.sums, torch.Tensor)
        return self.sums / self.tokens

    gram = sq_mean


def sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    """The sum over rows of x^2 in float32, (tokens, in) to (in,); on a CPU in parts that its cache holds."""
    parts = torch.split(x, CACHED_ROWS) if x.device.type == "cpu" else (x,)
    return torch.stack([part.float().square().sum(0) for part in parts]).sum(0)


def observe(prunable: PrunableModel, stream: BlockStream, block: int, paths: Iterable[str], *, full: bool) -> dict[str, Seen]:
    """Run a block on the stream and note the inputs of its linears; those that share an input share the sums."""
    seen: dict[str, Seen] = {}
    with ExitStack() as hooks:
        for module in (module for module in prunable.modules if module.block == block):
            inside, outside = Seen(full=full), Seen(full=full)
            entries = dict.fromkeys(s.linear for s in module.segments if s.linear != module.output)
            for number, path in enumerate(entries):
                seen[path] = inside
                if number == 0:
                    hooks.enter_context(Inputs(prunable.linear(path), inside.add))
            seen[module.output] = outside
            hooks.enter_context(Inputs(prunable.linear(module.output), outside.add))
            last = module.output
        hooks.enter_context(_idle(prunable.linear(last)))
        stream.run(block)
    return {path: seen[path] for path in paths}


@contextmanager
def _idle(linear: nn.Linear) -> Iterator[None]:
    """Let a linear answer zeros: of a block's last one only the input is wanted, and its product is the dearest."""

    def zeros(input: torch.Tensor) -> torch.Tensor:
        return input.new_zeros(1).expand(*input.shape[:-1], linear.out_features)

    linear.forward = zeros  # type: ignore[method-assign]
    try:
        yield
    finally:
        del linear.forward


def pack(masks: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[np.uint8]]:
    """Keep masks as bits: numpy.packbits of the row-major mask, by parameter name."""
    return {f"{path}.weight": np.packbits(mask.cpu().numpy().reshape(-1)) for path, mask in masks.items()}


def unpack(prunable: PrunableModel, packed: Mapping[str, npt.NDArray[np.uint8]], source: object) -> dict[str, torch.Tensor]:
    """The masks of every block linear; ArtifactError if they belong to another model."""
    masks = {}
    for path in prunable.decisions("unstructured"):
        shape = prunable.linear(path).weight.shape
        bits = packed.get(f"{path}.weight")
        if bits is None or bits.dtype != np.uint8 or bits.size != (shape.numel() + 7) // 8:
            raise ArtifactError(f"{source} has no mask of {path} with {shape.numel()} weights. Apply again.")
        masks[path] = torch.from_numpy(np.unpackbits(bits, count=shape.numel()).astype(bool)).view(shape)
    return masks
