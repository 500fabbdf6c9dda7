"""Zeros in tensors of the dense shapes: whatever runs the dense model runs it, neither smaller nor faster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ffp.models.formats.base import Format, Saved
from ffp.models.formats.hub_folder import load_lines, save_model, save_tokenizer
from ffp.models.prunable import PrunableModel
from ffp.store.layout import ExportFiles

TEXT = """Removed weights are zeros in tensors of the parent's shapes: whatever runs the parent runs
this checkpoint, which is neither smaller nor faster.

**Tuning fills the zeros again**, also through merged LoRA weights. `mask.npz` has a bit for each entry
of the pruned tensors, by name, 1 where it was kept; multiply the tensors by it after every step:

```python
import numpy, torch

bits = numpy.load("PATH/mask.npz")
for name, parameter in model.named_parameters():
    if name in bits:
        kept = numpy.unpackbits(bits[name], count=parameter.numel()).reshape(parameter.shape)
        parameter.data.mul_(torch.from_numpy(kept).to(parameter.device))
```"""


@dataclass(frozen=True)
class DenseShape(Format):
    """Zeros in the dense shapes, for engines that accept no others."""

    name: ClassVar[str] = "dense-shape"
    zeros: ClassVar[bool] = True

    def takes_biases(self, prunable: PrunableModel) -> bool:
        """Returns whether the family has such biases itself."""
        return all(prunable.linear(module.output).bias is not None for module in prunable.modules)

    def save(self, prunable: PrunableModel, tokenizer: Any, folder: Path, *, parent: Path | None = None) -> Saved:
        """Writes weights with zeros, and which entries were kept as bits."""
        save_model(prunable.model, folder)
        save_tokenizer(tokenizer, folder, parent)
        np.savez_compressed(ExportFiles(folder).mask, **kept_bits(prunable))
        return Saved(TEXT, load_lines())


def kept_bits(prunable: PrunableModel) -> dict[str, Any]:
    """Returns a bit for each entry of every block linear's weight and bias, 0 where it was removed, packed as uint8.

    What was removed is zero. A bias that is zero by itself stands beside weights that are not.
    """
    found = {}
    for path in (path for block in range(len(prunable.blocks)) for path, _ in prunable.linears(block)):
        linear = prunable.linear(path)
        found[f"{path}.weight"] = linear.weight != 0
        if linear.bias is not None:
            found[f"{path}.bias"] = (linear.bias != 0) | found[f"{path}.weight"].any(dim=1)
    return {name: np.packbits(kept.flatten().cpu().numpy()) for name, kept in found.items()}
