"""What a step cost; this is the only place that says what is included."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class CostMeter:
    """Context manager that measures a step; fields are final after the block.

    Attributes:
        evaluations: Candidates scored; set by whoever counts the work, like the next three.
        n_tokens: Tokens forwarded.
        selection_tokens: Tokens forwarded for finalists, included in n_tokens.
        earlier_s: Seconds that earlier attempts spent on the evaluations that a resumed search did not repeat.
        wall_s: Seconds from the start of the step to its end, earlier_s included. Of a search: model loading and
            calibration are excluded, since they have rows of their own.
        peak_mem_bytes: Largest resident set of the process (CPU), or largest allocation on the device (CUDA).
    """

    evaluations: int = 0
    n_tokens: int = 0
    selection_tokens: int = 0
    earlier_s: float = 0.0
    wall_s: float = 0.0
    peak_mem_bytes: int = 0

    def __enter__(self) -> CostMeter:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.wall_s = time.perf_counter() - self._start + self.earlier_s
        self.peak_mem_bytes = peak_memory()

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures by name."""
        return asdict(self)


def peak_memory() -> int:
    """Returns bytes: the device's peak allocation where CUDA is in use, otherwise the process's peak resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
