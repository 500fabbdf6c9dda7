"""Tiny random models of every family in the table, for the contract tests."""

from __future__ import annotations

import torch
import transformers

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
    "opt": ("OPTConfig", {"ffn_dim": 40, "word_embed_proj_dim": 48, "dropout": 0.0}),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": 40, "hidden_dropout": 0.0}),
}


def tiny(model_type: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A float64 random model of the family, for inference."""
    name, own = CONFIGS[model_type]
    config = getattr(transformers, name)(**{**COMMON, **own})
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
