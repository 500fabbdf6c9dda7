"""The parts of `ffp prune` in their order, with what each took and how much time is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ffp.allocators.base import Search
from ffp.api import Windows
from ffp.config.pruning import PruneSettings
from ffp.pipeline.training_plan import training_tokens

log = logging.getLogger("ffp")
T = TypeVar("T")
TASK_TOKENS = 100_000  # of a set of tasks: a guess, for the time left


@dataclass
class Phases:
    """The parts of a run.

    Attributes:
        tokens: What each part forwards, in tokens of a forward pass; the time left is estimated from them.
        seconds: What the parts so far took.
    """

    tokens: Mapping[str, float]
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, action: Callable[[], T]) -> T:
        """Announces a part, runs it and takes its time."""
        parts, number = list(self.tokens), len(self.seconds)
        log.info("[%d/%d] %s%s", number + 1, len(parts), name, self._left(parts[:number], parts[number:]))
        started = time.perf_counter()
        result = action()
        self.seconds[name] = time.perf_counter() - started
        return result

    def _left(self, done: list[str], ahead: list[str]) -> str:
        """How long the parts ahead take at the speed of those that are done."""
        if not done:
            return ""
        rate = sum(self.seconds.values()) / sum(self.tokens[part] for part in done)
        minutes = rate * sum(self.tokens[part] for part in ahead) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1.5 else ", about a minute left"


def phase_tokens(
    windows: Windows, test: torch.Tensor | None, settings: PruneSettings, *, tasks: bool
) -> dict[str, float]:
    """Returns what each part of a run forwards; compensation passes the calibration text through a block twice.

    Args:
        windows: Windows of the texts.
        test: Windows of the test text, if perplexity is measured.
        settings: What is asked.
        tasks: Whether tasks are scored.
    """
    sizes, search = {name: ids.numel() for name, ids in windows.items()}, settings.search

    def measured(name: str) -> dict[str, float]:
        found: dict[str, float] = {} if test is None else {f"evaluate the {name} model": test.numel()}
        found |= {f"score the {name} model on tasks": TASK_TOKENS} if tasks else {}
        return found

    recover, last = settings.recover, measured("pruned")
    if recover.wanted:
        before = {} if test is None else {"evaluate the pruned model": test.numel()}
        last = {**before, "recover": training_tokens(recover), **measured("recovered")}
    allocation = 1.0
    if isinstance(settings.method, Search):
        scored = search.finalists + len(search.checkpoints)
        allocation = search.budget().tokens(search.context) + scored * sizes["selection"]
    return {
        "calibrate": sum(sizes.values()),
        **measured("dense"),
        "allocate": allocation,
        "prune": 2 * sizes["calibration"],
        **last,
    }
