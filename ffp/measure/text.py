"""A text that allocations are rewarded on, and the reward of losses on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ffp.core.problem import FloatArray

LARGEST_GAP = 50.0  # nats per token; beyond it, and where a loss is not finite, rewards are bounded
REWARD_FLOOR = math.exp(-LARGEST_GAP)


@dataclass(frozen=True, eq=False)
class Text:
    """Token windows of one text and the dense model's losses.

    Attributes:
        name: The text's name, "search" or "selection"; journal keys begin with it.
        windows: Token ids, (n, context) int64.
        dense_loss: Mean loss of each window, (n,), nats per token.
    """

    name: str
    windows: torch.Tensor
    dense_loss: FloatArray

    @property
    def context(self) -> int:
        """Tokens of a window."""
        return int(self.windows.shape[1])


def reward_of(text: Text, windows: Sequence[int], losses: Sequence[float]) -> float:
    """Returns exp(dense loss - pruned loss) over windows; a loss that is not finite gives the floor, and no error."""
    gap = float(np.mean(text.dense_loss[list(windows)]) - np.mean(losses))
    return max(math.exp(min(gap, LARGEST_GAP)), REWARD_FLOOR) if math.isfinite(gap) else REWARD_FLOOR
