"""One model in memory whose weights are ranked once, so that any allocation of single weights is a threshold.

Each weight keeps its rank in the order in which its group loses weights. A candidate zeroes the ranks below its quota:
one comparison and one copy of the matrices that changed, no sort and no stored masks. The masks are those of
ffp.pruning.weights.smallest, on the dense model's statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ffp.core.problem import Allocation
from ffp.models.prunable import PrunableModel, group_size
from ffp.pruning.pruners import find_pruner
from ffp.pruning.unstructured import removals
from ffp.pruning.weights import removal_rank


class MaskedModel:
    """A model of which any number of the least salient weights can be switched off, matrix by matrix.

    Memory: the weights twice, and one to four bytes each for the ranks.
    """

    @torch.no_grad()
    def __init__(
        self, prunable: PrunableModel, *, granularity: str, pruner: str,
        sq_means: Mapping[str, npt.NDArray[np.float64]],
    ):  # fmt: skip
        """Ranks all weights.

        Args:
            prunable: The dense model.
            granularity: "unstructured", "n-of-4" or "n-of-8".
            pruner: One of ffp.pruning.pruners.PRUNERS; its `score` ranks the weights.
            sq_means: Mean square of each input feature, (in,), by the linear's path.
        """
        self.prunable, self.model, self.granularity = prunable, prunable.model, granularity
        self._pruner = find_pruner(pruner)
        self._full: dict[str, torch.Tensor] = {}
        self._rank: dict[str, torch.Tensor] = {}
        self._norms: dict[str, torch.Tensor | None] = {}
        self._removed = dict.fromkeys(prunable.decision_names(granularity), 0)
        for path in self._removed:
            linear = prunable.linear(path)
            self._full[path] = linear.weight.data
            known = None
            if self._pruner.reads != "nothing":
                known = torch.from_numpy(sq_means[path]).to(linear.weight.device)
            self._norms[path] = known
            self._rank[path] = removal_rank(self._scores(path))
            linear.weight.data = linear.weight.data.clone()

    def set_allocation(self, allocation: Allocation) -> None:
        """Switches to an allocation of this model's problem."""
        self.set_keep(allocation.keep)

    @torch.no_grad()
    def set_keep(self, keep: Sequence[int]) -> None:
        """Keeps so many units of each decision, in the problem's order; only matrices that change cost time."""
        for path, remove in removals(self.prunable, self.granularity, keep).items():
            if remove != self._removed[path]:
                gone = self._below(path, remove).view(self._full[path].shape)
                self.prunable.linear(path).weight.data.copy_(self._full[path]).masked_fill_(gone, 0)
                self._removed[path] = remove

    def restore(self) -> None:
        """Makes the model dense again, in its own weights; this object cannot be used afterwards."""
        for path, weight in self._full.items():
            self.prunable.linear(path).weight.data = weight

    def _scores(self, path: str) -> torch.Tensor:
        return self._pruner.grouped_scores(self._full[path], self._norms[path], group_size(self.granularity))

    def _below(self, path: str, remove: int) -> torch.Tensor:
        """Gives the mask of ffp.pruning.weights.smallest, (groups, size), from the ranks."""
        rank = self._rank[path]
        quota, extra = divmod(remove, len(rank))
        gone = rank < quota
        if extra:
            column = (rank == quota).int().argmax(1, keepdim=True)
            rows = self._scores(path).gather(1, column).flatten().argsort(stable=True)[:extra]
            gone[rows, column.flatten()[rows]] = True
        return gone
