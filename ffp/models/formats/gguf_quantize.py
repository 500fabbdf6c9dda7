"""Number formats of GGUF: which type each tensor gets, and its bytes in that type.

Types of 32 numbers a block come from the package gguf. K-quants, which Q4_0 too has for the matrix that writes tokens,
come from llama.cpp's own library, which the package xllamacpp holds. Tensors get the types that llama.cpp's
llama-quantize gives them, but in Q4_K_M for models with blocks that have lost their attention, which it does not count,
and for LLaMA's values in models of 80 blocks, which it gives five bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, LlamaFileType, quants
from gguf import GGMLQuantizationType as Type

from ffp.core.errors import ConfigError
from ffp.core.extras import needs

Numbers = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
FLOATS: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTISED: Mapping[str, Type] = {"Q8_0": Type.Q8_0, "Q4_0": Type.Q4_0, "Q4_K_M": Type.Q4_K}
FILE_TYPES: Mapping[str, LlamaFileType] = {
    "F32": LlamaFileType.ALL_F32,
    **{name: LlamaFileType[f"MOSTLY_{name}"] for name in ("F16", "BF16", *QUANTISED)},
}
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}  # of rows that are no multiple of 256
CHUNK = 1 << 22  # numbers that are quantised at a time


def wanted_type(kind: str, name: str, shape: tuple[int, ...], *, blocks: int, tied: bool) -> Type:
    """Returns the type of a tensor in a file of a kind, if its rows are of the right length.

    Vectors stay in float32. In Q4_0 and Q4_K_M the matrix that writes tokens has 6 bits or more; in Q4_K_M the values
    and ffn_down have 6 bits in the first and last eighth of the blocks and in each third one between.

    Args:
        kind: "F32", "F16", "BF16", "Q8_0", "Q4_0" or "Q4_K_M".
        name: The tensor's name in the file.
        shape: Its shape.
        blocks: Number of blocks of the model.
        tied: Whether token_embd also writes tokens.
    """
    if len(shape) == 1:
        return Type.F32
    if kind in FLOATS:
        return Type[kind]
    if name == ("token_embd.weight" if tied else "output.weight"):
        return Type.Q8_0 if kind == "Q8_0" else Type.Q6_K
    if kind == "Q4_K_M" and "attn_qkv" in name:
        return Type.Q5_K
    if kind == "Q4_K_M" and ("attn_v" in name or "ffn_down" in name):
        block, eighth = int(name.split(".")[1]), blocks // 8
        if block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2:
            return Type.Q6_K
    return QUANTISED[kind]


def possible_type(wanted: Type, columns: int) -> Type:
    """Returns the wanted type, or what takes its place in rows that its blocks do not divide: at last F16."""
    while columns % GGML_QUANT_SIZES[wanted][0]:
        wanted = FALLBACK.get(wanted, Type.F16)
    return wanted


def n_bytes(shape: tuple[int, ...], kind: Type) -> int:
    """Returns the size of a tensor."""
    size, width = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // size * width


def encode(tensor: torch.Tensor, kind: Type) -> npt.NDArray[np.generic]:
    """Returns a tensor's bytes in a type, as an array of any dtype.

    Raises:
        ConfigError: A number is beyond the range of F16.
    """
    if kind.name in FLOATS:
        found = tensor.to(FLOATS[kind.name]).contiguous()
        if kind == Type.F16 and not found.isfinite().all():
            raise ConfigError("weights are beyond the range of F16. Write the GGUF file in BF16 or F32.")
        plain: npt.NDArray[np.generic] = (found.view(torch.int16) if kind == Type.BF16 else found).numpy()
        return plain
    quantise = _ggml() if kind in FALLBACK else quants.quantize
    rows = max(1, CHUNK // tensor.shape[1])
    starts = range(0, len(tensor), rows)
    pieces = (tensor[start : start + rows].float().contiguous().numpy() for start in starts)
    return np.concatenate([*_in_order(lambda numbers: quantise(numbers, kind), pieces)])


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Raises ConfigError for a kind that is unknown, or that needs a package which is not there."""
    for kind in kinds:
        if kind not in FILE_TYPES:
            raise ConfigError(f"GGUF type {kind!r} is unknown. Choose from {', '.join(FILE_TYPES)}.")
        if kind in QUANTISED and kind != "Q8_0":
            _ggml()


def _in_order(action: Callable[[Numbers], Bytes], pieces: Iterator[Numbers]) -> Iterator[Bytes]:
    """Does what map() does, in as many threads as torch has, with no more pieces in memory than threads."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(pieces, threads)):
            yield from pool.map(action, batch)


def _ggml() -> Callable[[Numbers, Type], Bytes]:
    """Returns the quantiser of llama.cpp's library.

    Raises:
        ConfigError: The package with the library is not installed, or hides the function on this system.
    """
    with needs("llama-cpp"):
        from xllamacpp import xllamacpp as extension
    try:
        function = ctypes.CDLL(extension.__file__).ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise ConfigError(
            "the package xllamacpp of this system shows no quantiser. Choose Q8_0, or write F16 and run llama.cpp's "
            "llama-quantize on it."
        ) from error
    function.restype, sizes = ctypes.c_size_t, [ctypes.c_int64] * 3
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *sizes, ctypes.c_void_p]

    def quantise(numbers: Numbers, qtype: Type) -> Bytes:
        rows, columns = numbers.shape
        found = np.empty((rows, n_bytes((columns,), qtype)), np.uint8)
        function(int(qtype), numbers.ctypes.data, found.ctypes.data, 0, rows, columns, None)
        return found

    return quantise
