"""Pushes calibration tokens through a model block by block, so that a change of one block reaches the next.

Memory: the hidden states of all windows and one batch's activations inside one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook
from torch import nn

from ffp.core.errors import check_whole
from ffp.models.placement import forward_as
from ffp.models.prunable import PrunableModel


def windows_at_once(batch_tokens: int, context: int) -> int:
    """Returns how many windows of `context` tokens pass a model at once: one at least.

    Raises:
        ConfigError: `batch_tokens` is no whole number above 0.
    """
    return max(1, check_whole("batch_tokens", batch_tokens, 1, "Give the tokens of one forward.") // context)


class _Reached(Exception):
    """Stops a block where its caller has what it wanted."""


class BlockStream:
    """Hidden states before a block, for all windows; `advance` replaces them by the states after it."""

    @torch.no_grad()
    def __init__(self, prunable: PrunableModel, windows: torch.Tensor, *, batch_tokens: int):
        """Runs the embedding.

        Args:
            prunable: The model; its blocks may be changed between calls.
            windows: Token ids, (n, context) int64.
            batch_tokens: Tokens that pass a block at once; one window at least.
        """
        self.prunable = prunable
        batch = windows_at_once(batch_tokens, windows.shape[1])
        self.hidden: list[torch.Tensor] = []
        self._arguments: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        for ids in torch.split(windows, batch):
            self.hidden.append(self._enter(ids.to(prunable.model.device)))

    def _enter(self, ids: torch.Tensor) -> torch.Tensor:
        """Runs the embedding and records what the model hands to each block besides the hidden states.

        Those arguments (masks, rotary embeddings) depend on positions only, so the blocks themselves are skipped, and
        batches of one size share them.
        """
        first: list[torch.Tensor] = []

        def record(index: int) -> Callable[..., torch.Tensor]:
            def skip(hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
                first.append(hidden_states)
                self._arguments.setdefault((index, len(ids)), (arguments, keywords))
                return hidden_states

            return skip

        with ExitStack() as undo:
            for index, block in enumerate(self.prunable.blocks):
                undo.enter_context(forward_as(block, record(index)))
            self.prunable.model.base_model(input_ids=ids, use_cache=False)
        return first[0]

    @torch.no_grad()
    def outputs(self, index: int) -> Iterator[torch.Tensor]:
        """Runs block `index` on every batch and yields its output; hooks on its linears see their inputs."""
        for hidden in self.hidden:
            arguments, keywords = self._arguments[index, len(hidden)]
            result = self.prunable.blocks[index](hidden, *arguments, **keywords)
            yield result[0] if isinstance(result, tuple) else result

    def run(self, index: int) -> None:
        """Runs block `index` for the hooks on its linears alone."""
        for _ in self.outputs(index):
            continue

    def feed(self, index: int, linear: nn.Linear, take: Callable[[torch.Tensor], None]) -> None:
        """Hands the inputs of a linear of block `index` to `take`, batch by batch, (tokens, in).

        The block is run up to there and no further.
        """

        def stop(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            take(arguments[0].detach().flatten(0, -2))
            raise _Reached

        hook = linear.register_forward_pre_hook(stop)
        try:
            for hidden in self.hidden:
                self._run_until(index, hidden)
        finally:
            hook.remove()

    @torch.no_grad()
    def _run_until(self, index: int, hidden: torch.Tensor) -> None:
        """Runs a block until a hook stops it; weights that were borrowed for its forward go back all the same."""
        block = self.prunable.blocks[index]
        arguments, keywords = self._arguments[index, len(hidden)]
        try:
            block(hidden, *arguments, **keywords)
        except _Reached:
            if isinstance(borrowed := getattr(block, "_hf_hook", None), ModelHook):
                borrowed.post_forward(block, None)

    def advance(self, index: int) -> None:
        """Replaces the hidden states by block `index`'s outputs, batch by batch."""
        for number, output in enumerate(self.outputs(index)):
            self.hidden[number] = output


@contextmanager
def watch_inputs(linear: nn.Linear, take: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Hands every batch of a linear's inputs, (tokens, in), to `take` while the context is open."""

    def see(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        take(arguments[0].detach().flatten(0, -2))

    hook = linear.register_forward_pre_hook(see)
    try:
        yield
    finally:
        hook.remove()
