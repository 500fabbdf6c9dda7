"""What a step cost. One meter around a step; what it includes is said here and nowhere else.

wall_s: from the start of the search to its end, model loading and calibration excluded (they have rows of their own).
A resumed search adds the seconds that its earlier attempts had spent on the evaluations it did not repeat.
peak_mem_bytes: largest resident set of the process (CPU), or the largest allocation on the device (CUDA).
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any


@dataclass
class CostMeter:
    """Context manager that measures a step; fields are final after the block.

    evaluations, n_tokens: set by whoever counts the work; selection_tokens: tokens forwarded for finalists,
    included in n_tokens; earlier_s: seconds of earlier attempts that a resumed step did not repeat.
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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self._start + self.earlier_s
        self.peak_mem_bytes = peak_memory()

    def as_dict(self) -> dict[str, Any]:
        """The figures, for a cost.json."""
        return asdict(self)


def peak_memory() -> int:
    """Bytes: the device's peak allocation where CUDA is in use, otherwise this process's peak resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
