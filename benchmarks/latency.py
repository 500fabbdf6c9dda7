"""Times and sizes exported checkpoints against the dense model, in one run: what pruning gains.

    python -m benchmarks.latency

Needs what `make demo` leaves behind, and xllamacpp. Each checkpoint is exported, loaded again as a user would, and run
in turn with the dense model, ROUNDS times. Times over dense are medians of the ratios within a round, by sparsity: what
slows the machine for a while slows both sides.

- `prefill_over_dense`: a prompt of PROMPT tokens, batch 1, with cache and the last token's logits, as generation does.
- `decode_over_dense`: STEPS greedy tokens after that prompt, one at a time.
- `bytes_over_dense`: size of the weights' file; `kept_params_share`: share of the model's parameters that it keeps.
- `cache_bytes_over_dense`: the KV cache after the prompt.
- `gguf_prompt_speedup`, `gguf_decode_speedup`: both as GGUF files in llama.cpp, the dense model's time over that of the
  model without GGUF_SPARSITY of its parameters, by the files' type: "unpadded" is as pruned, "padded" has widths in
  multiples of 32. `gguf_bytes_over_dense`: size of the file.

METHOD allocates (it must need no search); the channels that stay are the best by the calibration's score.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import llama_cpp
from benchmarks.common import make_parser, open_model, write_marks
from ffp import api
from ffp.allocators import create
from ffp.config import Experiment
from ffp.measure.speed import time_round
from ffp.models.checkpoint import load_pruned, load_tokenizer
from ffp.models.formats import Transformers
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import make_cut
from ffp.store.layout import Layout

SCHEMA = "ffp/benchmark/latency/2"
SPARSITIES = (0.2, 0.3, 0.5)
GGUF_SPARSITY = 0.3
SETTINGS = ("config", "model", "method", "align", "dtype", "prompt", "steps", "gguf_steps", "rounds", "threads")


def main() -> None:
    """Exports and times the checkpoints and writes the JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    experiment = Experiment(options.config)
    changes = {"dtype": options.dtype, "device": "cpu", "align": options.align}
    experiment.models[options.model] = experiment.models[options.model].model_copy(update=changes)
    dense, calibration = open_model(experiment, options.model)
    ids = calibration.windows.search.reshape(1, -1)[:, : options.prompt]
    tokenizer = load_tokenizer(Layout.from_grid(experiment.grid).model(options.model).folder)
    models: dict[float, Any] = {0.0: dense.model}
    size = {}
    with tempfile.TemporaryDirectory() as scratch:
        dense.model.save_pretrained(Path(scratch, "0.0"))
        size[0.0] = _file_bytes(Path(scratch, "0.0"))
        ggufs = llama_cpp.write_files(dense, tokenizer, Path(scratch), llama_cpp.DENSE, pad=1)
        for sparsity in SPARSITIES:
            out = Path(scratch, str(sparsity))
            out.mkdir()
            pruned = _prune(experiment, options.model, options.method, sparsity)
            Transformers().save(pruned, tokenizer, out)
            models[sparsity], size[sparsity] = load_pruned(out, device="cpu"), _file_bytes(out)
            if sparsity == GGUF_SPARSITY:
                for variant, pad in (("unpadded", 1), ("padded", 32)):
                    ggufs += llama_cpp.write_files(pruned, tokenizer, Path(scratch), variant, pad=pad)
            del pruned
        with torch.inference_mode():
            times, cache = _measure(models, ids, options.rounds, options.steps)
        gguf_marks, gguf_dense = llama_cpp.measure(
            ggufs, ids[0].tolist(), steps=options.gguf_steps, rounds=options.rounds, threads=options.threads
        )
    params = {s: sum(p.numel() for p in set(model.parameters())) for s, model in models.items()}
    marks = {
        **{f"{kind}_over_dense": _ratios(by_sparsity) for kind, by_sparsity in times.items()},
        "bytes_over_dense": _over_dense(size),
        "kept_params_share": _over_dense(params),
        "cache_bytes_over_dense": _over_dense(cache),
        **gguf_marks,
    }
    figures = {f"{kind}_s": statistics.median(by_sparsity[0.0]) for kind, by_sparsity in times.items()}
    body = {"marks": marks, "dense": {**figures, "file_bytes": size[0.0], "gguf": gguf_dense}}
    settings = {name: str(value) if isinstance(value := getattr(options, name), Path) else value for name in SETTINGS}
    write_marks(options.out, SCHEMA, body, settings)


def _options() -> argparse.Namespace:
    parser = make_parser("benchmarks.latency", __doc__, grid="demo")
    parser.add_argument("--model", default="smollm2-135m", help="model of the grid (%(default)s)")
    parser.add_argument("--method", default="ffn-only", help="an allocation without a search (%(default)s)")
    parser.add_argument("--align", type=int, default=1, help="kept FFN channels are a multiple of it (%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (%(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="decoded tokens in a round (%(default)s)")
    parser.add_argument("--gguf-steps", type=int, default=64, help="the same in llama.cpp (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="times that each model runs (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch and llama.cpp (%(default)s)")
    return parser.parse_args()


def _prune(experiment: Experiment, name: str, method: str, sparsity: float) -> PrunableModel:
    """Prunes a fresh copy of the model as `ffp export` does."""
    prunable, calibration = open_model(experiment, name)
    cut = make_cut("structured", score=experiment.grid.calibration.score, compensation="none", pruner="wanda")
    answer = api.allocate(prunable, calibration, create(method, {}), sparsity=sparsity, cut=cut)
    masks = api.make_masks(prunable, calibration, answer.problem, answer.allocation, cut)
    api.install(prunable, answer.problem, masks, cut)
    return prunable


def _file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _measure(
    models: dict[float, Any], ids: torch.Tensor, rounds: int, steps: int
) -> tuple[dict[str, dict[float, list[float]]], dict[float, int]]:
    """Seconds of a prefill and of one decoded token in each round, and bytes of the cache; the models take turns."""
    times: dict[str, dict[float, list[float]]] = {kind: {s: [] for s in models} for kind in ("prefill", "decode")}
    cache: dict[float, int] = {}
    for number in range(rounds + 1):
        for sparsity, model in models.items():
            prefill_s, decode_s, first = time_round(model, ids, steps)
            layers = first.past_key_values.layers
            cache[sparsity] = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
            if number:  # the first round warms up
                times["prefill"][sparsity].append(prefill_s)
                times["decode"][sparsity].append(decode_s)
    return times, cache


def _ratios(times: dict[float, list[float]]) -> dict[str, float]:
    """By sparsity the median over rounds of time over the dense model's in that round."""
    return {
        f"{s:.2f}": statistics.median(mine / dense for mine, dense in zip(found, times[0.0], strict=True))
        for s, found in times.items()
        if s
    }


def _over_dense(values: dict[float, Any]) -> dict[str, float]:
    return {f"{s:.2f}": value / values[0.0] for s, value in values.items() if s}


if __name__ == "__main__":
    main()
