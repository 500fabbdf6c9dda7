"""Model families as data: where the blocks keep attention and FFN, and how heads lie in their matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

# Which rows of an attention input projection belong to one KV group, in the order they are stacked:
# "q" the group's query heads, "k" and "v" its key and value head, "head" one head's q, k and v interleaved.


@dataclass(frozen=True)
class Family:
    """One entry of the table; module paths are relative to a block.

    Attributes:
        blocks: Path of the list of blocks in the model.
        attention: Path of the attention module.
        attention_inputs: (linear, the roles that are stacked in it).
        attention_output: The linear whose columns take what the heads give.
        ffn_inputs: (linear, number of matrices that are stacked in it: 2 where gate and up are fused).
        ffn_output: The linear whose columns take what the channels give.
        head_counts: Attributes of the attention module that hold the number of query ("q") or KV ("k") heads, or of
            query heads to a KV head ("q/k"), for classes that do not infer it from the projections' sizes; "config.X"
            means the module's own copy of the configuration.
        ffn_width: Name of the FFN's width in the configuration.
    """

    blocks: str
    attention: str
    attention_inputs: tuple[tuple[str, tuple[str, ...]], ...]
    attention_output: str
    ffn_inputs: tuple[tuple[str, int], ...]
    ffn_output: str
    head_counts: Mapping[str, str]
    ffn_width: str = "intermediate_size"


_LLAMA = Family(
    blocks="model.layers",
    attention="self_attn",
    attention_inputs=(("self_attn.q_proj", ("q",)), ("self_attn.k_proj", ("k",)), ("self_attn.v_proj", ("v",))),
    attention_output="self_attn.o_proj",
    ffn_inputs=(("mlp.gate_proj", 1), ("mlp.up_proj", 1)),
    ffn_output="mlp.down_proj",
    head_counts={"num_key_value_groups": "q/k"},
)
_PHI3 = replace(
    _LLAMA,
    attention_inputs=(("self_attn.qkv_proj", ("q", "k", "v")),),
    ffn_inputs=(("mlp.gate_up_proj", 2),),
    head_counts={"config.num_attention_heads": "q", "num_key_value_heads": "k", "num_key_value_groups": "q/k"},
)
_OPT = replace(
    _LLAMA,
    blocks="model.decoder.layers",
    attention_output="self_attn.out_proj",
    ffn_inputs=(("fc1", 1),),
    ffn_output="fc2",
    head_counts={"num_heads": "q"},
    ffn_width="ffn_dim",
)
_GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    attention="attention",
    attention_inputs=(("attention.query_key_value", ("head",)),),
    attention_output="attention.dense",
    ffn_inputs=(("mlp.dense_h_to_4h", 1),),
    ffn_output="mlp.dense_4h_to_h",
    head_counts={},
)

_STABLELM = replace(_LLAMA, head_counts={"num_heads": "q", "num_key_value_heads": "k", "num_key_value_groups": "q/k"})
_STARCODER2 = replace(_LLAMA, ffn_inputs=(("mlp.c_fc", 1),), ffn_output="mlp.c_proj")
_GLM = replace(_LLAMA, ffn_inputs=(("mlp.gate_up_proj", 2),))
_PHI = replace(_LLAMA, attention_output="self_attn.dense", ffn_inputs=(("mlp.fc1", 1),), ffn_output="mlp.fc2")
_LIKE_LLAMA = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "granite", "olmo", "olmo2",
    "olmo3", "cohere", "cohere2", "exaone4", "ministral", "seed_oss", "ernie4_5",
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(_LIKE_LLAMA, _LLAMA),
    **dict.fromkeys(("glm", "glm4"), _GLM),
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "phi": _PHI,
    "phi3": _PHI3,
    "stablelm": _STABLELM,
    "starcoder2": _STARCODER2,
}


REFUSED: Mapping[str, str] = {
    "gpt2": "keeps its weights transposed (Conv1D), which no score, mask or format of ffp reads",
    **dict.fromkeys(("bloom", "mpt"), "tells positions by a bias that belongs to the place of each head (ALiBi)"),
    "falcon": "has neither a size of its heads nor of its KV groups that its configuration can set",
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def family_of(model_type: str) -> Family:
    """Returns the entry for transformers' config.model_type.

    Raises:
        ConfigError: There is none; the message says why, or what a new entry needs.
    """
    if model_type not in FAMILIES:
        raise ConfigError(_refusal(model_type))
    return FAMILIES[model_type]


def _refusal(model_type: str) -> str:
    """One line: why no entry holds this family and what to do instead, or what an entry needs."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config: Any = None
    if model_type in CONFIG_MAPPING:  # its get() does not import what is not imported yet
        config = CONFIG_MAPPING[model_type]
    keys = {*getattr(config, "__dataclass_fields__", ()), *getattr(config, "attribute_map", ())}
    if model_type in REFUSED:
        return f"model family {model_type!r} {REFUSED[model_type]}. Prune a model of another family."
    if text := getattr(config, "sub_configs", {}).get("text_config"):
        return _wrapped(model_type, getattr(text, "model_type", ""))
    if config is not None and not _is_causal(model_type):
        return (
            f"model family {model_type!r} is no causal language model: it is an encoder, has one, or predicts no text. "
            "ffp prunes models that predict the next token; prune one of these."
        )
    if "moe" in model_type or keys & set(EXPERTS):
        return (
            f"model family {model_type!r} is a mixture of experts, whose FFNs are one tensor of all experts, with no "
            "units that ffp can score and cut. Prune a model without experts."
        )
    return (
        f"model family {model_type!r} is not in the table, {did_you_mean(model_type, FAMILIES)} An entry in "
        "ffp/models/families.py needs the paths of its blocks, attention and FFN linears."
    )


def _is_causal(model_type: str) -> bool:
    """Whether transformers reads a family from left to right alone: masked tokens and a source text need both sides."""
    from transformers.models.auto import modeling_auto as auto

    both_sides = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    return model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not any(model_type in names for names in both_sides)


def _wrapped(model_type: str, text: str) -> str:
    """One line on a model of several kinds of input, around a text model of family `text` ("" if it may be any)."""
    what = f"model family {model_type!r} is a text model with encoders of other inputs, which ffp does not prune. "
    if text in FAMILIES or not text:
        return what + "Save its text model by itself, as docs/python.md shows, and prune that."
    return what + f"Prune a model of text alone: its text model, {text!r}, is not in the table either."
