"""LoRA by PEFT: two thin matrices beside every linear of the blocks, which are trained and then added to the weights.

Hu et al., arXiv:2106.09685. The matrices are float32 whatever the model's precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffp.core.errors import FfpError
from ffp.core.extras import needs
from ffp.models.modeling_pruned import selected_heads
from ffp.models.prunable import PrunableModel


class Adapters:
    """While it is open, the matrices A and B beside every linear of the blocks; nothing of PEFT stays behind.

    Attributes:
        prunable: The model.
        parameters: A (rank, in) and B (out, rank) of each linear as "<path>.A" and "<path>.B", float32. B is zero at
            first, so that the model's function is what it was.
    """

    def __init__(self, prunable: PrunableModel, *, rank: int, alpha: float, seed: int):
        """Says what will be put in.

        Args:
            prunable: The model, dense or cut.
            rank: Rows of A and columns of B.
            alpha: B A is multiplied by alpha / rank.
            seed: Of the first values of A.
        """
        self.prunable, self._rank, self._alpha, self._seed = prunable, rank, alpha, seed
        linears = {path: prunable.linear(path) for path in prunable.decision_names("structured")}
        self._linears = {
            path: linear
            for path, linear in linears.items()
            if linear.weight.numel() and selected_heads(linear) is None  # PEFT adds to what a linear itself gives
        }
        self.parameters: dict[str, nn.Parameter] = {}

    def __enter__(self) -> Adapters:
        with needs("recover"):
            from peft import LoraConfig, LoraModel
        model, generator = self.prunable.model, torch.Generator().manual_seed(self._seed)
        scale: Any = self._alpha  # declared as an int, but any number will do
        config = LoraConfig(r=self._rank, lora_alpha=scale, target_modules=list(self._linears))
        with torch.random.fork_rng(devices=[]):  # PEFT draws first values too, which are replaced
            self._tuner = LoraModel(model, config, "default")
        for path, linear in self._linears.items():
            first = nn.init.kaiming_uniform_(
                torch.empty(self._rank, linear.in_features, dtype=torch.float32), math.sqrt(5), generator=generator
            )
            pair, zero = model.get_submodule(path), torch.zeros(linear.out_features, self._rank, dtype=torch.float32)
            for name, store, value in (("A", pair.lora_A, first), ("B", pair.lora_B, zero)):
                parameter = store["default"].weight  # type: ignore[index, union-attr]
                parameter.data = value.to(linear.weight.device)
                self.parameters[f"{path}.{name}"] = parameter
        return self

    def __exit__(self, *exception: object) -> None:
        self._tuner.unload()

    @torch.no_grad()
    def merge(self) -> dict[str, npt.NDArray[np.float32]]:
        """Adds the products to the weights, in float32; returns the new weights by parameter name.

        Raises:
            FfpError: One of them is not finite in the model's precision; all weights are as before training then.
        """
        for path, linear in self._linears.items():
            if not self._merged(path, linear).isfinite().all():
                precision = str(linear.weight.dtype).removeprefix("torch.")
                raise FfpError(
                    f"recovery makes {path}.weight not finite in {precision}, with alpha = {self._alpha:g}: numbers "
                    "overflow. Lower its learning_rate or alpha, or use dtype float32 or bfloat16."
                )
        found = {}
        for path, linear in self._linears.items():
            linear.weight.data = self._merged(path, linear)
            found[f"{path}.weight"] = linear.weight.data.float().cpu().numpy()
        return found

    def _merged(self, path: str, linear: nn.Linear) -> torch.Tensor:
        """The new weight of a linear, in the model's precision."""
        product = self.parameters[f"{path}.B"] @ self.parameters[f"{path}.A"]
        return (linear.weight.data.float() + self._alpha / self._rank * product).to(linear.weight.dtype)
