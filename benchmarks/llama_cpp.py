"""Writes a model as GGUF and times such files in llama.cpp, in this process, by the package xllamacpp."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffp.core.extras import needs
from ffp.core.problem import FloatArray
from ffp.models.formats.gguf import Gguf
from ffp.models.prunable import PrunableModel

TYPES = ("F16", "Q8_0", "Q4_0")
DENSE = "dense"


@dataclass(frozen=True)
class File:
    """A GGUF file of one of the variants that are compared.

    Attributes:
        variant: "dense" or another name.
        kind: One of TYPES.
        path: Where it is.
    """

    variant: str
    kind: str
    path: Path


def write_files(prunable: PrunableModel, tokenizer: Any, folder: Path, variant: str, *, pad: int) -> list[File]:
    """Writes a model in all TYPES; pad: see Gguf."""
    (into := folder / variant).mkdir()
    Gguf(quantize=TYPES, pad=pad).save(prunable, tokenizer, into)
    return [File(variant, kind, into / f"model-{kind}.gguf") for kind in TYPES]


def measure(
    files: Sequence[File], prompt: list[int], *, steps: int, rounds: int, threads: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times files in turns: reading a prompt and writing tokens after it.

    Args:
        files: Of several variants, DENSE among them.
        prompt: Token ids.
        steps: Tokens after the prompt.
        rounds: Times that each file runs, after once that does not count.
        threads: Of llama.cpp.

    Returns:
        Marks, by type and variant: medians over rounds of the dense file's time over this one's in that round, and
        sizes over the dense one's. Seconds of the dense files, by type: medians for the prompt and for one token.
    """
    servers = [_serve(file.path, len(prompt) + steps + 1, threads) for file in files]
    times: dict[tuple[str, str], list[tuple[float, float]]] = {(file.kind, file.variant): [] for file in files}
    for number in range(rounds + 1):
        for file, server in zip(files, servers, strict=True):
            found = _time(server, prompt, steps)
            times[file.kind, file.variant] += [found] if number else []
    size = {(file.kind, file.variant): file.path.stat().st_size for file in files}
    marks: dict[str, Any] = {"gguf_prompt_speedup": {}, "gguf_decode_speedup": {}, "gguf_bytes_over_dense": {}}
    for (kind, variant), mine in times.items():
        if variant == DENSE:
            continue
        for place, name in enumerate(("gguf_prompt_speedup", "gguf_decode_speedup")):
            pairs = zip(times[kind, DENSE], mine, strict=True)
            marks[name].setdefault(kind, {})[variant] = statistics.median(d[place] / m[place] for d, m in pairs)
        marks["gguf_bytes_over_dense"].setdefault(kind, {})[variant] = size[kind, variant] / size[kind, DENSE]
    dense = {kind: _medians(found) for (kind, variant), found in times.items() if variant == DENSE}
    return marks, dense


def losses(file: Path, windows: Sequence[Sequence[int]], *, threads: int) -> FloatArray:
    """Loss of each token of each window but the first, by llama.cpp: (windows, tokens - 1), nats.

    A token that ends within a character has NaN, since llama.cpp withholds its probability. Keys and values are kept in
    float32. llama.cpp sums the probabilities in float32: with 49,152 tokens a loss is about 1e-4 too low.
    """
    server = _serve(file, len(windows[0]) + 2, threads, exact=True)
    found = np.full((len(windows), len(windows[0]) - 1), np.nan)
    for row, ids in enumerate(windows):
        for place, token in enumerate(ids[1:]):
            settings = {"max_tokens": 1, "logprobs": 1, "logit_bias": [[token, 10000.0]]}
            answer = server.handle_completions({"prompt": list(ids[: place + 1]), **settings})["choices"][0]
            if answer["logprobs"]:
                found[row, place] = -answer["logprobs"]["content"][0]["logprob"]
    return found


def _medians(times: Sequence[tuple[float, float]]) -> Mapping[str, float]:
    prompt_s, decode_s = (statistics.median(each) for each in zip(*times, strict=True))
    return {"prompt_s": prompt_s, "decode_s": decode_s}


def _serve(file: Path, context: int, threads: int, *, exact: bool = False) -> Any:
    """Loads a file into a server of llama.cpp within this process."""
    with needs("llama-cpp"):
        import xllamacpp
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = context, 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    if exact:
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(parameters)


def _time(server: Any, prompt: list[int], steps: int) -> tuple[float, float]:
    """Seconds for the prompt, and for one token after it; the first token comes with the prompt."""
    settings = {"max_tokens": steps + 1, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    found = server.handle_completions({"prompt": prompt, **settings})["timings"]
    assert found["prompt_n"] == len(prompt) and found["predicted_n"] == steps + 1, found
    return found["prompt_ms"] / 1000, found["predicted_ms"] / 1000 / steps
