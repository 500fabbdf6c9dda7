"""A folder of transformers that versions 4 and 5 read alike: weights, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ffp.assets.model import MACHINE_KEYS
from ffp.core.errors import ConfigError
from ffp.store.layout import ExportFiles

SHARD = "5GB"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# transformers 5 calls every tokenizer that has no class of its own by the first name, which 4 does not know.
BACKEND, PORTABLE = "TokenizersBackend", "PreTrainedTokenizerFast"
PHI3_FACTORS = ("short_factor", "long_factor")
PHI3_ELSEWHERE = ("type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
LOADED = ("is_local", "local_files_only")  # how the tokenizer was loaded, which is nothing of it
Body = dict[str, Any]


def save_model(model: Any, folder: Path, parent: Any = None, **options: Any) -> bool:
    """Saves weights in shards, configuration and generation defaults.

    The defaults are written as they are: the saved model generates as this one does. transformers itself refuses to
    save some that it loads and obeys, such as a temperature beside do_sample = false.

    Args:
        model: Its configuration and weights are saved.
        folder: It is made where it is missing.
        parent: The class of transformers that saves it; by default the model's own.
        options: Of that class's save_pretrained.

    Returns:
        Whether this process writes: of several ones only that with is_main_process, the default, does.

    Raises:
        ConfigError: The options ask for an upload, which would begin before the folder is whole.
        ValueError: The generation defaults are such that transformers would not load them either.
    """
    from transformers import GenerationConfig

    if options.get("push_to_hub"):
        raise ConfigError(
            "push_to_hub is True, but save_pretrained of a pruned model uploads nothing. Call model.push_to_hub(NAME), "
            "which saves it and uploads what was saved."
        )
    files, defaults = ExportFiles(folder), model.generation_config
    defaults.validate()
    model.generation_config = GenerationConfig()
    try:
        (parent or type(model)).save_pretrained(model, folder, **{"max_shard_size": SHARD, **options})
    finally:
        model.generation_config = defaults
    if writes := bool(options.get("is_main_process", True)):
        defaults.to_json_file(files.generation, keys_to_pop=["compile_config"])  # transformers leaves it out, too
        edit(files.config, lambda body: body | legacy_keys(body))
    return writes


def legacy_keys(body: Body) -> Body:
    """Returns the keys by which transformers 4 reads the rotary embedding of a config.json of version 5.

    Without them it takes a default base silently. Version 5 reads both and finds the same.
    """
    rope = body.get("rope_parameters") or {}
    if "full_attention" in rope:  # a base for each kind of attention; version 4 scales the one of full attention
        rope, own = rope["full_attention"], rope
        local = {"rope_local_base_freq": own.get("sliding_attention", rope)["rope_theta"]}
        return {"rope_theta": rope["rope_theta"], **local, **_legacy_scaling(body, rope)}
    found: Body = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if body["model_type"] == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        found = {names[key]: value for key, value in found.items()}
    return found | _legacy_scaling(body, rope)


def _legacy_scaling(body: Body, rope: Body) -> Body:
    """The scaling of a rotary embedding, where it has one, whole: version 5 takes it in place of rope_parameters.

    For Phi-3 version 4 takes three keys and refuses more, such as the attention_factor that it does not know.
    """
    if rope.get("rope_type", "default") == "default":
        return {}
    if body["model_type"] == "phi3" and not rope.keys() - {*PHI3_FACTORS, *PHI3_ELSEWHERE}:
        return {"rope_scaling": {"type": rope["rope_type"], **{key: rope[key] for key in PHI3_FACTORS}}}
    return {"rope_scaling": {key: value for key, value in rope.items() if key != "rope_theta"}}


def save_tokenizer(tokenizer: Any, folder: Path, parent: Path | None) -> None:
    """Saves a tokenizer: the parent's own files where there are any, else as transformers writes them."""
    own = [parent / name for name in TOKENIZER_FILES if (parent / name).is_file()] if parent else []
    for file in own:
        shutil.copyfile(file, folder / file.name)
    if not own:
        tokenizer.save_pretrained(folder)
    if (config := ExportFiles(folder).tokenizer_config).is_file():
        edit(config, _portable)


def load_lines(*, trust_remote_code: bool = False) -> list[str]:
    """Returns the lines of Python that load model and tokenizer from a folder PATH."""
    trust = ", trust_remote_code=True" if trust_remote_code else ""
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained(PATH{trust})",
        "tokenizer = AutoTokenizer.from_pretrained(PATH)",
    ]


def edit(path: Path, change: Any) -> None:
    """Rewrites a JSON file by a function of its content."""
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8"))), indent=2) + "\n", "utf-8")


def _portable(body: Body) -> Body:
    """What both versions read of a tokenizer's configuration."""
    if body.get("tokenizer_class") == BACKEND:
        body["tokenizer_class"] = PORTABLE
    return {key: value for key, value in body.items() if key not in (*MACHINE_KEYS, *LOADED)}
