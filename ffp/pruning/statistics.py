"""The calibration statistics of a model, as methods and pruners see them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffp.allocators.base import LinearStats
from ffp.core.errors import ArtifactError, ConfigError
from ffp.core.problem import FloatArray
from ffp.models.prunable import PrunableModel, PrunableModule
from ffp.models.refit import Refit
from ffp.pruning.moments import InputMoments
from ffp.pruning.orders import ORDERS
from ffp.pruning.scores import SCORES, unit_order

log = logging.getLogger("ffp")
Grams = Mapping[str, npt.NDArray[np.float32]]
BLOCK_INFLUENCE = "block_influence"  # among the arrays, beside "PATH.mean" and "PATH.sq_mean" of every linear


class ModelStatistics:
    """CalibrationStats of a model in memory; weights are handed out one linear at a time, as float32."""

    def __init__(
        self, prunable: PrunableModel, moments: Mapping[str, InputMoments], n_tokens: int, *,
        granularity: str = "structured", influence: FloatArray | None = None, grams: Grams | None = None,
    ):  # fmt: skip
        """Joins a dense model and what was measured of it.

        Args:
            prunable: The dense model.
            moments: Of every block linear's input, by path.
            n_tokens: Calibration tokens behind them.
            granularity: Which decisions the linears belong to.
            influence: Of the blocks, (n_blocks,); see measure.calibration.BlockInfluence.
            grams: E[x x^T] of the inputs of every output projection, (in, in) float32, by path; for orders and
                searches that need them.
        """
        self.prunable, self.moments, self.n_tokens, self.grams = prunable, moments, n_tokens, grams or {}
        self._decisions = prunable.decision_names(granularity)
        self._outputs = {module.output for module in prunable.modules}
        self._influence = influence

    def for_granularity(self, granularity: str) -> ModelStatistics:
        """Returns the same statistics with the decisions of another granularity."""
        return self.of(self.prunable, granularity)

    def of(self, prunable: PrunableModel, granularity: str = "structured") -> ModelStatistics:
        """Returns the same statistics of another copy of the model: weights are read, and pruned, in that one.

        Args:
            prunable: The dense model, loaded again or in other precision; the one that was measured may be pruned.
            granularity: Which decisions the linears belong to.

        Raises:
            ConfigError: It is another model.
        """
        for path in prunable.decision_names("structured"):
            width = prunable.linear(path).in_features
            if path not in self.moments or len(self.moments[path].mean) != width:
                raise ConfigError(f"the calibration knows no {path} with {width} inputs. Calibrate the model given.")
        return ModelStatistics(
            prunable, self.moments, self.n_tokens, granularity=granularity, influence=self._influence, grams=self.grams
        )

    @property
    def n_blocks(self) -> int:
        """Number of the model's blocks."""
        return len(self.prunable.blocks)

    def linears(self, block: int) -> Iterator[LinearStats]:
        """Yields the linears of one block in forward order."""
        for path, module in self.prunable.linears(block):
            moments = self.moments[path]
            yield LinearStats(
                name=path,
                decision=self._decisions[path],
                weight=self.prunable.linear(path).weight.detach().float().cpu().numpy(),
                input_sq_mean=moments.sq_mean,
                input_var=moments.variance,
                n_tokens=self.n_tokens,
                module=module.rpartition(".")[2],
                output=path in self._outputs,
            )

    @property
    def sq_means(self) -> dict[str, npt.NDArray[np.float64]]:
        """Mean square of each input feature, (in,), by the linear's path."""
        return {path: moments.sq_mean for path, moments in self.moments.items()}

    def block_influence(self) -> FloatArray:
        """Returns (n_blocks,): 1 - mean over tokens of the cosine between a block's input and output.

        Raises:
            ArtifactError: The statistics were read from a calibration that holds none.
        """
        if self._influence is None or len(self._influence) != self.n_blocks:
            raise ArtifactError(
                "the calibration holds no influence of blocks: it is older than the methods that use them. "
                "Delete its folder and calibrate again."
            )
        return self._influence

    def unit_orders(self, score: str) -> dict[str, npt.NDArray[np.int64]]:
        """Returns each decision's KV groups, heads or channels from best to worst, in bundles.

        Args:
            score: One of scores.SCORES or orders.ORDERS.

        Raises:
            ConfigError: The order needs Gram matrices, which these statistics lack.
        """
        orders = {}
        for module in self.prunable.modules:
            weight, moments = self.prunable.linear(module.output).weight.detach(), self.moments[module.output]
            if score in ORDERS:
                every = torch.arange(weight.shape[1], device=weight.device)
                order = ORDERS[score](weight, self.gram(module, every), module.output_width)
            else:
                sq_mean, variance = torch.from_numpy(moments.sq_mean), torch.from_numpy(moments.variance)
                order = unit_order(SCORES[score](weight.float().cpu(), sq_mean, variance), module.output_width)
            orders[module.decision.name] = module.bundled(order).numpy()
        return orders

    def refits(self, orders: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Refit]:
        """Returns by decision the weights that make up for removed units, in these orders; ConfigError as for gram."""
        found = {}
        for module in self.prunable.modules:
            weight, order = self.prunable.linear(module.output).weight.detach(), orders[module.decision.name]
            columns = module.output_columns(torch.from_numpy(order)).to(weight.device)
            found[module.decision.name] = Refit(weight[:, columns], self.gram(module, columns))
            log.info("refits: %s", module.decision.name)
        return found

    def gram(self, module: PrunableModule, columns: torch.Tensor) -> torch.Tensor:
        """Returns E[x x^T] of these inputs of a module's output projection, (n, n) float32, where `columns` lie.

        Raises:
            ConfigError: These statistics lack it.
        """
        if module.output not in self.grams:
            raise ConfigError(
                "the calibration holds no Gram matrices, which this order or search needs. Calibrate again."
            )
        return torch.from_numpy(self.grams[module.output]).to(columns.device)[columns][:, columns]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns everything but n_tokens as named arrays."""
        means = {f"{path}.mean": moments.mean for path, moments in self.moments.items()}
        squares = {f"{path}.sq_mean": moments.sq_mean for path, moments in self.moments.items()}
        influence = {} if self._influence is None else {BLOCK_INFLUENCE: self._influence}
        return {**means, **squares, **influence}

    @classmethod
    def from_arrays(
        cls, prunable: PrunableModel, arrays: Mapping[str, npt.NDArray[Any]], n_tokens: int, *,
        source: object, granularity: str = "structured", grams: Grams | None = None,
    ) -> ModelStatistics:  # fmt: skip
        """Returns the statistics that `to_arrays` gave; `source` names what the arrays were read from in errors.

        Raises:
            ArtifactError: They are of another model.
        """
        moments = {}
        for path in prunable.decision_names(granularity):
            mean, sq_mean = arrays.get(f"{path}.mean"), arrays.get(f"{path}.sq_mean")
            width = prunable.linear(path).in_features
            if mean is None or sq_mean is None or mean.shape != (width,) or sq_mean.shape != (width,):
                raise ArtifactError(f"{source} has no statistics of {path} with {width} inputs. Calibrate this model.")
            moments[path] = InputMoments(mean, sq_mean)
        influence = arrays.get(BLOCK_INFLUENCE)
        return cls(prunable, moments, n_tokens, granularity=granularity, influence=influence, grams=grams)
