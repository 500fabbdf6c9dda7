"""The model behind tests/parity/data, rebuilt from a frozen random stream (numpy's legacy RandomState)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parents[1] / "parity" / "data"
BLOCKS, HIDDEN, FFN, VOCAB, HEADS = 3, 256, 704, 512, 2


def build() -> tuple[LlamaForCausalLM, torch.Tensor]:
    """The float32 model and its 16 x 128 calibration tokens; the order of the draws is part of the definition."""
    stream = np.random.RandomState(20251124)

    def linear(rows: int, columns: int, spread: float) -> torch.Tensor:
        weight = stream.standard_normal((rows, columns)) * 0.04
        return torch.from_numpy((weight * np.exp(spread * stream.standard_normal((1, columns)))).astype(np.float32))

    state = {"model.embed_tokens.weight": torch.from_numpy(stream.standard_normal((VOCAB, HIDDEN)).astype(np.float32))}
    for block in range(BLOCKS):
        prefix, spread = f"model.layers.{block}.", 0.2 + 0.4 * block
        for name in "qkvo":
            state[f"{prefix}self_attn.{name}_proj.weight"] = linear(HIDDEN, HIDDEN, spread)
        for name, shape in (("gate", (FFN, HIDDEN)), ("up", (FFN, HIDDEN)), ("down", (HIDDEN, FFN))):
            state[f"{prefix}mlp.{name}_proj.weight"] = linear(*shape, spread)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = torch.ones(HIDDEN)
    state["model.norm.weight"] = torch.ones(HIDDEN)
    state["lm_head.weight"] = linear(VOCAB, HIDDEN, 0.2)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=256,
        tie_word_embeddings=False, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval().requires_grad_(False)
    model.load_state_dict(state)
    return model, torch.from_numpy(stream.randint(0, VOCAB, (16, 128)).astype(np.int64))
