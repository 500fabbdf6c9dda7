"""Calibration activations pushed through a model block by block, so that what happens to one block reaches the next.

Memory: the hidden states of all calibration windows, one batch's activations inside one block, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ffp.models.placement import forward_as
from ffp.models.prunable import PrunableModel


class BlockStream:
    """Hidden states before a block, for all windows; `advance` replaces them by the states after it."""

    @torch.no_grad()
    def __init__(self, prunable: PrunableModel, windows: torch.Tensor, *, batch_tokens: int):
        """windows: (n, context) int64. batch_tokens: tokens that pass a block at once, at least one window."""
        self.prunable = prunable
        batch = max(1, batch_tokens // windows.shape[1])
        self.hidden: list[torch.Tensor] = []
        self._arguments: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        for start in range(0, len(windows), batch):
            ids = windows[start : start + batch].to(prunable.model.device)
            self.hidden.append(self._enter(ids))

    def _enter(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the embedding and record what the model hands to each block besides the hidden states.

        Those arguments (masks, rotary embeddings) depend on positions only, so the blocks themselves are skipped, and
        batches of one size share them.
        """
        first: list[torch.Tensor] = []

        def record(index: int) -> Callable[..., torch.Tensor]:
            def stand_in(hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
                first.append(hidden_states)
                self._arguments.setdefault((index, len(ids)), (arguments, keywords))
                return hidden_states

            return stand_in

        with ExitStack() as undo:
            for index, block in enumerate(self.prunable.blocks):
                undo.enter_context(forward_as(block, record(index)))
            self.prunable.model.base_model(input_ids=ids, use_cache=False)
        return first[0]

    @torch.no_grad()
    def outputs(self, index: int) -> Iterator[torch.Tensor]:
        """Run block `index` on every batch and yield its output; hooks on its linears see their inputs."""
        for hidden in self.hidden:
            arguments, keywords = self._arguments[index, len(hidden)]
            result = self.prunable.blocks[index](hidden, *arguments, **keywords)
            yield result[0] if isinstance(result, tuple) else result

    def run(self, index: int) -> None:
        """Run block `index` for its hooks alone."""
        for _ in self.outputs(index):
            continue

    def advance(self, index: int) -> None:
        """Replace the hidden states by block `index`'s outputs, batch by batch."""
        for number, output in enumerate(self.outputs(index)):
            self.hidden[number] = output


class Inputs:
    """Forward pre-hook that hands each batch's inputs of a linear, (tokens, in), to a function."""

    def __init__(self, linear: nn.Linear, take: Callable[[torch.Tensor], None]):
        self._take = take
        self._hook = linear.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._take(arguments[0].detach().flatten(0, -2))

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()
