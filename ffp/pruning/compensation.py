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
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffp.core.errors import ArtifactError, ConfigError
from ffp.models.placement import float64, resident
from ffp.models.prunable import PrunableModel, PrunableModule, Segment, rows
from ffp.models.sliced import cut_unit
from ffp.models.stream import BlockStream, Inputs

log = logging.getLogger("ffp")
RIDGE = 0.01
ROWS = 256  # of a moment matrix that are added at once, which bounds the temporary product


def ridge_weight(
    gram: torch.Tensor, right: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, ridge: float
) -> torch.Tensor:
    """New weights of the kept columns, (out, n_kept), float64; `gram` and `right` are used up.

    Minimises |X_K W'^T - T|^2 + alpha |W' - W_K|^2 with alpha = ridge * mean diagonal of X_K^T X_K.
    gram: X_K^T X_K, (n_kept, n_kept). right: X_K^T T, (n_kept, out), T the outputs to be met: the same stream's under
    the whole weight (the solution then equals W_K + W_P B^T with B = (X_K^T X_K + alpha I)^-1 X_K^T X_P) or the dense
    model's. weight: W, (out, in). columns: kept columns, (n_kept,).
    """
    alpha = max(ridge * float(gram.diagonal().mean()), 1e-30)
    gram.diagonal().add_(alpha)
    for start in range(0, len(right), ROWS):
        right[start : start + ROWS] += alpha * weight[:, columns[start : start + ROWS]].T.to(right)
    factor = torch.linalg.cholesky(gram.mT, out=gram.mT)  # symmetric: in LAPACK's order, so that it is done in place
    half = torch.linalg.solve_triangular(factor, right, upper=False, out=right)
    solved: torch.Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True, out=right)
    return solved.T


@torch.no_grad()
def compensate(
    prunable: PrunableModel, kept: Mapping[str, Sequence[int] | npt.NDArray[np.int32]], windows: torch.Tensor, *,
    kind: str, batch_tokens: int, ridge: float = RIDGE,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The new parameters of the output projections of the model cut to `kept`; the model itself is left as it is.

    windows: calibration tokens, (n, context). kind: "bias", "ridge" (target: the pruned stream) or "ridge-dense"
    (target: the dense stream's outputs, so that later modules also mend earlier errors).
    Returns tensors on the CPU by parameter name ("...o_proj.weight"), to be loaded after an ordinary cut. Memory:
    hidden states of the windows (twice for ridge-dense, and the targets of one block), one block, one module's moments.
    """
    stream = BlockStream(prunable, windows, batch_tokens=batch_tokens)
    dense = [hidden.clone() for hidden in stream.hidden] if kind == "ridge-dense" else None
    updates: dict[str, torch.Tensor] = {}
    for block in range(len(prunable.blocks)):
        targets: dict[str, list[torch.Tensor]] = {}
        with resident(prunable.blocks, block, prunable.model.config):
            if dense is not None:
                dense = _dense_block(prunable, stream, block, dense, targets)
            for module in (module for module in prunable.modules if module.block == block):
                index = torch.as_tensor(np.asarray(kept[module.decision.name]), dtype=torch.int64)
                name, new = _compensate_unit(prunable, stream, module, index, kind, ridge, targets.pop(module.output, None))
                updates[name] = new.cpu()
            stream.advance(block)
        log.info("compensate: block %d/%d", block + 1, len(prunable.blocks))
    return updates


def _dense_block(
    prunable: PrunableModel, stream: BlockStream, block: int, dense: list[torch.Tensor], targets: dict[str, list[torch.Tensor]]
) -> list[torch.Tensor]:
    """Advance the dense stream through a block that is still dense; keep its output projections' outputs, by path."""
    pruned, stream.hidden = stream.hidden, dense
    with ExitStack() as hooks:
        for module in (module for module in prunable.modules if module.block == block):
            linear = prunable.linear(module.output)
            hooks.enter_context(Inputs(linear, partial(_keep_product, targets.setdefault(module.output, []), linear)))
        stream.advance(block)
    dense, stream.hidden = stream.hidden, pruned
    return dense


def _compensate_unit(
    prunable: PrunableModel, stream: BlockStream, module: PrunableModule, index: torch.Tensor, kind: str, ridge: float,
    target: list[torch.Tensor] | None,
) -> tuple[str, torch.Tensor]:  # fmt: skip
    """Gather what the output projection sees, cut the decision, and set the projection's new parameter: (name, it)."""
    linear = prunable.linear(module.output)
    weight = linear.weight.data
    columns = rows(index, Segment(module.output, 1, 0, module.output_width)).to(weight.device)
    moments = _Mean() if kind == "bias" else _Moments(linear, columns, target)
    with Inputs(linear, moments.add):
        stream.run(module.block)
    if isinstance(moments, _Mean):
        removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        removed[columns] = False
        mean = moments.total / moments.tokens
        shift = (float64(weight[:, removed]) @ mean[removed.to(mean.device)]).to(weight)
        cut_unit(prunable, module, index)
        linear.bias = nn.Parameter(shift if linear.bias is None else linear.bias.data + shift, requires_grad=False)
        return f"{module.output}.bias", linear.bias.data
    solved = ridge_weight(moments.gram, moments.right, weight, columns, ridge).to(weight).contiguous()
    del moments
    cut_unit(prunable, module, index)
    linear.weight = nn.Parameter(solved, requires_grad=False)
    return f"{module.output}.weight", linear.weight.data


def _product(x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    """Inputs times the linear's weight, without its bias, float32."""
    return nn.functional.linear(x.float(), linear.weight.float())


def _keep_product(seen: list[torch.Tensor], linear: nn.Linear, x: torch.Tensor) -> None:
    seen.append(_product(x, linear))


class _Mean:
    """Running sum over the batches of one module's inputs, float64, (in,)."""

    def __init__(self) -> None:
        self.total: torch.Tensor = torch.zeros(())
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        self.tokens += len(x)
        self.total = self.total + float64(x.float().sum(0))


class _Moments:
    """Running sums over the batches of one module's inputs, float64: the two matrices of ridge_weight.

    target: the outputs to be met, batch by batch; None for those of these inputs under the linear's weight.
    """

    def __init__(self, linear: nn.Linear, columns: torch.Tensor, target: list[torch.Tensor] | None):
        self.linear, self.columns, self.target = linear, columns, target
        n, like = len(columns), float64(linear.weight.new_empty(0))
        self.gram, self.right = like.new_zeros(n, n), like.new_zeros(n, linear.out_features)
        self.batches = 0

    def add(self, x: torch.Tensor) -> None:
        kept = x[:, self.columns].float()
        goal = _product(x, self.linear) if self.target is None else self.target[self.batches]
        for start in range(0, len(self.columns), ROWS):
            part = kept[:, start : start + ROWS].T
            self.gram[start : start + ROWS] += (part @ kept).to(self.gram.device)
            self.right[start : start + ROWS] += (part @ goal).to(self.gram.device)
        self.batches += 1


def load_updates(prunable: PrunableModel, updates: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Put compensated parameters, by name, into an already cut model; ArtifactError if they are of another cut."""
    outputs = {module.output for module in prunable.modules}
    for name, value in updates.items():
        path, _, kind = name.rpartition(".")
        linear = prunable.linear(path) if path in outputs else None
        shapes = {"weight": linear.weight.shape, "bias": linear.weight.shape[:1]} if linear is not None else {}
        if linear is None or value.shape != shapes.get(kind):
            raise ArtifactError(
                f"updates.safetensors has {name} of shape {value.shape}, but this cut has {shapes.get(kind, 'none')}. "
                "Apply again."
            )
        tensor = torch.from_numpy(value).to(linear.weight)
        setattr(linear, kind, nn.Parameter(tensor, requires_grad=False))


def spread_updates(
    prunable: PrunableModel, kept: Mapping[str, npt.NDArray[np.int32]], updates: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Compensated parameters in the dense model's shapes: the kept columns in their places among zeros.

    Raises ConfigError where a linear of the family has no bias to take a compensated one.
    """
    spread = dict(updates)
    for module in prunable.modules:
        linear = prunable.linear(module.output)
        if (name := f"{module.output}.weight") in updates:
            index = torch.from_numpy(np.asarray(kept[module.decision.name], dtype=np.int64))
            columns = rows(index, Segment(module.output, 1, 0, module.output_width)).numpy()
            spread[name] = np.zeros((linear.out_features, linear.in_features), dtype=updates[name].dtype)
            spread[name][:, columns] = updates[name]
        if (name := f"{module.output}.bias") in updates and linear.bias is None:
            raise ConfigError(
                f"{name} of the compensation has no place in {prunable.config.model_type}'s own shapes. "
                "Export without --dense-shape, or compensate by ridge."
            )
    return spread
