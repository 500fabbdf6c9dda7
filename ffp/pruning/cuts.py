"""What a granularity means to a model: candidates of a search, the files of a cut, and the pruned model they make.

The steps know nothing of it: they ask for the cut of a cell and hand its arrays from file to file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError
from ffp.core.problem import Allocation, PruningProblem
from ffp.models.prunable import PrunableModel, group_size
from ffp.models.sliced import SlicedModel, cut, mask
from ffp.pruning.compensation import compensate, load_updates, spread_updates
from ffp.pruning.masked import MaskedModel
from ffp.pruning.statistics import Calibration
from ffp.pruning.structured import count_kept, kept_units
from ffp.pruning.unstructured import pack, prune, removals, unpack

Arrays = Mapping[str, Any]


class Cut(Protocol):
    """How allocations of one granularity become models."""

    def candidates(self, stats: Calibration) -> SlicedModel | MaskedModel:
        """The model of `stats`, ready to switch between allocations."""
        ...

    def make(
        self, problem: PruningProblem, allocation: Allocation, stats: Calibration, windows: torch.Tensor, batch: int
    ) -> tuple[Arrays, Arrays]:
        """The arrays of masks.safetensors and of updates.safetensors; can prune the model of `stats` on the way.

        windows: calibration tokens, (n, context). batch: tokens that pass a block at once.
        """
        ...

    def install(
        self, prunable: PrunableModel, problem: PruningProblem, masks: Arrays, updates: Arrays, source: object, *,
        dense_shape: bool = False,
    ) -> tuple[float, int]:  # fmt: skip
        """Prune a dense model by the arrays of a cut: (realised sparsity of the units, parameters left in the model).

        source: what the masks were read from, for errors. dense_shape: zeros even where weights could be cut away.
        """
        ...


def cut_of(experiment: Experiment, cell: Cell) -> Cut:
    """The cut that a cell's granularity and settings ask for."""
    if cell.granularity == "structured":
        return StructuredCut(experiment.score(cell.method), experiment.compensation(cell.method))
    return WeightCut(cell.granularity, experiment.pruner(cell.method))


@dataclass(frozen=True)
class StructuredCut:
    """Heads and channels. score: which go first. compensation: what follows."""

    score: str
    compensation: str

    def candidates(self, stats: Calibration) -> SlicedModel:
        return SlicedModel(stats.prunable, stats.orders(self.score))

    def make(
        self, problem: PruningProblem, allocation: Allocation, stats: Calibration, windows: torch.Tensor, batch: int
    ) -> tuple[Arrays, Arrays]:
        """Indices of the kept units by decision; new parameters of the output projections where compensated."""
        kept = kept_units(problem, allocation, stats.orders(self.score))
        updates: dict[str, torch.Tensor] = {}
        if self.compensation != "none":
            updates = compensate(stats.prunable, kept, windows, kind=self.compensation, batch_tokens=batch)
        return kept, {name: tensor.float().cpu().numpy() for name, tensor in updates.items()}

    def install(
        self, prunable: PrunableModel, problem: PruningProblem, masks: Arrays, updates: Arrays, source: object, *,
        dense_shape: bool = False,
    ) -> tuple[float, int]:  # fmt: skip
        keep = count_kept(problem, masks, source)
        if not dense_shape:
            cut(prunable, masks)
            load_updates(prunable, updates)
            return problem.sparsity_of(keep), prunable.model_params()
        dense = prunable.model_params()
        mask(prunable, masks)
        load_updates(prunable, spread_updates(prunable, masks, updates))
        return problem.sparsity_of(keep), dense - int(np.dot(problem.n_units - keep, problem.params_per_unit))


@dataclass(frozen=True)
class WeightCut:
    """Single weights, or N of every M. pruner: which go, and what happens to the others."""

    granularity: str
    pruner: str

    def candidates(self, stats: Calibration) -> MaskedModel:
        return MaskedModel(stats.prunable, granularity=self.granularity, pruner=self.pruner, sq_means=stats.sq_means)

    def make(
        self, problem: PruningProblem, allocation: Allocation, stats: Calibration, windows: torch.Tensor, batch: int
    ) -> tuple[Arrays, Arrays]:
        """Packed keep masks by parameter name; the kept weights, row by row, where the pruner changed them."""
        prunable = stats.prunable
        remove = removals(prunable, self.granularity, allocation.keep)
        masks = prune(
            prunable, remove, pruner=self.pruner, m=group_size(self.granularity), windows=windows, batch_tokens=batch,
            sq_means=stats.sq_means,
        )  # fmt: skip
        if self.pruner != "sparsegpt":
            return pack(masks), {}
        kept = {path: prunable.linear(path).weight.data[keep] for path, keep in masks.items()}
        return pack(masks), {f"{path}.weight": values.float().cpu().numpy() for path, values in kept.items()}

    def install(
        self, prunable: PrunableModel, problem: PruningProblem, masks: Arrays, updates: Arrays, source: object, *,
        dense_shape: bool = False,
    ) -> tuple[float, int]:  # fmt: skip
        """The shapes stay in either case; what a kept weight's value is says `updates`, if there is one."""
        kept = unpack(prunable, masks, source)
        gone = sum(int((~keep).sum()) for keep in kept.values())
        if gone / problem.total_params < problem.target - 1e-12:
            raise ArtifactError(f"{source} removes {gone} weights, less than {problem.target} of them. Apply again.")
        for path, keep in kept.items():
            weight = prunable.linear(path).weight.data
            keep = keep.to(weight.device)
            values = updates.get(f"{path}.weight")
            if values is None:
                weight.masked_fill_(~keep, 0)
            elif len(values) == int(keep.sum()):
                weight.zero_()[keep] = torch.from_numpy(values).to(weight)
            else:
                raise ArtifactError(f"the updates beside {source} do not fit the mask of {path}. Apply again.")
        return gone / problem.total_params, prunable.model_params() - gone
