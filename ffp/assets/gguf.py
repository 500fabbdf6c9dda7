"""Converts a GGUF file to a Hugging Face folder, tensor by tensor, so that no model is ever in memory.

The `gguf` package reads and dequantises; transformers says how the file's names, configuration, tokenizer and
permuted rows become its own. Where both are what transformers' loader uses, the weights are equal to its, bit by bit.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import ReaderTensor, dequantize

from ffp.assets.build import check_space
from ffp.config import LmHead
from ffp.core.errors import AssetError
from ffp.store.schemas import PRUNED_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LOG = logging.getLogger("ffp")
PIECE = 1 << 18  # weights that are dequantised at a time, 1 MB in float32: the fastest of 2^12 to 2^20
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
SAMPLE = 1024  # rows of the vocabulary in which embeddings and head are compared
UNALIKE = 0.5  # their RMS difference, relative; two roundings of one matrix differ by 0.1 or less, two matrices by 1.4


def convert(file: Path, into: Path, lm_head: LmHead = "auto") -> None:
    """Writes a GGUF file's weights (dequantised to float32), configuration and tokenizer as a Hugging Face folder.

    In memory are at most one tensor and a copy of it, where its rows are permuted; of the two largest, embeddings and
    head, a few megabytes.

    Args:
        file: The GGUF file.
        into: The folder, which exists.
        lm_head: "tied" makes embeddings and head one matrix, the more finely quantised of the two; "apart" keeps both;
            "auto" does what the file does.

    Raises:
        ValueError: The architecture, a type of quantisation or a tensor is not what it has to be, in one line.
        AssetError: The disk has too little space, or ffp pruned the model.
        OSError: The disk is full, or a file cannot be read or written.
    """
    from transformers import AutoConfig, AutoTokenizer

    reader = _Reader(file)
    _check_parent(reader, file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check_types(tensors)
    with _once(reader):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        _tie(config, tensors, lm_head)
        model = _skeleton(config)
        weights = _Weights(model, tensors, str(reader.fields["general.architecture"].contents()))
    check_space(into, weights.n_bytes, f"{file.name} in float32")
    with (into / "model.safetensors").open("wb") as target:
        weights.write(target, file.name)
    model.config.save_pretrained(into)
    model.generation_config.save_pretrained(into)
    tokenizer.save_pretrained(into)


def _check_parent(reader: gguf.GGUFReader, file: Path) -> None:
    """Raises AssetError where ffp pruned the model of a file."""
    name = reader.fields.get("general.name")
    if name is not None and str(name.contents()).endswith(PRUNED_NAME):
        raise AssetError(
            f"{file.name} is a model that ffp pruned, and is not pruned again. Prune its parent with a higher sparsity."
        )


class _Reader(gguf.GGUFReader):
    """GGUFReader on a plain array over the mapped file: it takes millions of slices, and those of a memmap are slow."""

    @property
    def data(self) -> Any:
        return self._data

    @data.setter
    def data(self, mapped: Any) -> None:
        self._data = np.asarray(mapped)


@contextmanager
def _once(reader: Any) -> Iterator[None]:
    """Lets transformers do once what it does over and over: parse the file, and list the names of a module's tensors.

    A vocabulary has 300,000 strings, and transformers would read them three times; it lists the names for each module.
    """
    package: Any = gguf
    stock = package.GGUFReader, package.get_tensor_name_map
    package.GGUFReader, package.get_tensor_name_map = lambda *_: reader, functools.cache(stock[1])
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map = stock


def _tie(config: PreTrainedConfig, tensors: dict[str, ReaderTensor], lm_head: LmHead) -> None:
    """Makes configuration and tensors tied, if they are to be; ValueError where `lm_head` cannot be met."""
    if HEAD not in tensors or EMBEDDINGS not in tensors:
        if lm_head == "apart":
            raise ValueError(f"lm_head is apart, but the file holds no {HEAD}; leave lm_head out")
        return
    if lm_head != "tied":
        return
    both = tensors[EMBEDDINGS], tensors.pop(HEAD)
    if both[0].n_elements != both[1].n_elements or _difference(*both) > UNALIKE:
        raise ValueError("lm_head is tied, but the file's embeddings and head are two matrices; say lm_head: apart")
    tensors[EMBEDDINGS] = max(both, key=lambda tensor: int(tensor.n_bytes))  # the first one, where both are as fine
    config.tie_word_embeddings = True


def _difference(left: ReaderTensor, right: ReaderTensor) -> float:
    """RMS difference of two tensors relative to the first one's RMS, in rows spread over them."""
    rows = np.linspace(0, len(left.data) - 1, min(SAMPLE, len(left.data))).astype(int)
    first, second = (dequantize(tensor.data[rows], tensor.tensor_type) for tensor in (left, right))
    return float(np.sqrt(np.mean((first - second) ** 2) / np.mean(first**2)))


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights: its parameters have names and shapes only."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.architectures = [type(model).__name__]
    return model  # type: ignore[no-any-return]


def _check_types(tensors: Mapping[str, ReaderTensor]) -> None:
    """Raises ValueError for the first type that cannot be dequantised, before anything is written."""
    for tensor in {tensor.tensor_type: tensor for tensor in tensors.values()}.values():
        try:
            dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ValueError(f"its tensor {tensor.name} is of type {kind}, which cannot be dequantised") from error


class _Weights:
    """A model's parameters as they lie in model.safetensors, by name, and where each comes from."""

    def __init__(self, model: Any, tensors: Mapping[str, ReaderTensor], architecture: str) -> None:
        """Pairs parameters with tensors.

        Args:
            model: With parameters on the device "meta".
            tensors: Those of the file, by their names there.
            architecture: The file's name of it.

        Raises:
            ValueError: A parameter has no tensor, or one of another size.
        """
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        self.plain = processor is TensorProcessor
        self.processor = processor(config=model.config.to_dict())
        self.names: dict[str, str] = get_gguf_hf_weights_map(model, self.processor)
        self.sources = {name: tensors[theirs] for theirs, name in self.names.items() if theirs in tensors}
        self.shapes = _shapes(model)
        if missing := sorted(self.shapes.keys() - self.sources.keys()):
            raise ValueError(f"it lacks {', '.join(missing[:3])}")
        for name, shape in self.shapes.items():
            tensor = self.sources[name]
            if tensor.n_elements != np.prod(shape):
                found = tensor.shape.tolist()[::-1]
                raise ValueError(f"its tensor {tensor.name} has shape {found}, but {name} is {list(shape)}")
        self.n_bytes = sum(4 * int(np.prod(shape)) for shape in self.shapes.values())

    def write(self, target: IO[bytes], title: str) -> None:
        """Writes the file; a bar on a terminal, else a line in the log for each quarter.

        Args:
            target: The file, opened.
            title: What the bar is about.
        """
        from tqdm import tqdm

        target.write(_header(self.shapes))
        done = 0
        with tqdm(
            total=self.n_bytes, unit="B", unit_scale=True, desc=title, disable=not sys.stderr.isatty(), leave=False
        ) as bar:
            for name in self.shapes:
                for piece in self._pieces(name):
                    target.write(piece.data)
                    bar.update(piece.nbytes)
                    before, done = done, done + piece.nbytes
                    if bar.disable and 4 * before // self.n_bytes < 4 * done // self.n_bytes:
                        LOG.info("%s: %.0f %% converted", title, 100 * done / self.n_bytes)

    def _pieces(self, name: str) -> Iterator[np.ndarray]:
        """A parameter's values in their order, float32: row by row where rows stay what they are, else as a whole."""
        tensor = self.sources[name]
        if self.plain or tensor.name in (EMBEDDINGS, HEAD):
            yield from _dequantised(tensor)
            return
        whole = np.concatenate(list(_dequantised(tensor))).reshape(tensor.shape.tolist()[::-1])
        held: dict[str, Any] = {"tensors": {}}
        done = self.processor.process(
            weights=whole, name=tensor.name, tensor_key_mapping=self.names, parsed_parameters=held
        )
        if done.name is None:
            raise ValueError(f"its tensor {tensor.name} is one of several that make {name}, which ffp cannot join")
        yield np.ascontiguousarray(done.weights, dtype=np.float32)


def _dequantised(tensor: ReaderTensor) -> Iterator[np.ndarray]:
    """The values of a tensor in pieces of whole rows, (n,) float32 each."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    step = max(1, PIECE * len(rows) // int(tensor.n_elements))
    for start in range(0, len(rows), step):
        values = dequantize(rows[start : start + step].reshape(1, -1), tensor.tensor_type)
        yield np.ascontiguousarray(values, dtype=np.float32).reshape(-1)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters and saved buffers by name, sorted; tied ones by their first name."""
    first: dict[int, tuple[str, tuple[int, ...]]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        first.setdefault(id(value), (name, tuple(value.shape)))
    return dict(sorted(first.values()))


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The header of a safetensors file of float32, as the safetensors package writes it."""
    body: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        body[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
