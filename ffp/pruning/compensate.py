"""What follows the cut: let the kept units of each output projection stand in for the removed ones.

Block by block, attention then FFN, on the stream of the model as it has been pruned and compensated so far. An axis
of its own: any allocation can be compensated. `bias` adds the mean of what was removed (An et al., arXiv:2312.11983);
`ridge` solves for new weights of the kept columns (Yuan et al., arXiv:2511.18977, section on calibration).
Departs: the ridge is relative to the Gram matrix's mean diagonal, where the published 0.9 is absolute.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffp.models.adapter import Adapter, Segment, Unit, rows
from ffp.models.sliced import cut_unit
from ffp.models.stream import BlockStream, Inputs
from ffp.types import ArtifactError, ConfigError

log = logging.getLogger("ffp")
RIDGE = 0.01


def ridge_weight(
    gram: torch.Tensor, cross: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, ridge: float
) -> torch.Tensor:
    """New weights of the kept columns, (out, n_kept), in the Gram matrix's precision.

    Minimises |X_K W'^T - Y W^T|^2 + alpha |W' - W_K|^2 with alpha = ridge * mean diagonal of X_K^T X_K.
    gram: X_K^T X_K, (n_kept, n_kept). cross: X_K^T Y, (n_kept, in), Y the inputs whose product with the whole weight
    is to be met: the same stream's (cross is then a part of the full Gram matrix, and the solution equals
    W_K + W_P B^T with B = (X_K^T X_K + alpha I)^-1 X_K^T X_P) or the dense model's.
    weight: (out, in). columns: kept columns, (n_kept,).
    """
    weight = weight.to(gram.dtype)
    alpha = ridge * gram.diagonal().mean()
    left = gram + alpha * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    right = cross @ weight.T + alpha * weight[:, columns].T
    solved: torch.Tensor = torch.linalg.solve(left, right)
    return solved.T


@torch.no_grad()
def compensate(
    adapter: Adapter, kept: Mapping[str, Sequence[int] | npt.NDArray[np.int32]], windows: torch.Tensor, *,
    kind: str, batch_tokens: int, ridge: float = RIDGE,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Cut the model to `kept`, in place, compensating on the way; the new parameters of its output projections.

    windows: calibration tokens, (n, context). kind: "bias", "ridge" (target: the pruned stream) or "ridge-dense"
    (target: the dense stream's outputs, so that later modules also mend earlier errors).
    Returns tensors by parameter name ("...o_proj.weight"), to be loaded after an ordinary cut. Memory: hidden states
    of the windows (twice for ridge-dense), one block, and one Gram matrix.
    """
    stream = BlockStream(adapter, windows, batch_tokens=batch_tokens)
    dense = [hidden.clone() for hidden in stream.hidden] if kind == "ridge-dense" else None
    updates: dict[str, torch.Tensor] = {}
    for block in range(len(adapter.blocks)):
        targets: dict[str, list[torch.Tensor]] = {}
        if dense is not None:
            dense = _dense_block(adapter, stream, block, dense, targets)
        for unit in (unit for unit in adapter.units if unit.block == block):
            index = torch.as_tensor(np.asarray(kept[unit.budget.name]), dtype=torch.int64, device=adapter.model.device)
            updates.update(_compensate_unit(adapter, stream, unit, index, kind, ridge, targets.get(unit.output)))
        stream.advance(block)
        log.info("compensate: block %d/%d", block + 1, len(adapter.blocks))
    return updates


def _dense_block(
    adapter: Adapter, stream: BlockStream, block: int, dense: list[torch.Tensor], targets: dict[str, list[torch.Tensor]]
) -> list[torch.Tensor]:
    """Advance the dense stream through a block that is still dense; keep its output projections' inputs, by path."""
    pruned, stream.hidden = stream.hidden, dense
    with ExitStack() as hooks:
        for unit in (unit for unit in adapter.units if unit.block == block):
            seen = targets.setdefault(unit.output, [])
            hooks.enter_context(Inputs(adapter.linear(unit.output), seen.append))
        stream.advance(block)
    dense, stream.hidden = stream.hidden, pruned
    return dense


def _compensate_unit(
    adapter: Adapter, stream: BlockStream, unit: Unit, index: torch.Tensor, kind: str, ridge: float,
    target: list[torch.Tensor] | None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Gather what the output projection sees, cut the decision, and set the projection's new parameters."""
    linear = adapter.linear(unit.output)
    columns = rows(index, Segment(unit.output, 1, 0, unit.output_width))
    weight = linear.weight.data
    moments = _Moments(columns, target if kind != "bias" else None, full=kind != "bias")
    with Inputs(linear, moments.add):
        stream.run(unit.block)
    cut_unit(adapter, unit, index)
    if kind == "bias":
        removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        removed[columns] = False
        shift = (weight[:, removed].double() @ moments.mean[removed]).to(weight.dtype)
        linear.bias = nn.Parameter(shift if linear.bias is None else linear.bias.data + shift, requires_grad=False)
        return {f"{unit.output}.bias": linear.bias.data}
    solved = ridge_weight(moments.gram, moments.cross, weight, columns, ridge)
    linear.weight = nn.Parameter(solved.to(weight.dtype).contiguous(), requires_grad=False)
    return {f"{unit.output}.weight": linear.weight.data}


class _Moments:
    """Running sums over the batches of one module's inputs, float64: mean, and the Gram matrices of ridge_weight."""

    def __init__(self, columns: torch.Tensor, target: list[torch.Tensor] | None, *, full: bool):
        self.columns, self.target, self.full = columns, target, full
        self.total: torch.Tensor | float = 0.0
        self.cross: torch.Tensor = torch.zeros(())
        self.gram: torch.Tensor = torch.zeros(())
        self.batches = self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        self.tokens += len(x)
        self.total = self.total + x.sum(0, dtype=torch.float64)
        if self.full:
            x = x.float()
            kept, goal = x[:, self.columns], x if self.target is None else self.target[self.batches].float()
            self.gram = self.gram + (kept.T @ kept).double()
            self.cross = self.cross + (kept.T @ goal).double()
        self.batches += 1

    @property
    def mean(self) -> torch.Tensor:
        assert isinstance(self.total, torch.Tensor)
        return self.total / self.tokens


def load_updates(adapter: Adapter, updates: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Put compensated parameters, by name, into an already cut model; ArtifactError if they are of another cut."""
    outputs = {unit.output for unit in adapter.units}
    for name, value in updates.items():
        path, _, kind = name.rpartition(".")
        linear = adapter.linear(path) if path in outputs else None
        shapes = {"weight": linear.weight.shape, "bias": linear.weight.shape[:1]} if linear is not None else {}
        if linear is None or value.shape != shapes.get(kind):
            raise ArtifactError(
                f"updates.safetensors has {name} of shape {value.shape}, but this cut has {shapes.get(kind, 'none')}. "
                "Apply again."
            )
        tensor = torch.from_numpy(value).to(linear.weight)
        setattr(linear, kind, nn.Parameter(tensor, requires_grad=False))


def spread_updates(
    adapter: Adapter, kept: Mapping[str, npt.NDArray[np.int32]], updates: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Compensated parameters in the dense model's shapes: the kept columns in their places among zeros.

    Raises ConfigError where a linear of the family has no bias to take a compensated one.
    """
    spread = dict(updates)
    for unit in adapter.units:
        linear = adapter.linear(unit.output)
        if (name := f"{unit.output}.weight") in updates:
            index = torch.from_numpy(np.asarray(kept[unit.budget.name], dtype=np.int64))
            columns = rows(index, Segment(unit.output, 1, 0, unit.output_width)).numpy()
            spread[name] = np.zeros((linear.out_features, linear.in_features), dtype=updates[name].dtype)
            spread[name][:, columns] = updates[name]
        if (name := f"{unit.output}.bias") in updates and linear.bias is None:
            raise ConfigError(
                f"{name} of the compensation has no place in {adapter.config.model_type}'s own shapes. "
                "Export without --dense-shape, or compensate by ridge."
            )
    return spread
