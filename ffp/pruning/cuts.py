"""What a granularity means for a model: a search's candidates, the arrays that describe a cut, and the pruned model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy.typing as npt
import torch

from ffp.core.errors import ArtifactError
from ffp.core.problem import Allocation, PruningProblem
from ffp.models.prunable import PrunableModel, group_size
from ffp.models.sliced import SlicedModel, cut, mask
from ffp.pruning.compensation import check_updates, compensate, load_updates, scaled_outputs, spread_updates
from ffp.pruning.masked import MaskedModel
from ffp.pruning.pruners import find_pruner
from ffp.pruning.statistics import ModelStatistics
from ffp.pruning.structured import count_kept, kept_units, learned_scales
from ffp.pruning.unstructured import pack_masks, prune_weights, removals, unpack_masks

Arrays = Mapping[str, npt.NDArray[Any]]
Candidates = SlicedModel | MaskedModel


class Cut(Protocol):
    """How allocations of one granularity become models."""

    @property
    def keeps_scales(self) -> bool:
        """Whether scales that a search learned become part of the weights."""
        ...

    def candidates(self, stats: ModelStatistics) -> Candidates:
        """Returns the model of `stats`, ready to switch between allocations."""
        ...

    def make(
        self, problem: PruningProblem, allocation: Allocation, stats: ModelStatistics, windows: torch.Tensor, *,
        batch_tokens: int,
    ) -> tuple[Arrays, Arrays]:  # fmt: skip
        """Chooses what stays and computes new values; can prune the model of `stats` on the way.

        Args:
            problem: What the allocation answers.
            allocation: How many units each decision keeps, or which ones.
            stats: Statistics of the dense model.
            windows: Calibration tokens, (n, context) int64.
            batch_tokens: Tokens that pass a block at once.

        Returns:
            (masks, updates): what stays, and new values of kept parameters by name; empty if none changes.
        """
        ...

    def install(
        self, prunable: PrunableModel, problem: PruningProblem, masks: Arrays, updates: Arrays, *, source: object,
        dense_shape: bool = False,
    ) -> tuple[float, int]:  # fmt: skip
        """Prunes a dense model in place.

        Args:
            prunable: The dense model.
            problem: What the masks answer.
            masks: What make chose.
            updates: What make computed.
            source: What the masks were read from, for errors.
            dense_shape: Write zeros, also where weights could be removed physically.

        Returns:
            Sparsity of the decisions, and parameters left in the model.

        Raises:
            ArtifactError: The arrays do not fit the problem or the model, which stays as it was.
            ConfigError: The dense shapes have no place for a bias; the model stays as it was.
        """
        ...


def make_cut(granularity: str, *, score: str, compensation: str, pruner: str, compensated_search: bool = False) -> Cut:
    """Returns the cut of a granularity.

    Args:
        granularity: One of ffp.core.problem.GRANULARITIES.
        score: For "structured": one of ffp.pruning.scores.SCORES or ffp.pruning.orders.ORDERS.
        compensation: For "structured": "none", "bias", "ridge" or "ridge-dense".
        pruner: For the others: one of ffp.pruning.pruners.PRUNERS.
        compensated_search: For "structured": whether candidates of a search are compensated too.

    Raises:
        ConfigError: There is no such pruner.
    """
    if granularity == "structured":
        return StructuredCut(score, compensation, compensated_search)
    return WeightCut(granularity, pruner)


@dataclass(frozen=True)
class StructuredCut:
    """Removes heads and channels, the lowest scores first, and compensates for them."""

    score: str
    compensation: str
    compensated_search: bool = False

    @property
    def keeps_scales(self) -> bool:
        """Whether scales that a search learned become part of the weights: not where ridge solves for these anew."""
        return self.compensation in ("none", "bias")

    def candidates(self, stats: ModelStatistics) -> SlicedModel:
        """Sorts the model's units by the score, and refits their output projections where the search is compensated."""
        order = stats.unit_orders(self.score)
        refits = stats.refits(order) if self.compensated_search else None
        return SlicedModel(stats.prunable, order, refits, gram=stats.gram if stats.grams else None)

    def make(
        self, problem: PruningProblem, allocation: Allocation, stats: ModelStatistics, windows: torch.Tensor, *,
        batch_tokens: int,
    ) -> tuple[Arrays, Arrays]:  # fmt: skip
        """Returns the indices of kept units by decision, and new parameters of the output projections.

        Scales that a search learned are folded into their weights; a bias is then added for what was removed. Ridge
        solves for these weights anew, without the scales.
        """
        order = stats.unit_orders(self.score) if allocation.units is None else {}
        kept = kept_units(problem, allocation, order)
        scales = learned_scales(allocation) if self.keeps_scales else {}
        updates = scaled_outputs(stats.prunable, kept, scales)
        if self.compensation != "none":
            updates = compensate(
                stats.prunable, kept, windows, kind=self.compensation, batch_tokens=batch_tokens, scaled=updates
            )
        return kept, {name: tensor.float().cpu().numpy() for name, tensor in updates.items()}

    def install(
        self, prunable: PrunableModel, problem: PruningProblem, masks: Arrays, updates: Arrays, *, source: object,
        dense_shape: bool = False,
    ) -> tuple[float, int]:  # fmt: skip
        """Removes the other units, or zeroes them, and loads the updates."""
        keep = count_kept(problem, masks, source)
        check_updates(prunable, masks, updates)
        if not dense_shape:
            cut(prunable, masks)
            load_updates(prunable, updates)
            return problem.sparsity_of(keep), prunable.model_params()
        dense, spread = prunable.model_params(), spread_updates(prunable, masks, updates)
        mask(prunable, masks)
        load_updates(prunable, spread)
        return problem.sparsity_of(keep), dense - prunable.params_without(keep)


@dataclass(frozen=True)
class WeightCut:
    """Removes single weights, or N of every M, as the pruner chooses."""

    granularity: str
    pruner: str
    keeps_scales: ClassVar[bool] = False  # no search learns scales of single weights

    def __post_init__(self) -> None:
        find_pruner(self.pruner)

    def candidates(self, stats: ModelStatistics) -> MaskedModel:
        """Ranks the model's weights."""
        return MaskedModel(stats.prunable, granularity=self.granularity, pruner=self.pruner, sq_means=stats.sq_means)

    def make(
        self, problem: PruningProblem, allocation: Allocation, stats: ModelStatistics, windows: torch.Tensor, *,
        batch_tokens: int,
    ) -> tuple[Arrays, Arrays]:  # fmt: skip
        """Returns packed keep masks by parameter name, and the kept weights, row by row, where the pruner changed them.

        Prunes the model of `stats`.
        """
        prunable = stats.prunable
        masks = prune_weights(
            prunable, removals(prunable, self.granularity, allocation.keep), pruner=self.pruner,
            m=group_size(self.granularity), windows=windows, batch_tokens=batch_tokens, sq_means=stats.sq_means,
        )  # fmt: skip
        if not find_pruner(self.pruner).changes_kept:
            return pack_masks(masks), {}
        kept = {path: prunable.linear(path).weight.data[keep] for path, keep in masks.items()}
        return pack_masks(masks), {f"{path}.weight": values.float().cpu().numpy() for path, values in kept.items()}

    def install(
        self, prunable: PrunableModel, problem: PruningProblem, masks: Arrays, updates: Arrays, *, source: object,
        dense_shape: bool = False,
    ) -> tuple[float, int]:  # fmt: skip
        """Zeroes the other weights; `updates` holds the new values of kept weights, if any. The shapes stay."""
        kept = unpack_masks(prunable, masks, source)
        gone = sum(int((~keep).sum()) for keep in kept.values())
        if gone < problem.params_to_remove:
            raise ArtifactError(f"{source} removes {gone} weights, less than {problem.target} of them. Apply again.")
        for path, keep in kept.items():
            if (values := updates.get(f"{path}.weight")) is not None and len(values) != int(keep.sum()):
                raise ArtifactError(f"the updates beside {source} do not fit the mask of {path}. Apply again.")
        for path, keep in kept.items():
            weight = prunable.linear(path).weight.data
            keep = keep.to(weight.device)
            values = updates.get(f"{path}.weight")
            if values is None:
                weight.masked_fill_(~keep, 0)
            else:
                weight.zero_()[keep] = torch.from_numpy(values).to(weight)
        return gone / problem.total_params, prunable.model_params() - gone
