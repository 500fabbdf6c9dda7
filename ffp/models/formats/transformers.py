"""A folder of transformers with smaller tensors: the parent's own architecture where all blocks are equal in size.

Otherwise config.json has transformers' own `per_layer_config`, and a modelling file builds each block with its sizes.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError

from ffp.models import modeling_pruned
from ffp.models.empty_blocks import without_empty_blocks
from ffp.models.formats.base import Format, Saved
from ffp.models.formats.hub_folder import Body, edit, load_lines, save_model, save_tokenizer
from ffp.models.modeling_pruned import selected_heads
from ffp.models.prunable import PrunableModel
from ffp.store.layout import ExportFiles
from ffp.store.schemas import CHECKPOINT

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG, BASE, MODEL = "PrunedConfig", "PrunedModel", "PrunedForCausalLM"
IMPORT = "from transformers import {config}, {base}, {model}\n"
CLASSES = '''

class PrunedConfig({config}):
    """The parent's configuration with the sizes of each block in `pruned` and `per_layer_config`."""

    model_type = "{model_type}"


class PrunedModel(PrunedBase, {base}):
    """The parent model without its head, with the sizes of config.pruned."""

    config_class = PrunedConfig


class PrunedForCausalLM(Pruned, {model}):
    """The parent model with the sizes of config.pruned."""

    config_class = PrunedConfig
'''
STOCK = "All blocks have equal sizes: an ordinary checkpoint of the parent's architecture, without code of its own."
SIZES = """Heads and FFN channels are physically removed; every block has its own sizes (`per_layer_config` in
config.json). `modeling_pruned.py` builds them, so that transformers and vLLM ask for `trust_remote_code`.
To load it without running the modelling file, use `ffp.load_pruned(PATH)` of the package ffp."""


@dataclass(frozen=True)
class Transformers(Format):
    """Smaller tensors, for transformers and what is built on it."""

    name: ClassVar[str] = "transformers"

    def save(self, prunable: PrunableModel, tokenizer: Any, folder: Path, *, parent: Path | None = None) -> Saved:
        """Writes weights, configuration and, where the blocks differ in size, a modelling file."""
        save_tokenizer(tokenizer, folder, parent)
        if write_model(prunable, folder):
            return Saved(STOCK, load_lines())
        return Saved(SIZES, load_lines(trust_remote_code=True), tags=("custom_code",))


def let_save(prunable: PrunableModel) -> None:
    """Lets `save_pretrained` of a model that was cut write what loads it again; the parent's own one does not."""
    model: Any = prunable.model
    model.save_pretrained = partial(_save_pretrained, prunable)


def _save_pretrained(prunable: PrunableModel, save_directory: str | Path, **options: Any) -> None:
    """What `save_pretrained` of a model that was cut does.

    Args:
        prunable: The model.
        save_directory: Folder to make.
        options: Of transformers' own.

    Raises:
        ConfigError: The options ask for an upload.
    """
    with without_empty_blocks(prunable):
        write_model(prunable, Path(save_directory), **options)


def write_model(prunable: PrunableModel, folder: Path, **options: Any) -> bool:
    """Writes weights, configuration and, where the parent's class cannot build the model, a modelling file.

    Returns:
        Whether the parent's class can.
    """
    config = stock_config(prunable)
    if config is not None:
        _save_as(prunable, config, folder, **options)
        return True
    keys = {**sizes(prunable), **per_layer(prunable)}
    save_sized(prunable.model, type(prunable.model), folder, keys, **{**options, "save_original_format": False})
    return False


def stock_config(prunable: PrunableModel) -> PreTrainedConfig | None:
    """Returns the configuration by which the parent's own class builds this model; None if there is none.

    The blocks have to be equal in size, and the class has to build tensors of just these names and shapes. No class has
    query heads that share KV heads unequally, although the shapes can look the same.
    """
    paths = [path for block in range(len(prunable.blocks)) for path, _ in prunable.linears(block)]
    if any(selected_heads(prunable.linear(path)) for path in paths):
        return None
    each = [prunable.sizes(block) for block in range(len(prunable.blocks))]
    if any(found != each[0] for found in each):
        return None
    config = copy.deepcopy(prunable.config)
    for name, value in each[0].items():
        if getattr(config, name, None) != value:
            setattr(config, name, value)
    try:
        config.validate()  # as saving it does
        with torch.device("meta"):
            skeleton = type(prunable.model)(config)
    except (StrictDataclassError, ValueError, ZeroDivisionError):  # the class takes no such sizes
        return None
    return config if _shapes(skeleton) == _shapes(prunable.model) else None


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _save_as(prunable: PrunableModel, config: PreTrainedConfig, folder: Path, **options: Any) -> None:
    """Saves the model under another configuration."""
    model, own = prunable.model, prunable.model.config
    model.config = config
    try:
        save_model(model, folder, **options)
    finally:
        model.config = own


def sizes(prunable: PrunableModel) -> Body:
    """Returns what modeling_pruned.resize needs: sizes of the linears and head counts of each block, as they are."""
    family, blocks = prunable.family, prunable.blocks
    start = len(f"{family.blocks}.0.")
    linears = {}
    for path in (path[start:] for path, _ in prunable.linears(0)):
        found: Any = [block.get_submodule(path) for block in blocks]
        linears[path] = {
            "in": [linear.in_features for linear in found],
            "out": [linear.out_features for linear in found],
            "bias": [linear.bias is not None for linear in found],
        }
    counts = {}
    for name in family.head_counts:
        owner, _, attribute = name.rpartition(".")
        modules: Any = [block.get_submodule(family.attention) for block in blocks]
        counts[f"{family.attention}.{name}"] = [getattr(m.config if owner else m, attribute) for m in modules]
    kv_heads = [prunable.sizes(block).get("num_key_value_heads", 0) for block in range(len(blocks))]
    output = prunable.model.get_output_embeddings()
    own: Body = {
        "blocks": family.blocks,
        "attention": family.attention,
        "output": family.attention_output,
        "head": next(name for name, module in prunable.model.named_modules() if module is output),
        "missing_kv_heads": [prunable.kv_heads - kept for kept in kv_heads],
    }
    selected = {path: [selected_heads(block.get_submodule(path)) for block in blocks] for path in linears}
    if selected := {path: heads for path, heads in selected.items() if any(heads)}:
        own |= {"head_dim": prunable.head_dim, "selected_heads": selected}
    return {"pruned": {"schema": CHECKPOINT, **own, "linears": linears, "counts": counts}}


def per_layer(prunable: PrunableModel) -> Body:
    """Returns the keys of transformers' own description of blocks that differ in size; version 4 does not read them."""
    each = {str(block): prunable.sizes(block) for block in range(len(prunable.blocks))}
    head_dim = each["0"]["head_dim"]
    for values in each.values():
        del values["head_dim"]
        if values["num_attention_heads"] == 0:  # never computed, and no configuration allows 0
            least = {"num_attention_heads": prunable.heads // prunable.kv_heads, "num_key_value_heads": 1}
            values |= {name: least[name] for name in values.keys() & least.keys()}
    # Code that asks for one value of all blocks gets the parent's.
    return {"head_dim": head_dim, "per_layer_config": each, "allow_global_per_layer_attribute_access": True}


def save_sized(model: Any, parent: type, folder: Path, keys: Body, **options: Any) -> None:
    """Saves a model whose blocks differ in size, with the modelling file that builds them.

    Args:
        model: The model.
        parent: The class of transformers that it has, or that it derives from.
        folder: It is made where it is missing.
        keys: What goes into config.json and is not in the model's configuration.
        options: Of transformers' own save_pretrained.
    """
    if save_model(model, folder, parent, **options):
        add_sizes(folder, parent, keys)


def add_sizes(folder: Path, model: type, keys: Body) -> None:
    """Adds sizes of each block to a saved model, and the modelling file that builds them.

    Args:
        folder: What save_pretrained wrote.
        model: The parent's class of the model.
        keys: What goes into config.json.
    """
    from transformers import MODEL_MAPPING

    parent: Any = model.config_class  # type: ignore[attr-defined]
    auto = {"AutoConfig": CONFIG, "AutoModel": BASE, "AutoModelForCausalLM": MODEL}
    more = {"architectures": [MODEL], "auto_map": {name: f"modeling_pruned.{found}" for name, found in auto.items()}}
    files = ExportFiles(folder)
    edit(files.config, lambda body: body | more | keys)
    base: Any = MODEL_MAPPING[parent]
    names = {
        "config": parent.__name__, "base": base.__name__, "model": model.__name__, "model_type": parent.model_type,
    }  # fmt: skip
    imports = "from torch import nn\n"
    source = inspect.getsource(modeling_pruned).replace(imports, imports + IMPORT.format(**names))
    files.modeling.write_text(source + CLASSES.format(**names), encoding="utf-8")
