"""Where weights lie: on one device, spread over several, or on the host while one block at a time is on the device.

Spreading is accelerate's. Offloaded weights stay where from_pretrained left them, which for files in their own
precision is a mapping of the file: pages that the kernel may drop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from ffp.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@contextmanager
def for_inference(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Switches training and gradients off, and each part back to what it was; cut parameters keep their names.

    New tensors are on the CPU unless they name a device, also where the caller has set another default.
    """
    training, gradients = model.training, {name: each.requires_grad for name, each in model.named_parameters()}
    modes = {part: part.training for part in model.modules()}
    try:
        model.eval().requires_grad_(False)
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield model
    finally:
        for part in model.modules():
            part.training = modes.get(part, training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(gradients.get(name, False))


def choose_device(name: str) -> torch.device:
    """Returns the device of that name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: This machine has no such device, or it is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError(f"device {name!r} is not available on this machine. Use device: auto or cpu.")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is none of torch. Use auto, cpu, cuda or mps.") from error


def float64(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor in float64, on the CPU where its device (MPS) has no such numbers."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class BorrowBlock(ModelHook):  # type: ignore[misc]
    """Copies a block's weights to the device, in the precision of the computation, for the time of its forward.

    The parameters themselves are exchanged, not their data, so that a backward finds those that its forward used.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.host: list[tuple[dict[str, Any], str, torch.Tensor]] = []

    def borrow(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor on the device, a parameter if it was one; buffers keep their precision."""
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.data.to(self.device, self.dtype), requires_grad=False)
        return tensor.to(self.device)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Puts borrowed tensors into the block and remembers the host's."""
        for part in module.modules():
            stores: tuple[Any, ...] = (part._parameters, part._buffers)
            for store in stores:
                for name, tensor in store.items():
                    if tensor is not None:
                        self.host.append((store, name, tensor))
                        store[name] = self.borrow(tensor)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Puts the host's tensors back."""
        while self.host:
            store, name, tensor = self.host.pop()
            store[name] = tensor
        return output


def is_borrowed(block: nn.Module) -> bool:
    """Returns whether a block's weights are on the device for the time of its forward only."""
    return isinstance(getattr(block, "_hf_hook", None), BorrowBlock)


def offload(model: PreTrainedModel, blocks: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> None:
    """Moves all but the blocks to the device, in this precision; each block is on it during its forward only."""
    inside = {id(tensor) for tensor in (*blocks.parameters(), *blocks.buffers())}
    for part in model.modules():
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in inside:
                parameter.data = parameter.data.to(device, dtype)
        for name, buffer in part._buffers.items():
            if buffer is not None and id(buffer) not in inside:
                part._buffers[name] = buffer.to(device)
    for block in blocks:
        add_hook_to_module(block, BorrowBlock(device, dtype))


@contextmanager
def replacement_block(blocks: nn.ModuleList, index: int, config: PretrainedConfig) -> Iterator[None]:
    """Puts a copy that can be changed in a block's place, on the device, and the block back at the end.

    The copy has modules of its own and shares the tensors that already are on the device. Whoever changes it has to put
    new parameters in and must not write into those that are there.

    Args:
        blocks: The model's blocks.
        index: The block.
        config: The model's configuration, which all blocks share and the copy shares too.
    """
    block = blocks[index]
    memo: dict[int, Any] = {id(config): config}
    hook = getattr(block, "_hf_hook", None)
    for tensor in (*block.parameters(), *block.buffers()):
        memo[id(tensor)] = hook.borrow(tensor) if isinstance(hook, BorrowBlock) else tensor
    replacement = blocks[index] = copy.deepcopy(block, memo)
    del memo
    try:
        yield
    finally:
        blocks[index] = block
        for part in replacement.modules():  # modules refer to each other in circles: free the weights now
            part._parameters.clear()


@contextmanager
def forward_as(module: nn.Module, forward: Any) -> Iterator[None]:
    """Gives a module another forward; the one before, the class's own or a hooked one, comes back at the end."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
