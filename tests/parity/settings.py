"""The options that a reference is started with."""

from __future__ import annotations

from dataclasses import dataclass

from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

METHODS = ("magnitude", "wanda", "sparsegpt", "owl", "flap")
PRUNERS = ("wanda", "magnitude", "sparsegpt")
STRUCTURES = ("AL-AM", "AL-MM", "UL-MM", "UL-UM")
METRICS = ("WIFV", "IFV", "WIFN")


@dataclass(frozen=True)
class Settings:
    """The references' options under our names; a method ignores those that it does not have.

    Attributes:
        method: One of METHODS.
        sparsity: Share of weights to remove, in (0, 1).
        prune_n: Weights to remove of every `prune_m` adjacent ones; 0 to remove a share instead.
        prune_m: Size of those groups; 0 where `prune_n` is.
        variant: Wanda's variant, which searches for a share of each row's summed score.
        block_size: Columns that SparseGPT prunes at once.
        damping: SparseGPT's damping, over the Hessian's mean diagonal.
        outlier_multiple: M of OWL.
        strength: lambda of OWL.
        pruner: What removes the weights under OWL, one of PRUNERS.
        special: OWL's N:M: a block that would save one weight of every M saves two.
        structure: FLAP's, one of STRUCTURES.
        metric: FLAP's, one of METRICS.
        remove_heads: Heads that FLAP removes from the whole model; read by UL-MM and AL-MM only.
    """

    method: str
    sparsity: float
    prune_n: int = 0
    prune_m: int = 0
    variant: bool = False
    block_size: int = 128
    damping: float = 0.01
    outlier_multiple: float = 5.0
    strength: float = 0.08
    pruner: str = "wanda"
    special: bool = False
    structure: str = "AL-AM"
    metric: str = "WIFV"
    remove_heads: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ConfigError(f"sparsity {self.sparsity} is outside (0, 1). Give the share of weights to remove.")
        if not 0 <= self.prune_n <= self.prune_m or bool(self.prune_n) != bool(self.prune_m):
            raise ConfigError(f"{self.prune_n} of every {self.prune_m} weights cannot go. Give N and M, 0 < N <= M.")
        if self.block_size < 1 or not self.damping > 0:
            raise ConfigError(
                f"SparseGPT cannot prune {self.block_size} columns at a time with damping {self.damping}. "
                "Give a block size from 1 up and a positive damping."
            )
        for option, known in (
            ("method", METHODS),
            ("pruner", PRUNERS),
            ("structure", STRUCTURES),
            ("metric", METRICS),
        ):
            if (value := getattr(self, option)) not in known:
                raise ConfigError(f"unknown {option} {value!r}: {did_you_mean(value, known)}")
