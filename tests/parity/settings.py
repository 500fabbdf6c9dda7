"""What a reference is started with."""

from __future__ import annotations

from dataclasses import dataclass

from ffp.core.errors import ConfigError

METHODS = ("magnitude", "wanda", "sparsegpt", "owl", "flap")
PRUNERS = ("wanda", "magnitude", "sparsegpt")
STRUCTURES = ("AL-AM", "AL-MM", "UL-MM", "UL-UM")
METRICS = ("WIFV", "IFV", "WIFN")


@dataclass(frozen=True)
class Settings:
    """The references' options under the names of this experiment; each is looked at by the methods that have it.

    sparsity: share of weights to remove, in (0, 1). prune_n, prune_m: remove n of every m weights instead (0: do not).
    variant: Wanda's search for a share of every row's summed score. block_size, damping: of SparseGPT.
    outlier_threshold, strength: M and lambda of OWL; pruner: what removes the weights there; special: of its N:M, a
    block that would lose one of M less loses two less. structure, metric, remove_heads: of FLAP; the last counts heads
    of the whole model and matters to UL-MM and AL-MM only.
    """

    method: str
    sparsity: float
    prune_n: int = 0
    prune_m: int = 0
    variant: bool = False
    block_size: int = 128
    damping: float = 0.01
    outlier_threshold: float = 5.0
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
        for option, value, known in (
            ("method", self.method, METHODS),
            ("pruner", self.pruner, PRUNERS),
            ("structure", self.structure, STRUCTURES),
            ("metric", self.metric, METRICS),
        ):
            if value not in known:
                raise ConfigError(f"{option} {value!r} is none of {', '.join(known)}. Give one of them.")
