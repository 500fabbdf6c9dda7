"""Models on disk: the dense model is loaded, pruned ones are saved and loaded again; transformers reads and writes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from ffp.config import ModelConfig
from ffp.core.errors import ArtifactError, ConfigError
from ffp.models import modeling_pruned
from ffp.models.families import PRUNED, family_of
from ffp.models.placement import choose_device, offload
from ffp.models.prunable import PrunableModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SCHEMA = "ffp/checkpoint/1"
SHARD = "5GB"
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # never a question in the middle of a job
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
IMPORT = "from transformers import {config}, {model}\n"
CLASSES = '''

class PrunedConfig({config}):
    """The parent's configuration with the sizes of each block in `pruned`."""

    model_type = "{model_type}"


class PrunedForCausalLM(Pruned, {model}):
    """The parent model with the sizes of config.pruned."""

    config_class = PrunedConfig
'''


def save_dense_shape(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    """Saves a model that has its parent's shapes, as transformers does, in shards.

    transformers loads generation defaults with a temperature and without do_sample, but refuses to save them; do_sample
    is set then, since a temperature asks for sampling.
    """
    defaults: Any = model.generation_config
    try:
        if defaults is not None:
            defaults.validate(strict=True)
    except ValueError:
        defaults.do_sample = True
    model.save_pretrained(folder, max_shard_size=SHARD, **options)


def save_pruned(prunable: PrunableModel, folder: Path) -> None:
    """Saves a model that was cut: safetensors, config.json with the sizes of each block, modeling_pruned.py.

    config.json has a model type of its own, so that transformers tells a reader who does not allow the modelling file
    to allow it, instead of listing mismatched sizes.
    """
    model = prunable.model
    save_dense_shape(model, folder, save_original_format=False)
    parent = type(model.config)
    model_type = f"{PRUNED}{parent.model_type}"
    body = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "PrunedConfig", "AutoModelForCausalLM": "PrunedForCausalLM"}
    body |= {
        "model_type": model_type,
        "architectures": ["PrunedForCausalLM"],
        "auto_map": {auto: f"modeling_pruned.{name}" for auto, name in auto_map.items()},
        "pruned": {"schema": SCHEMA, **_sizes(prunable)},
    }
    (folder / "config.json").write_text(json.dumps(body, indent=2) + "\n")
    names = {"config": parent.__name__, "model": type(model).__name__, "model_type": model_type}
    imports = "from torch import nn\n"
    source = inspect.getsource(modeling_pruned).replace(imports, imports + IMPORT.format(**names))
    (folder / "modeling_pruned.py").write_text(source + CLASSES.format(**names))


def _sizes(prunable: PrunableModel) -> dict[str, Any]:
    """What modeling_pruned.resize needs: sizes of the linears and head counts of each block, as the model is now."""
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
    return {"blocks": family.blocks, "linears": linears, "counts": counts}


def load_pruned(folder: str | Path, *, dtype: str = "auto", device: str = "auto") -> PreTrainedModel:
    """Loads a pruned checkpoint as an ordinary transformers model, for inference; runs no code of the checkpoint.

    Args:
        folder: A folder that `ffp export` wrote.
        dtype: "auto" for that of the file, or e.g. "bfloat16".
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        ArtifactError: The folder is no pruned checkpoint, damaged, or of a family that transformers does not know.
    """
    folder = Path(folder)
    body = _read_config(folder)
    config_class, model_class = _classes(str(body["model_type"]).removeprefix(PRUNED), folder)
    try:
        model, report = model_class.from_pretrained(
            folder, config=config_class.from_dict(body), dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True, output_loading_info=True, **LOCAL,
        )  # fmt: skip
    except LOAD_ERRORS as error:
        raise ArtifactError(f"checkpoint {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if lost := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise ArtifactError(f"checkpoint {folder} does not fit its config.json at {lost[0]}. Export it again.")
    loaded: PreTrainedModel = model.to(choose_device(device)).eval().requires_grad_(False)
    return loaded


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        body = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} has no readable config.json. Give a folder that `ffp export` wrote.") from error
    found = body.get("pruned", {}).get("schema")
    if found != SCHEMA:
        raise ArtifactError(
            f"{folder} has pruned sizes of schema {found!r}, expected {SCHEMA!r}. Give a folder that `ffp export` "
            "wrote; other models load by transformers."
        )
    return dict(body)


def _classes(parent: str, folder: Path) -> tuple[type[PreTrainedConfig], Any]:
    """Configuration and model class over transformers' own classes of a model type."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if parent not in CONFIG_MAPPING:
        raise ArtifactError(f"{folder} is a pruned {parent!r} model, which this version of transformers does not know.")
    base = CONFIG_MAPPING[parent]
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[base]
    config = type("PrunedConfig", (base,), {"model_type": f"{PRUNED}{parent}", "__module__": __name__})
    members = {"config_class": config, "__module__": __name__}
    return config, type("PrunedForCausalLM", (modeling_pruned.Pruned, model), members)


def is_spread(config: ModelConfig, device: torch.device) -> bool:
    """Returns whether a model lies on all GPUs that this process may use, instead of one device."""
    return device.type == "cuda" and config.resources.gpu > 1 and not config.offload


def load_model(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """Loads the dense model of a local folder for inference, safetensors only, in its dtype and placed as asked.

    Its dtype is what the config names; "auto" is that of config.json, else that of the weights. It lies on one device;
    on several where the config asks for more than one GPU (accelerate's device map); or, where
    it is offloaded, with all but the blocks on the device. Offloaded blocks keep the file's own precision on the host.

    Raises:
        ArtifactError: The folder holds no model or a damaged one.
    """
    from transformers import AutoModelForCausalLM

    _check_folder(folder)
    device = choose_device(config.device)
    spread = is_spread(config, device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if config.offload else config.dtype,
            use_safetensors=True,
            device_map="auto" if spread else None,
            **LOCAL,
        )
    except LOAD_ERRORS as error:
        raise ArtifactError(f"model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if config.offload:
        offload(model, model.get_submodule(family_of(model.config.model_type).blocks), device, dtype_of(model, config))
    elif not spread:
        model = model.to(device)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def dtype_of(model: PreTrainedModel, config: ModelConfig) -> torch.dtype:
    """Returns the dtype that a model is computed in: what its config names, or the model's own."""
    return model.dtype if config.dtype == "auto" else getattr(torch, config.dtype)


def load_skeleton(folder: Path) -> PreTrainedModel:
    """Loads a model's modules without weights (on torch's meta device), to know the sizes of its decisions.

    Raises:
        ArtifactError: The folder holds no model, or one of an unknown kind.
    """
    from transformers import AutoConfig

    _check_folder(folder)
    try:
        return _empty(AutoConfig.from_pretrained(folder, **LOCAL))
    except LOAD_ERRORS as error:
        raise ArtifactError(f"model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error


def build_skeleton(architecture: Mapping[str, Any]) -> PreTrainedModel:
    """Builds a model without weights from the arguments of a transformers configuration, model_type among them.

    Raises:
        ConfigError: The family is unknown, or the arguments make no model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    family_of(str(architecture.get("model_type")))
    try:
        return _empty(AutoConfig.for_model(**architecture))
    except (StrictDataclassError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"architecture {dict(architecture)} makes no model: {reason}. Correct it.") from error


def _check_folder(folder: Path) -> None:
    if not (Path(folder) / "config.json").is_file():
        raise ArtifactError(f"{folder} holds no config.json. Run `ffp asset model` for it.")


def _empty(config: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return skeleton


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a local folder.

    Raises:
        ArtifactError: There is none, or a damaged one.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"tokenizer in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
