"""GGUF, the format of llama.cpp and of what is built on it: one file, which the stock programs load."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGUFWriter
from gguf import GGMLQuantizationType as Type

from ffp.core.errors import ConfigError
from ffp.models.formats.base import Format, Saved
from ffp.models.formats.gguf_quantize import (
    FILE_TYPES,
    FLOATS,
    check_kinds,
    encode,
    n_bytes,
    possible_type,
    wanted_type,
)
from ffp.models.formats.gguf_tensors import Layout, Tensor, is_tied, lay_out
from ffp.models.formats.gguf_tokenizer import Vocabulary, read_vocabulary
from ffp.store.schemas import PRUNED_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ffp.models.prunable import PrunableModel

# llama.cpp builds most architectures from block 0's sizes; these two have sizes of each block.
ARCHITECTURES = {"llama": "deci", "mistral": "deci", "qwen2": "deci", "qwen3": "openelm"}
INSTEAD = "Use --format transformers, or --format dense-shape and llama.cpp's own converter."
ROPES = {"deci": ("default", "linear", "llama3"), "openelm": ("default",)}
TESTED = "xllamacpp 2026.10.11549"

USAGE = """llama.cpp, and what is built on it, runs this model as it is; tested with the llama.cpp of {tested}. Every
block has its own numbers of heads and FFN channels, so the file names the architecture `{arch}`, whose blocks may
differ.

In Python, by `pip install xllamacpp`:

```python
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = "PATH/{file}"
server = xllamacpp.Server(params)
print(server.handle_completions({{"prompt": "Once upon a time", "max_tokens": 64}}))
```

In Ollama (not tested), a file `Modelfile` that says `FROM ./{file}`, then `ollama create NAME -f Modelfile`.
From a shell:"""
RUN = ('llama-cli -m PATH/{file} -p "Once upon a time"', "llama-server -m PATH/{file} --port 8080")


@dataclass(frozen=True)
class Gguf(Format):
    """Writes GGUF files, with tokenizer and chat template in them.

    Attributes:
        pad: Query heads and FFN channels are filled up with zeros, so that the inputs of attn_output and ffn_down are
            multiples of this: quantised types have blocks of 32 numbers, K-quants of 256. 1 adds none.
        quantize: "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", a file each; without any, one in the model's dtype.
    """

    name: ClassVar[str] = "gguf"
    pad: int = 32
    quantize: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for options that make no sense, or need a package that is missing."""
        if self.pad < 1:
            raise ConfigError(f"pad is {self.pad}. Give 1, for no padding, or more.")
        check_kinds(self.quantize)

    def check(self, prunable: PrunableModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ConfigError where GGUF cannot hold a model or its tokenizer."""
        _check_family(prunable.config)
        if prunable.attention_units == "single-query-heads":
            raise ConfigError(
                "GGUF has no place for query heads that share KV heads unequally. Take attention_units: query-heads, "
                "or another --format."
            )
        read_vocabulary(tokenizer, prunable.config.vocab_size)

    def takes_biases(self, prunable: PrunableModel) -> bool:
        """Returns whether llama.cpp's architecture reads them."""
        return ARCHITECTURES[prunable.config.model_type] != "openelm"

    def save(
        self, prunable: PrunableModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, parent: Path | None = None
    ) -> Saved:
        """Writes model-TYPE.gguf into a folder, one file for each type, tensor by tensor.

        Args:
            prunable: A model that was cut.
            tokenizer: Its tokenizer.
            folder: It exists.
            parent: Not used: all is in the model and its tokenizer.

        Returns:
            How to run it; the notes say which tensors have another type than was asked for.

        Raises:
            ConfigError: GGUF cannot hold the model; see check().
        """
        _check_family(prunable.config)
        arch = ARCHITECTURES[prunable.config.model_type]
        layout = lay_out(prunable, arch, pad=self.pad)
        if (factors := _rope_factors(prunable.config)) is not None:
            layout.tensors.append(Tensor("rope_freqs.weight", tuple(factors.shape), lambda: factors))
        rows = layout.tensors[0].shape[0]
        vocabulary = read_vocabulary(tokenizer, rows)
        kinds = self.quantize or (_own_type(prunable),)
        notes: list[str] = []
        for kind in kinds:
            notes += _write(folder / f"model-{kind}.gguf", kind, arch, layout, vocabulary, prunable)
        file = f"model-{kinds[0]}.gguf"
        text = USAGE.format(arch=arch, file=file, tested=TESTED)
        return Saved(
            text, [line.format(file=file) for line in RUN], "shell", tags=("gguf",), library="gguf", notes=notes
        )


def _own_type(prunable: PrunableModel) -> str:
    """Name of the type of a model's dtype."""
    return {dtype: name for name, dtype in FLOATS.items()}.get(prunable.model.dtype, "F32")


def _check_family(config: Any) -> None:
    """Raises ConfigError for a model that llama.cpp's architectures compute otherwise, or not at all."""
    family = config.model_type
    if family not in ARCHITECTURES:
        raise ConfigError(f"GGUF has no architecture for a pruned {family}: its blocks must all be alike. {INSTEAD}")
    if family == "qwen3" and not config.tie_word_embeddings:
        raise ConfigError(f"GGUF has an architecture for a pruned qwen3 only if its embeddings are tied. {INSTEAD}")
    if ARCHITECTURES[family] == "openelm" and config.attention_bias:
        raise ConfigError(
            f"GGUF has no architecture for a pruned {family} whose own attention has biases (attention_bias is true in "
            "its configuration). Use --format transformers."
        )
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    if window and window < config.max_position_embeddings and "sliding_attention" in layers:
        raise ConfigError(
            f"GGUF has no architecture for a pruned {family} with a sliding window ({window} tokens). {INSTEAD}"
        )
    rope = _rope(config)
    known = ROPES[ARCHITECTURES[family]]
    if rope["rope_type"] not in known:
        raise ConfigError(
            f"rope scaling {rope['rope_type']!r} cannot be written as GGUF for a pruned {family} (known: "
            f"{', '.join(known)}). {INSTEAD}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or _head_width(config) % 2:
        raise ConfigError(f"GGUF has no architecture for a pruned {family} that turns a part of each head. {INSTEAD}")
    if config.hidden_act != "silu":
        raise ConfigError(f"GGUF has no architecture for a pruned {family} with {config.hidden_act}. {INSTEAD}")


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    """The rope parameters of a configuration, with their defaults."""
    return {"rope_type": "default", "rope_theta": 10000.0, **(config.rope_parameters or {})}


def _rope_factors(config: Any) -> torch.Tensor | None:
    """What llama.cpp divides the default frequencies by, (head width / 2,); None where they are the default."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope, width = _rope(config), _head_width(config)
    if rope["rope_type"] == "default":
        return None
    frequencies, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    default = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    factors: torch.Tensor = (default / frequencies).float()
    return factors


def _write(
    path: Path, kind: str, arch: str, layout: Layout, vocabulary: Vocabulary, prunable: PrunableModel
) -> list[str]:
    """Writes one file; a line that says which tensors have another type."""
    tied, blocks = is_tied(prunable.model), len(layout.heads)
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it reports every file's byte order
    writer = GGUFWriter(path, arch)
    _write_sizes(writer, prunable.config, layout)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(2)
    vocabulary.write(writer)
    types: list[Type] = []
    others: dict[str, Type] = {}
    for tensor in layout.tensors:
        wanted = wanted_type(kind, tensor.name, tensor.shape, blocks=blocks, tied=tied)
        types.append(possible_type(wanted, tensor.shape[-1]))
        others |= {tensor.name: wanted} if types[-1] != wanted else {}
        size = n_bytes(tensor.shape, types[-1])
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=types[-1])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, given in zip(layout.tensors, types, strict=True):
            writer.write_tensor_data(encode(tensor.read(), given))
    finally:
        writer.close()
    return _other_types(kind, layout, types, others)


def _other_types(kind: str, layout: Layout, types: list[Type], wanted: dict[str, Type]) -> list[str]:
    """A line on the matrices that have another type than was wanted; none if there are none."""
    if not wanted:
        return []
    names = {given.name for tensor, given in zip(layout.tensors, types, strict=True) if tensor.name in wanted}
    widths = sorted({GGML_QUANT_SIZES[each][0] for each in wanted.values()})
    matrices = sum(len(tensor.shape) == 2 for tensor in layout.tensors)
    return [
        f"{kind}: {len(wanted)} of {matrices} matrices as {' or '.join(sorted(names))}, since their width is no "
        f"multiple of {' or '.join(map(str, widths))}"
    ]


def _write_sizes(writer: GGUFWriter, config: Any, layout: Layout) -> None:
    """Adds what a file says about the model but its tokens."""
    width = _head_width(config)
    writer.add_type("model")
    writer.add_name(f"{config.model_type} {PRUNED_NAME}")
    writer.add_block_count(len(layout.heads))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(layout.tensors[0].shape[0])
    writer.add_head_count(layout.heads)
    writer.add_head_count_kv(layout.groups)
    writer.add_feed_forward_length(layout.channels)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
