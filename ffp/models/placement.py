"""Where weights live: all on one device, spread over several, or on the host with one block at a time away from home.

Spreading is accelerate's. Offloaded weights stay where from_pretrained left them, which for files in their own
precision is a mapping of the file: pages that the kernel may drop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from ffp.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def choose_device(name: str) -> torch.device:
    """The device that a model config asks for; "auto" takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError(f"device {name!r} is not available on this machine. Use device: auto or cpu.")
    return torch.device(name)


def float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, on the CPU where its device (MPS) has no such numbers."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class Lend(ModelHook):  # type: ignore[misc]
    """Lends a block's weights to a device, in the precision of the computation, for the time of its forward.

    The parameters themselves are exchanged, not their data, so that a backward finds those that its forward used.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.home: list[tuple[dict[str, Any], str, torch.Tensor]] = []

    def lent(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, a parameter if it was one; buffers keep their precision."""
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.data.to(self.device, self.dtype), requires_grad=False)
        return tensor.to(self.device)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for part in module.modules():
            shelves: tuple[Any, ...] = (part._parameters, part._buffers)
            for shelf in shelves:
                for name, tensor in shelf.items():
                    if tensor is not None:
                        self.home.append((shelf, name, tensor))
                        shelf[name] = self.lent(tensor)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        while self.home:
            shelf, name, tensor = self.home.pop()
            shelf[name] = tensor
        return output


def offload(model: PreTrainedModel, blocks: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> None:
    """Bring all but the blocks to the device, in this precision; each block is lent for its forward only."""
    inside = {id(tensor) for tensor in (*blocks.parameters(), *blocks.buffers())}
    for part in model.modules():
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in inside:
                parameter.data = parameter.data.to(device, dtype)
        for name, buffer in part._buffers.items():
            if buffer is not None and id(buffer) not in inside:
                part._buffers[name] = buffer.to(device)
    for block in blocks:
        add_hook_to_module(block, Lend(device, dtype))


@contextmanager
def resident(blocks: nn.ModuleList, index: int, config: PretrainedConfig) -> Iterator[None]:
    """Let a block be changed, where it computes, and have it back as it was at the end.

    config: the model's, which all blocks share. A twin takes its place: modules of its own, tensors shared where they
    already are on the device. What is done to the twin has to put new parameters in, not to write into those that are
    there.
    """
    block = blocks[index]
    memo: dict[int, Any] = {id(config): config}
    hook = getattr(block, "_hf_hook", None)
    for tensor in (*block.parameters(), *block.buffers()):
        memo[id(tensor)] = hook.lent(tensor) if isinstance(hook, Lend) else tensor
    twin = blocks[index] = copy.deepcopy(block, memo)
    del memo
    try:
        yield
    finally:
        blocks[index] = block
        for part in twin.modules():  # modules refer to each other in circles: let go of the weights now
            part._parameters.clear()


@contextmanager
def forward_as(module: nn.Module, forward: Any) -> Iterator[None]:
    """Give a module another forward; what was there, the class's own or a hooked one, comes back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
