"""Calibration statistics of a model, as the methods and pruners see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffp.allocators.base import LinearStats
from ffp.core.errors import ArtifactError
from ffp.models.prunable import PrunableModel
from ffp.pruning.scores import SCORES, unit_order


@dataclass(frozen=True)
class InputMoments:
    """Mean and mean square of each input feature of one linear over all calibration tokens, float64, (in,)."""

    mean: npt.NDArray[np.float64]
    sq_mean: npt.NDArray[np.float64]

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        return np.maximum(self.sq_mean - self.mean**2, 0.0)


class Calibration:
    """CalibrationStats over a model and its moments; weights are handed out one linear at a time, as float32."""

    def __init__(
        self,
        prunable: PrunableModel,
        moments: Mapping[str, InputMoments],
        n_tokens: int,
        *,
        granularity: str = "structured",
        influence: npt.NDArray[np.float64] | None = None,
    ):
        self.prunable, self.moments, self.n_tokens = prunable, moments, n_tokens
        self._decisions = prunable.decisions(granularity)
        self._outputs = {module.output for module in prunable.modules}
        self._influence = influence

    @property
    def n_blocks(self) -> int:
        return len(self.prunable.blocks)

    def linears(self, block: int) -> Iterator[LinearStats]:
        for path, module in self.prunable.linears(block):
            moments = self.moments[path]
            weight = self.prunable.linear(path).weight.detach().float().cpu().numpy()
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
        for module in self.prunable.modules:
            moments = self.moments[module.output]
            columns = SCORES[score](
                self.prunable.linear(module.output).weight.detach().float().cpu(),
                torch.from_numpy(moments.sq_mean),
                torch.from_numpy(moments.variance),
            )
            orders[module.decision.name] = unit_order(columns, module.output_width).numpy()
        return orders


def to_arrays(moments: Mapping[str, InputMoments]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of stats.safetensors."""
    means = {f"{path}.mean": m.mean for path, m in moments.items()}
    return {**means, **{f"{path}.sq_mean": m.sq_mean for path, m in moments.items()}}


def from_arrays(prunable: PrunableModel, arrays: Mapping[str, npt.NDArray[Any]], source: object) -> dict[str, InputMoments]:
    """The moments of every linear of this model; ArtifactError if they belong to another one."""
    moments = {}
    for block in range(len(prunable.blocks)):
        for path, _ in prunable.linears(block):
            mean, sq_mean = arrays.get(f"{path}.mean"), arrays.get(f"{path}.sq_mean")
            width = prunable.linear(path).in_features
            if mean is None or sq_mean is None or mean.shape != (width,) or sq_mean.shape != (width,):
                raise ArtifactError(f"{source} has no statistics of {path} with {width} inputs. Calibrate this model.")
            moments[path] = InputMoments(mean, sq_mean)
    return moments
