"""The pruners of single weights: what each reads, which weights go first, and whether it changes those that stay.

Other modules know of a pruner only what this table says. A new one takes an entry here, and its name in `Pruner` of
ffp/config/grid.py. Free of torch at import, since `ffp verify` is.

A pruner compares weights within groups and removes equally many from each. The group is the whole matrix or an output
row; with n-of-M it is M adjacent weights of a row, whatever the pruner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

# (weight (out, in), mean square of each input (in,), None where the pruner reads nothing) -> scores (out, in), float32
WeightScore = Callable[["torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
# (linear, mean of x x^T (in, in), weights to remove, M of "n-of-M" or 0, the linear's path) -> keep mask (out, in);
# prunes the linear in place
Solver = Callable[["nn.Linear", "torch.Tensor", int, int, str], "torch.Tensor"]


def saliency(weight: torch.Tensor, sq_mean: torch.Tensor | None) -> torch.Tensor:
    """Returns |W_ij| * ||X_j||_2 up to a common factor, (out, in) float32; |W_ij| without `sq_mean`.

    Source: Sun et al., arXiv:2306.11695, equation 1.

    Args:
        weight: (out, in).
        sq_mean: Mean over tokens of x_j^2, (in,).
    """
    score = weight.abs().float()
    return score if sq_mean is None else score * sq_mean.sqrt().to(score)


def solve_by_sparsegpt(linear: nn.Linear, gram: torch.Tensor, remove: int, m: int, path: str) -> torch.Tensor:
    """Prunes a linear in place by SparseGPT; see Solver."""
    from ffp.pruning.sparsegpt import apply_sparsegpt, exactly

    return apply_sparsegpt(linear, gram, exactly(remove, linear.in_features), m, path)


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """How single weights are chosen.

    Attributes:
        reads: What it needs of the calibration text: "nothing"; "dense", the mean squares of the dense model's inputs;
            or "stream", the inputs of each block behind the blocks before it as they have been pruned.
        score: The lowest scores go. Searches rank by it, on the dense model's mean squares, also where `solve` prunes.
        whole_matrix: Weights of the whole matrix are compared with each other, otherwise those of an output row.
        solve: Chooses weights and changes those that stay, by the stream's Gram matrix. None: the lowest scores become
            zero, and what stays is unchanged.
    """

    reads: Literal["nothing", "dense", "stream"]
    score: WeightScore = saliency
    whole_matrix: bool = False
    solve: Solver | None = None

    def __post_init__(self) -> None:
        assert self.solve is None or self.reads == "stream", "only the stream has Gram matrices to solve by"

    @property
    def changes_kept(self) -> bool:
        """Whether the weights that stay get new values."""
        return self.solve is not None

    def grouped_scores(self, weight: torch.Tensor, sq_mean: torch.Tensor | None, m: int) -> torch.Tensor:
        """Returns scores as (groups, size): what is compared with each other.

        Args:
            weight: (out, in).
            sq_mean: Mean over tokens of x_j^2, (in,), on the weight's device; None where the pruner reads nothing.
            m: M of "n-of-M", 0 otherwise.
        """
        score = self.score(weight, sq_mean)
        if m:
            return score.reshape(-1, m)
        return score.reshape(1, -1) if self.whole_matrix else score


PRUNERS: Mapping[str, Pruner] = {
    "wanda": Pruner(reads="stream"),
    "wanda-dense": Pruner(reads="dense"),
    "magnitude": Pruner(reads="nothing", whole_matrix=True),
    "sparsegpt": Pruner(reads="stream", solve=solve_by_sparsegpt),
}


def find_pruner(name: str) -> Pruner:
    """Returns the pruner of this name; ConfigError, with near matches, if there is none."""
    if name not in PRUNERS:
        raise ConfigError(f"unknown pruner {name!r}: {did_you_mean(name, PRUNERS)}")
    return PRUNERS[name]
