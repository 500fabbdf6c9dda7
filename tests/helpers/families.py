"""Tiny random models of every family in the table, for the contract tests."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut

COMMON = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GQA = {"num_key_value_heads": 2, "intermediate_size": 40, "head_dim": 8}
CONFIGS = {
    "llama": ("LlamaConfig", {**GQA, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {**GQA, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {k: v for k, v in GQA.items() if k != "head_dim"}),
    "qwen3": ("Qwen3Config", GQA),
    "gemma": ("GemmaConfig", GQA),
    "gemma2": ("Gemma2Config", {**GQA, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("Gemma3TextConfig", {**GQA, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "phi3": ("Phi3Config", {**GQA, "resid_pdrop": 0.0}),
    "smollm3": ("SmolLM3Config", GQA),
    "granite": ("GraniteConfig", {**GQA, "attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2}),
    "olmo": ("OlmoConfig", {**GQA, "clip_qkv": 2.0}),
    "olmo2": ("Olmo2Config", GQA),
    "olmo3": ("Olmo3Config", {**GQA, "sliding_window": 16}),
    "cohere": ("CohereConfig", {**GQA, "logit_scale": 0.2}),
    "cohere2": ("Cohere2Config", {**GQA, "sliding_window": 16}),
    "exaone4": ("Exaone4Config", {**GQA, "sliding_window": 16}),
    "ministral": ("MinistralConfig", {**GQA, "sliding_window": 16}),
    "seed_oss": ("SeedOssConfig", {**GQA, "residual_dropout": 0.0}),
    "ernie4_5": ("Ernie4_5Config", {**GQA, "use_bias": True}),
    "glm": ("GlmConfig", GQA),
    "glm4": ("Glm4Config", GQA),
    "starcoder2": ("Starcoder2Config", {**GQA, "residual_dropout": 0.0, "sliding_window": None}),
    "phi": ("PhiConfig", {"num_key_value_heads": 2, "intermediate_size": 40, "qk_layernorm": True}),
    "stablelm": ("StableLmConfig", {"num_key_value_heads": 2, "intermediate_size": 40, "use_qkv_bias": True}),
    "opt": ("OPTConfig", {"ffn_dim": 40, "word_embed_proj_dim": 48, "dropout": 0.0}),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": 40, "hidden_dropout": 0.0}),
}


def tiny(model_type: str, seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """A float64 random model of the family, for inference; changes: of its configuration."""
    name, own = CONFIGS[model_type]
    config = getattr(transformers, name)(**{**COMMON, **own, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if "norm" in name and name.endswith("weight"):
            parameter.data.add_(1.0)
    return model.eval().requires_grad_(False)


def tokens(n: int = 2, context: int = 20) -> torch.Tensor:
    """Random token windows of COMMON's vocabulary."""
    return torch.randint(3, 97, (n, context), generator=torch.Generator().manual_seed(1))


def pruned(model_type: str, *, equal: bool = False) -> PrunableModel:
    """A tiny model with units cut out: as many in every block, or in each block others."""
    prunable = PrunableModel(tiny(model_type))
    gone = {"attention": (1, 0, 1), "ffn": (3, 4, 7)}
    if equal:
        gone = {"attention": (0, 0, 0), "ffn": (8, 8, 8)}
    first = {m.decision.name: min(gone[m.kind][m.block], m.n_indices - 1) for m in prunable.modules}
    cut(prunable, {m.decision.name: range(first[m.decision.name], m.n_indices) for m in prunable.modules})
    return prunable


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of COMMON's vocabulary: a character is a token."""
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2} | {chr(33 + i): 3 + i for i in range(94)}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
