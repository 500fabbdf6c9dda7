"""Compensation: new values for the kept part of each output projection, which make up for removed units.

Works block by block, attention then FFN, on the stream of the model as it has been pruned and compensated so far, so
that any allocation can be compensated. `bias` adds the mean of what was removed (An et al., arXiv:2312.11983); `ridge`
solves for new weights of the kept columns (Yuan et al., arXiv:2511.18977, section on calibration).
Departs: the ridge is relative to the Gram matrix's mean diagonal, where the published 0.9 is absolute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffp.core.errors import ArtifactError, ConfigError
from ffp.models.placement import float64, replacement_block
from ffp.models.prunable import PrunableModel, PrunableModule
from ffp.models.refit import RIDGE
from ffp.models.sliced import cut_module, segments_by_linear
from ffp.models.stream import BlockStream, watch_inputs
from ffp.pruning.moments import InputSums, add_product

log = logging.getLogger("ffp")
COLUMNS = 256  # that are multiplied or added at once, which bounds the temporary product or sum


def ridge_weight(
    gram: torch.Tensor, right: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, ridge: float
) -> torch.Tensor:
    """Solves for new weights of the kept columns; overwrites `gram` and `right`.

    Minimises |X_K W'^T - T|^2 + alpha |W' - W_K|^2 with alpha = ridge * mean diagonal of X_K^T X_K, whose solution is
    W' = W_K + ((X_K^T X_K + alpha I)^-1 X_K^T R)^T with R = T - X_K W_K^T. T are the outputs to be met: where they are
    those of the same stream under the whole weight, R = X_P W_P^T, what the removed columns gave.

    Args:
        gram: X_K^T X_K, (n_kept, n_kept) float64; what lies below the diagonal is not read.
        right: X_K^T R, (n_kept, out) float64.
        weight: W, (out, in).
        columns: Kept columns, (n_kept,) int64.
        ridge: Relative strength of the ridge, above 0.

    Returns:
        W', (out, n_kept) float64.
    """
    if len(columns) == 0:
        return right.T
    alpha = max(ridge * float(gram.diagonal().mean()), 1e-30)
    gram.diagonal().add_(alpha)
    factor = torch.linalg.cholesky(gram.mT, out=gram.mT)  # symmetric: in LAPACK's order, so that it is done in place
    half = torch.linalg.solve_triangular(factor, right, upper=False, out=right)
    solved: torch.Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True, out=right)
    for rows, part in zip(torch.split(solved.mT, COLUMNS), torch.split(weight, COLUMNS), strict=True):
        rows.add_(part[:, columns].to(rows))
    return solved.mT


@torch.no_grad()
def compensate(
    prunable: PrunableModel, kept: Mapping[str, Sequence[int] | npt.NDArray[Any]], windows: torch.Tensor, *,
    kind: str, batch_tokens: int, ridge: float = RIDGE, scaled: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Computes new parameters of the output projections of the model cut to `kept`; leaves the model as it is.

    Memory: hidden states of the windows (twice for ridge-dense, and the targets of one block), one block, and one
    module's sums.

    Args:
        prunable: The dense model.
        kept: By decision, the KV groups or channels that stay, ascending.
        windows: Calibration tokens, (n, context) int64.
        kind: "bias", "ridge" (target: the pruned stream) or "ridge-dense" (target: the dense stream's outputs, so
            that later modules also correct earlier errors).
        batch_tokens: Tokens that pass a block at once.
        ridge: See ridge_weight.
        scaled: From scaled_outputs, for "bias": kept weights before the bias is added. Ridge solves for all of them.

    Returns:
        Tensors on the CPU by parameter name ("...o_proj.weight"), to be loaded after an ordinary cut.

    Raises:
        ConfigError: Numbers of the pruned model overflow.
    """
    stream = BlockStream(prunable, windows, batch_tokens=batch_tokens)
    dense = [hidden.clone() for hidden in stream.hidden] if kind == "ridge-dense" else None
    updates = dict(scaled or {})
    for block in range(len(prunable.blocks)):
        targets: dict[str, list[torch.Tensor]] = {}
        with replacement_block(prunable.blocks, block, prunable.model.config):
            if dense is not None:
                dense = _advance_dense(prunable, stream, block, dense, targets)
            for module in (module for module in prunable.modules if module.block == block):
                index = torch.as_tensor(np.asarray(kept[module.decision.name]), dtype=torch.int64)
                if dense is not None or len(index) < module.n_indices:  # something is missing
                    if kind == "bias":
                        solve = partial(_compensate_by_bias, prunable, stream, module, index)
                    else:
                        target = targets.pop(module.output, None)
                        solve = partial(_compensate_by_ridge, prunable, stream, module, index, ridge, target)
                    updates |= _finite(solve, module, stream.hidden[0].dtype)
                if (weight := (scaled or {}).get(f"{module.output}.weight")) is not None:
                    linear = prunable.linear(module.output)
                    linear.weight = nn.Parameter(weight.to(linear.weight), requires_grad=False)
            stream.advance(block)
        log.info("compensate: block %d/%d", block + 1, len(prunable.blocks))
    return updates


def _finite(
    solve: Callable[[], tuple[str, torch.Tensor]], module: PrunableModule, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Returns a parameter by its name on the CPU, or raises ConfigError where the stream before it overflows."""
    try:
        name, new = solve()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of Gram matrices that are not finite
        new = torch.tensor(torch.nan)
    if not new.isfinite().all():
        raise ConfigError(
            f"numbers of the pruned model overflow in {str(dtype).removeprefix('torch.')} at {module.output}, so that "
            "nothing can make up for what is gone. Use dtype bfloat16 or float32, a lower sparsity or no compensation."
        )
    return {name: new.cpu()}


def _advance_dense(
    prunable: PrunableModel, stream: BlockStream, block: int, dense: list[torch.Tensor],
    targets: dict[str, list[torch.Tensor]],
) -> list[torch.Tensor]:  # fmt: skip
    """Advances the dense stream through a dense block; keeps its output projections' outputs in `targets`, by path."""
    pruned, stream.hidden = stream.hidden, dense
    with ExitStack() as hooks:
        for module in (module for module in prunable.modules if module.block == block):
            linear = prunable.linear(module.output)
            keep = partial(_keep_product, targets.setdefault(module.output, []), linear)
            hooks.enter_context(watch_inputs(linear, keep))
        stream.advance(block)
    dense, stream.hidden = stream.hidden, pruned
    return dense


def _compensate_by_bias(
    prunable: PrunableModel, stream: BlockStream, module: PrunableModule, kept: torch.Tensor
) -> tuple[str, torch.Tensor]:
    """Cuts the module and adds what the removed inputs gave on average to its bias; returns its name and the bias."""
    linear = prunable.linear(module.output)
    weight, sums = linear.weight.data, InputSums("mean")
    stream.feed(module.block, linear, sums.add)
    removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    removed[module.output_columns(kept).to(weight.device)] = False
    mean = sums.mean
    shift = (float64(weight[:, removed]) @ mean[removed.to(mean.device)]).to(weight)
    cut_module(prunable, module, kept)
    linear.bias = nn.Parameter(shift if linear.bias is None else linear.bias.data + shift, requires_grad=False)
    return f"{module.output}.bias", linear.bias.data


def _compensate_by_ridge(
    prunable: PrunableModel, stream: BlockStream, module: PrunableModule, kept: torch.Tensor, ridge: float,
    target: list[torch.Tensor] | None,
) -> tuple[str, torch.Tensor]:  # fmt: skip
    """Cuts the module and solves for its output projection's weight; returns the parameter's name and the weight.

    target: the outputs to be met, batch by batch; None for those of the stream's inputs under the whole weight.
    """
    linear = prunable.linear(module.output)
    columns = module.output_columns(kept).to(linear.weight.device)
    solved = _solve(stream, linear, module.block, columns, ridge, target)
    cut_module(prunable, module, kept)
    linear.weight = nn.Parameter(solved, requires_grad=False)
    return f"{module.output}.weight", linear.weight.data


def _solve(
    stream: BlockStream, linear: nn.Linear, block: int, columns: torch.Tensor, ridge: float,
    target: list[torch.Tensor] | None,
) -> torch.Tensor:  # fmt: skip
    """The ridge's weight, in the precision of the linear's; what it is made of is freed when it returns."""
    weight, n = linear.weight.data, len(columns)
    like = float64(weight.new_empty(0))
    gram, right = like.new_zeros(n, n), like.new_zeros(n, linear.out_features)
    removed = torch.ones(linear.in_features, dtype=torch.bool, device=weight.device)
    removed[columns] = False
    part = weight[:, removed if target is None else columns].float()
    targets = iter(target or ())

    def add(x: torch.Tensor) -> None:
        x_kept = x[:, columns].float()
        if target is None:
            missing = nn.functional.linear(x[:, removed].float(), part)
        else:
            missing = next(targets) - nn.functional.linear(x_kept, part)
        add_product(gram, x_kept, x_kept, columns=COLUMNS, upper=True)
        add_product(right, x_kept, missing, columns=COLUMNS)

    stream.feed(block, linear, add)
    solved = ridge_weight(gram, right, weight, columns, ridge)
    return solved.to(weight, memory_format=torch.contiguous_format)


def _keep_product(products: list[torch.Tensor], linear: nn.Linear, x: torch.Tensor) -> None:
    """Keeps inputs times the linear's weight, without its bias, float32."""
    products.append(nn.functional.linear(x.float(), linear.weight.float()))


@torch.no_grad()
def scaled_outputs(
    prunable: PrunableModel, kept: Mapping[str, npt.NDArray[Any]], scales: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, torch.Tensor]:
    """Returns new weights of the output projections of the model cut to `kept`, each unit's columns times its scale.

    Args:
        prunable: The dense model.
        kept: By decision, the KV groups or channels that stay, ascending.
        scales: By decision, their scales in the same order; decisions without any stay as they are.
    """
    updates = {}
    for module in (module for module in prunable.modules if module.decision.name in scales):
        name, weight = module.decision.name, prunable.linear(module.output).weight
        columns = module.output_columns(torch.as_tensor(kept[name], dtype=torch.int64)).to(weight.device)
        scale = torch.from_numpy(scales[name]).repeat_interleave(module.output_width).to(weight.device)
        updates[f"{module.output}.weight"] = (weight[:, columns].float() * scale).to(weight).cpu()
    return updates


def load_updates(
    prunable: PrunableModel, updates: Mapping[str, npt.NDArray[np.float32]], *, source: object = "updates.safetensors"
) -> None:
    """Puts new parameters of the blocks' linears, by name, into a model that was cut.

    Args:
        prunable: The cut model.
        updates: New weights, and biases, which a linear may have lacked so far.
        source: What they were read from, for errors.

    Raises:
        ArtifactError: They are of another cut.
    """
    shapes = {path: tuple(prunable.linear(path).weight.shape) for path in prunable.decision_names("structured")}
    _check_shapes(shapes, updates, source)
    for name, value in updates.items():
        path, _, kind = name.rpartition(".")
        linear = prunable.linear(path)
        tensor = torch.from_numpy(value).to(linear.weight)
        setattr(linear, kind, nn.Parameter(tensor, requires_grad=False))


def check_updates(
    prunable: PrunableModel, kept: Mapping[str, npt.NDArray[Any]], updates: Mapping[str, npt.NDArray[np.float32]], *,
    source: object = "updates.safetensors",
) -> None:  # fmt: skip
    """Raises ArtifactError where new parameters are not those of a dense model's cut to `kept`; see load_updates."""
    shapes = {}
    for module in prunable.modules:
        units = torch.from_numpy(np.asarray(kept[module.decision.name], dtype=np.int64))
        for path, segments in segments_by_linear(module).items():
            shape = list(prunable.linear(path).weight.shape)
            shape[segments[0].axis] = sum(len(segment.indices(units)) for segment in segments)
            shapes[path] = tuple(shape)
    _check_shapes(shapes, updates, source)


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]], updates: Mapping[str, npt.NDArray[np.float32]], source: object
) -> None:
    """shapes: of the weights of all linears that can have new parameters, by path."""
    for name, value in updates.items():
        path, _, kind = name.rpartition(".")
        weight = shapes.get(path, ())
        expected = {"weight": weight, "bias": weight[:1]}.get(kind) or None
        if value.shape != expected:
            raise ArtifactError(
                f"{source} has {name} of shape {value.shape}, but this cut has {expected or 'none'}. "
                "Run the rule that makes it again."
            )


def spread_updates(
    prunable: PrunableModel, kept: Mapping[str, npt.NDArray[Any]], updates: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Returns new parameters in the dense model's shapes: the kept rows and columns in their places among zeros.

    Raises:
        ConfigError: A linear of the family has no bias to hold a compensated one.
    """
    spread = dict(updates)
    for module in prunable.modules:
        units = torch.from_numpy(np.asarray(kept[module.decision.name], dtype=np.int64))
        for path, segments in segments_by_linear(module).items():
            if (name := f"{path}.weight") in updates:
                linear = prunable.linear(path)
                index = torch.cat([segment.indices(units) for segment in segments]).numpy()
                spread[name] = np.zeros((linear.out_features, linear.in_features), dtype=updates[name].dtype)
                spread[name][index if segments[0].axis == 0 else (slice(None), index)] = updates[name]
        if (name := f"{module.output}.bias") in updates and prunable.linear(module.output).bias is None:
            raise ConfigError(
                f"{name} of the compensation has no place in {prunable.config.model_type}'s own shapes. "
                "Export in another format than dense-shape, or compensate by ridge."
            )
    return spread
