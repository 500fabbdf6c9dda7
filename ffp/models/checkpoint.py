"""Models on disk: dense and pruned ones are loaded through transformers. ffp/models/formats/ saves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from ffp.config import ModelConfig
from ffp.core.errors import ArtifactError, ConfigError, is_out_of_memory, reason_of
from ffp.core.suggest import did_you_mean
from ffp.models import modeling_pruned
from ffp.models.families import family_of
from ffp.models.placement import choose_device, offload
from ffp.store.layout import expanded
from ffp.store.schemas import CHECKPOINT

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LOCAL = {"local_files_only": True, "trust_remote_code": False}  # never a question in the middle of a job
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def load_pruned(folder: str | Path, *, dtype: str | torch.dtype = "auto", device: str = "auto") -> PreTrainedModel:
    """Loads a pruned checkpoint as an ordinary transformers model, for inference; runs no code of the checkpoint.

    Args:
        folder: A folder that `ffp prune` or `ffp export` wrote for transformers.
        dtype: "auto" for that of the file, or e.g. "bfloat16" or torch.bfloat16.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        ArtifactError: The folder is no checkpoint, damaged, or of a family that transformers does not know.
        ConfigError: The dtype or the device is none.
    """
    from transformers import AutoModelForCausalLM

    folder = expanded(folder)
    if dtype != "auto" and dtype not in (*DTYPES, *DTYPES.values()):
        near = did_you_mean(str(dtype).removeprefix("torch."), ["auto", *DTYPES])
        raise ConfigError(f"a model cannot be loaded in dtype {dtype!r}: {near}")
    body = _read_config(folder)
    options: dict[str, Any] = {"dtype": DTYPES.get(str(dtype), dtype)}
    model_class: Any = AutoModelForCausalLM
    if "pruned" in body:
        config_class, model_class = _classes(str(body["model_type"]), folder)
        options["config"] = config_class.from_dict(body)
    try:
        model, report = model_class.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options, **LOCAL
        )
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ArtifactError(f"checkpoint {folder} cannot be loaded: {reason_of(error)}. Export it again.") from error
    if lost := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise ArtifactError(f"checkpoint {folder} does not fit its config.json at {lost[0]}. Export it again.")
    loaded: PreTrainedModel = model.to(choose_device(device)).eval().requires_grad_(False)
    return loaded


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        body = dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} has no readable config.json. Give a folder that `ffp export` wrote.") from error
    found = body.get("pruned", {}).get("schema", CHECKPOINT)
    if found != CHECKPOINT:
        raise ArtifactError(f"{folder} has pruned sizes of schema {found!r}, expected {CHECKPOINT!r}. Export it again.")
    return body


def _classes(parent: str, folder: Path) -> tuple[type[PreTrainedConfig], Any]:
    """Configuration and model class over transformers' own classes of a model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if parent not in CONFIG_MAPPING:
        raise ArtifactError(f"{folder} is a pruned {parent!r} model, which this version of transformers does not know.")
    return _made_classes(parent)


@cache
def _made_classes(parent: str) -> tuple[type[PreTrainedConfig], Any]:
    """Makes both classes of a model type, once: copies and pickles name them by it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    base = CONFIG_MAPPING[parent]
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[base]

    def members(index: int) -> dict[str, Any]:
        return {"__module__": __name__, "__reduce__": lambda made: (_blank, (parent, index), made.__getstate__())}

    def save_pretrained(model: Any, target: str | Path, **options: Any) -> None:
        """Saves as transformers does, and adds the modelling file."""
        from ffp.models.formats.transformers import save_sized

        save_sized(model, stock, Path(target), {}, **options)

    config = type("PrunedConfig", (base,), {**members(0), "model_type": parent})
    own = {**members(1), "config_class": config, "save_pretrained": save_pretrained}
    return config, type("PrunedForCausalLM", (modeling_pruned.Pruned, stock), own)


def _blank(parent: str, index: int) -> Any:
    """What pickle fills: a configuration (0) or a model (1) of a model type, without anything in it."""
    made: Any = _made_classes(parent)[index]
    return made.__new__(made)


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
    model_class: Any = AutoModelForCausalLM
    try:
        model, report = model_class.from_pretrained(
            folder,
            output_loading_info=True,
            dtype="auto" if config.offload else config.dtype,
            use_safetensors=True,
            device_map="auto" if spread else None,
            **LOCAL,
        )
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ArtifactError(f"model in {folder} cannot be loaded: {reason_of(error)}. Get its files again.") from error
    if lost := sorted(report["missing_keys"]):
        raise ArtifactError(
            f"model in {folder} lacks {len(lost)} of its weights, {lost[0]} among them. Give a complete model, with "
            "its language-modelling head."
        )
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
        ConfigError: Its family cannot be pruned.
    """
    from transformers import AutoConfig

    _check_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        family_of(config.model_type)
        return _empty(config)
    except LOAD_ERRORS as error:
        raise ArtifactError(f"model in {folder} cannot be loaded: {reason_of(error)}. Get its files again.") from error


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
        raise ConfigError(
            f"architecture {dict(architecture)} makes no model: {reason_of(error)}. Correct it."
        ) from error


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
    except Exception as error:  # the Rust library raises Exception itself; a damaged file, whatever comes of it
        if is_out_of_memory(error):
            raise
        raise ArtifactError(
            f"tokenizer in {folder} cannot be loaded: {reason_of(error)}. Get its files again."
        ) from error
