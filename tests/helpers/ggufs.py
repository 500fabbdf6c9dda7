"""Tiny random GGUF files of several architectures, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

HIDDEN, FFN, HEADS, GROUPS, WIDTH, BLOCKS, VOCABULARY = 64, 96, 4, 2, 16, 2, 300
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "phi3")  # model types, which are names of architectures, too


def write_gguf(
    path: Path,
    family: str,
    *,
    tied: bool = True,
    types: Sequence[str] = ("F32",),
    replaced: Mapping[str, np.ndarray | None] | None = None,
    of_type: Mapping[str, str] | None = None,
    pre: str = "gpt-2",
    architecture: str = "",
) -> dict[str, np.ndarray]:
    """Writes a file.

    Args:
        path: The file.
        family: One of FAMILIES.
        tied: Leave the head out.
        types: Types of the matrices, in turn.
        replaced: Other values of tensors, by name; None leaves one out.
        of_type: Types of tensors, by name.
        pre: Name of the pre-tokenizer.
        architecture: What the file says in place of the family.

    Returns:
        The tensors before they are quantised.
    """
    rng, kinds = np.random.default_rng(0), cycle(types)
    writer = gguf.GGUFWriter(path, architecture or family)
    _write_sizes(writer)
    _write_tokens(writer, pre)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in _shapes(family, tied=tied).items():
        values = rng.standard_normal(shape).astype(np.float32) if name not in (replaced or {}) else replaced[name]  # type: ignore[index]
        if values is None:
            continue
        tensors[name] = values
        kind = gguf.GGMLQuantizationType[(of_type or {}).get(name, next(kinds) if len(shape) > 1 else "F32")]
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _write_sizes(writer: Any) -> None:
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_key_length(WIDTH)
    writer.add_value_length(WIDTH)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)


def _write_tokens(writer: Any, pre: str) -> None:
    """Byte-level BPE: the 256 bytes, one merge and some names."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<s>", "</s>", "<|endoftext|>", *bytes_to_unicode().values(), "ab"]
    tokens += [f"token{i}" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(2)


def _shapes(family: str, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a family's tensors by their names in the file, from a model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    sizes = {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": BLOCKS, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "pad_token_id": 0}
    heads["head_dim"] = 128 if family == "qwen3" else WIDTH  # which transformers does not read of a qwen3 file
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads))
    state = model.state_dict()
    names = get_gguf_hf_weights_map(model, TensorProcessor())
    return {ours: tuple(state[name].shape) for ours, name in names.items() if not (tied and ours == "output.weight")}
