"""One streaming pass over the calibration text: moments of every linear's input, shared by every cell of the grid."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffp.models.adapter import Adapter
from ffp.models.placement import float64
from ffp.pruning.scores import SCORES, unit_order
from ffp.types import ArtifactError, LinearStats

log = logging.getLogger("ffp")


@dataclass(frozen=True)
class InputMoments:
    """Mean and mean square of each input feature of one linear over all calibration tokens, float64, (in,)."""

    mean: npt.NDArray[np.float64]
    sq_mean: npt.NDArray[np.float64]

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        return np.maximum(self.sq_mean - self.mean**2, 0.0)


class _Columns:
    """Sums over tokens of x and x^2, float32 within a batch; once for all linears in a row that are given one x."""

    def __init__(self) -> None:
        self._seen: Callable[[], torch.Tensor | None] = lambda: None
        self._sums: tuple[torch.Tensor, torch.Tensor]

    def of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._seen() is not x:
            rows = x.detach().flatten(0, -2).float()
            self._sums = float64(rows.sum(0)), float64(rows.square().sum(0))
            self._seen = weakref.ref(x)
        return self._sums


class _Accumulator:
    """One linear's sums of x and x^2, float64 across batches."""

    def __init__(self, columns: _Columns) -> None:
        self.columns = columns
        self.total: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def __call__(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        total, squares = self.columns.of(arguments[0])
        self.total, self.squares = self.total + total, self.squares + squares


@torch.no_grad()
def collect(adapter: Adapter, windows: torch.Tensor, *, batch_tokens: int) -> dict[str, InputMoments]:
    """Run the dense model over the calibration windows and return the input moments of every block linear, by path.

    windows: (n, context) int64. batch_tokens: tokens in one forward, at least one window. Memory: the model, one
    batch's activations, and a few vectors a linear. Sources: Wanda (||X_j||_2) and FLAP (Var X_j) need just these.
    """
    sums: dict[str, _Accumulator] = {}
    columns = _Columns()
    with ExitStack() as hooks:
        for block in range(len(adapter.blocks)):
            for path, _ in adapter.linears(block):
                sums[path] = _Accumulator(columns)
                hooks.callback(adapter.linear(path).register_forward_pre_hook(sums[path]).remove)
        batch = max(1, batch_tokens // windows.shape[1])
        for start in range(0, len(windows), batch):
            adapter.model.base_model(input_ids=windows[start : start + batch].to(adapter.model.device), use_cache=False)
            log.info("calibrate: %d/%d windows", min(start + batch, len(windows)), len(windows))
    n = windows.numel()
    return {
        path: InputMoments((acc.total / n).cpu().numpy(), (acc.squares / n).cpu().numpy())  # type: ignore[union-attr]
        for path, acc in sums.items()
    }


class BlockInfluence:
    """While it is open, sums the cosine between what enters and what leaves each block, token by token, in float32."""

    def __init__(self, adapter: Adapter):
        self._blocks = adapter.blocks
        self._cosines = np.zeros(len(adapter.blocks))
        self._tokens = np.zeros(len(adapter.blocks))
        self._hooks = ExitStack()

    def __enter__(self) -> BlockInfluence:
        for number, block in enumerate(self._blocks):
            hook = block.register_forward_hook(partial(self._see, number), with_kwargs=True)
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def _see(self, number: int, block: torch.nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        before = inputs[0] if inputs else keywords["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self._cosines[number] += float(float64(cosine).sum())
        self._tokens[number] += cosine.numel()

    def value(self) -> npt.NDArray[np.float64]:
        """(n_blocks,): 1 - the mean cosine. Source: Men et al., arXiv:2403.03853."""
        influence: npt.NDArray[np.float64] = 1 - self._cosines / self._tokens
        return influence


class Calibration:
    """CalibrationStats over a model and its moments; weights are handed out one linear at a time, as float32."""

    def __init__(
        self,
        adapter: Adapter,
        moments: Mapping[str, InputMoments],
        n_tokens: int,
        *,
        granularity: str = "structured",
        influence: npt.NDArray[np.float64] | None = None,
    ):
        self.adapter, self.moments, self.n_tokens = adapter, moments, n_tokens
        self._decisions = adapter.decisions(granularity)
        self._outputs = {unit.output for unit in adapter.units}
        self._influence = influence

    @property
    def n_blocks(self) -> int:
        return len(self.adapter.blocks)

    def linears(self, block: int) -> Iterator[LinearStats]:
        for path, module in self.adapter.linears(block):
            moments = self.moments[path]
            weight = self.adapter.linear(path).weight.detach().float().cpu().numpy()
            yield LinearStats(
                path, self._decisions[path], weight, moments.sq_mean, moments.variance, self.n_tokens,
                module=module.rpartition(".")[2], output=path in self._outputs,
            )  # fmt: skip

    @property
    def sq_means(self) -> dict[str, npt.NDArray[np.float64]]:
        """Mean square of each input feature, (in,), by the linear's path."""
        return {path: moments.sq_mean for path, moments in self.moments.items()}

    def block_influence(self) -> npt.NDArray[np.float64]:
        if self._influence is None or len(self._influence) != self.n_blocks:
            raise ArtifactError(
                "the calibration holds no influence of blocks: it is older than the methods that use them. "
                "Delete its folder and calibrate again."
            )
        return self._influence

    def orders(self, score: str) -> dict[str, npt.NDArray[np.int64]]:
        """For each decision its units from best to worst by a named score of the dense model."""
        orders = {}
        for unit in self.adapter.units:
            moments = self.moments[unit.output]
            columns = SCORES[score](
                self.adapter.linear(unit.output).weight.detach().float().cpu(),
                torch.from_numpy(moments.sq_mean),
                torch.from_numpy(moments.variance),
            )
            orders[unit.budget.name] = unit_order(columns, unit.output_width).numpy()
        return orders


def to_arrays(moments: Mapping[str, InputMoments]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of stats.safetensors."""
    means = {f"{path}.mean": m.mean for path, m in moments.items()}
    return {**means, **{f"{path}.sq_mean": m.sq_mean for path, m in moments.items()}}


def from_arrays(adapter: Adapter, arrays: Mapping[str, npt.NDArray[Any]], source: object) -> dict[str, InputMoments]:
    """The moments of every linear of this model; ArtifactError if they belong to another one."""
    moments = {}
    for block in range(len(adapter.blocks)):
        for path, _ in adapter.linears(block):
            mean, sq_mean = arrays.get(f"{path}.mean"), arrays.get(f"{path}.sq_mean")
            width = adapter.linear(path).in_features
            if mean is None or sq_mean is None or mean.shape != (width,) or sq_mean.shape != (width,):
                raise ArtifactError(f"{source} has no statistics of {path} with {width} inputs. Calibrate this model.")
            moments[path] = InputMoments(mean, sq_mean)
    return moments
