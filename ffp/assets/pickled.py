"""Pickled PyTorch weights as safetensors, file by file. Tensors are read and nothing else: no code of a file runs."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffp.core.errors import AssetError, is_out_of_memory

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def convert_pickled(files: Sequence[Path], into: Path) -> None:
    """Writes safetensors with the same names and numbers as pickled weights, one file in memory at a time.

    Tensors that share their memory are written once for each of their names.

    Args:
        files: pytorch_model.bin, or all its shards.
        into: Folder for model.safetensors, or for shards of this name and their index.

    Raises:
        AssetError: A file is damaged, or holds more than tensors.
    """
    from safetensors.torch import save_file

    names: dict[str, str] = {}
    total = 0
    for number, file in enumerate(sorted(files), 1):
        name = WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = _read(file)
        save_file(tensors, into / name, metadata={"format": "pt"})
        (into / name).chmod(0o644)  # safetensors writes them readable for the owner only
        names |= dict.fromkeys(tensors, name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(files) > 1:
        body = {"metadata": {"total_size": total}, "weight_map": names}
        (into / INDEX).write_text(json.dumps(body, indent=2) + "\n")


def _read(file: Path) -> dict[str, Any]:
    """The tensors of a file, each with memory of its own."""
    import torch

    try:
        # Files of PyTorch before 1.6 are no zip archives, and cannot be mapped into memory.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise AssetError(
            f"weights {file.name} cannot be read as tensors alone, and nothing else of a pickle is read: they are "
            "damaged or hold objects. Get the file again, or use a source with *.safetensors."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise AssetError(f"weights {file.name} are no tensors by name. Use a source with *.safetensors.")
    seen: set[int] = set()
    tensors = {}
    for name, tensor in found.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[str(name)] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
    return tensors
