"""Adam on one number for each unit. A search imports it when it runs, since it needs torch.

Everything is float64, see ffp/allocators/ppo.py.
"""

from __future__ import annotations

import torch

from ffp.core.problem import FloatArray


class Descent:
    """Minimises in `x` by Adam (Kingma and Ba, arXiv:1412.6980); AdamW is the same without weight decay.

    Attributes:
        x: The numbers, (n,); may be changed in place between steps.
    """

    def __init__(self, start: FloatArray, betas: tuple[float, float]):
        self._x = torch.tensor(start, dtype=torch.float64)
        self._adam = torch.optim.Adam([self._x], betas=betas)
        self.x: FloatArray = self._x.numpy()

    def step(self, gradient: FloatArray, learning_rate: float) -> None:
        """Takes one step against a gradient, (n,)."""
        self._adam.param_groups[0]["lr"] = learning_rate
        self._x.grad = torch.from_numpy(gradient)
        self._adam.step()
