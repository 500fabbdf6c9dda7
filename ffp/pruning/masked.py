"""One model in memory whose weights are ranked once, so that any allocation of single weights is a threshold.

Each weight keeps its rank in the order in which its group loses weights. A candidate zeroes the ranks below its quota:
one comparison and one copy of the matrices that changed, no sort and no stored masks. The masks are those of
ffp.pruning.weights.smallest, on the dense model's statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, FloatArray, IntArray
from ffp.models.gates import OutputSquares, watched
from ffp.models.placement import float64
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
        self._pruner, self._sq_means = find_pruner(pruner), sq_means
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

    @contextmanager
    def output_squares(self) -> Iterator[dict[str, OutputSquares]]:
        """Makes the model dense; a backward pass fills the mean squares of the gradients at every linear's outputs.

        Yields:
            The sums by the linear's path, in the problem's order.

        Raises:
            ConfigError: A decision spans several linears.
        """
        if self.granularity != "unstructured":
            raise ConfigError("costs of removals are known of units and of single weights only. Take another start.")
        for path in (path for path, removed in self._removed.items() if removed):
            self.prunable.linear(path).weight.data.copy_(self._full[path])
            self._removed[path] = 0
        squares = {path: OutputSquares() for path in self._removed}
        with watched(self.prunable, squares.items()):
            yield squares

    def removal_costs(
        self, squares: Mapping[str, OutputSquares], n_tokens: int, kept: Sequence[IntArray]
    ) -> list[FloatArray]:
        """Returns what removals of single weights cost, by the diagonal of the Kronecker-factored Fisher information.

        A weight that leaves costs w_ij^2 S_ii G_jj / 2, with G_jj the mean square of its input and S_ii that of the
        gradient at its output. What weights have in common is neglected, and so are new values of kept weights.

        Args:
            squares: From output_squares, after a backward pass of the summed token losses.
            n_tokens: Tokens in that sum.
            kept: Of each linear, the numbers of kept weights that are asked for.

        Returns:
            Of each linear, nats per token for these numbers; between whole quotas of its groups on a straight line.
        """
        found = []
        for (path, seen), counts in zip(squares.items(), kept, strict=True):
            weight, rank = self._full[path], self._rank[path]
            inputs = torch.from_numpy(self._sq_means[path]).to(weight.device)
            errors = float64(weight).square() * seen.total.to(weight.device)[:, None] * inputs / (2 * n_tokens)
            by_rank = torch.bincount(rank.flatten().long(), weights=errors.flatten(), minlength=rank.shape[1])
            costs = np.append(0.0, by_rank.cumsum(0).cpu().numpy())
            found.append(np.interp((weight.numel() - counts) / len(rank), np.arange(len(costs)), costs))
        return found

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
