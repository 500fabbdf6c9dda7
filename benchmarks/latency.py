"""What pruning gains: time and size of exported checkpoints against the dense model, in one run.

    python benchmarks/latency.py

Needs what `make demo` leaves behind. Each checkpoint is exported, loaded again as a user would, and run in turn with
the dense model, ROUNDS times. Times over dense are medians of the ratios within a round, by sparsity: what slows the
machine for a while slows both sides.

- `prefill_over_dense`: a prompt of PROMPT tokens, batch 1, with cache and the last token's logits, as generation does.
- `decode_over_dense`: STEPS greedy tokens after that prompt, one at a time.
- `bytes_over_dense`: size of the weights' file; `kept_params_share`: the share of the model's parameters that it keeps.
- `cache_bytes_over_dense`: the KV cache after the prompt.

The allocation is the method's (METHOD; it must need no search), the channels are the best by the calibration's score.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffp.allocators import registry
from ffp.config import Experiment, ModelConfig
from ffp.models.checkpoint import load_model, load_pruned, save_pruned
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from ffp.pipeline import steps
from ffp.pruning.structured import kept_units
from ffp.store.files import read_tensors, write_json
from ffp.store.provenance import provenance

SCHEMA = "ffp/benchmark/latency/1"
SPARSITIES = (0.2, 0.3, 0.5)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    project = Experiment(options.config)
    config = project.models[options.model].model_copy(update={"dtype": options.dtype, "device": "cpu"})
    data = Path(project.grid.data)
    folder, calibration = data / "models" / options.model, data / "calibration" / options.model
    arrays, _ = read_tensors(calibration / "tokens.safetensors", steps.TOKENS)
    ids = torch.from_numpy(arrays["search"].astype(np.int64)).reshape(1, -1)[:, : options.prompt]
    models: dict[float, Any] = {0.0: load_model(folder, config)}
    size = {}
    with tempfile.TemporaryDirectory() as scratch:
        models[0.0].save_pretrained(Path(scratch, "0.0"))
        size[0.0] = _file_bytes(Path(scratch, "0.0"))
        for sparsity in SPARSITIES:
            out = Path(scratch, str(sparsity))
            _export(project, config, folder, calibration, sparsity, options, out)
            models[sparsity], size[sparsity] = load_pruned(out, device="cpu"), _file_bytes(out)
    with torch.inference_mode():
        times, cache = _measure(models, ids, options.rounds, options.steps)
    params = {s: sum(p.numel() for p in set(model.parameters())) for s, model in models.items()}
    names = ("config", "model", "method", "align", "dtype", "prompt", "steps", "rounds", "threads")
    settings = {name: str(value) if isinstance(value := getattr(options, name), Path) else value for name in names}
    marks = {
        **{f"{kind}_over_dense": _ratios(by_sparsity) for kind, by_sparsity in times.items()},
        "bytes_over_dense": _over_dense(size),
        "kept_params_share": _over_dense(params),
        "cache_bytes_over_dense": _over_dense(cache),
    }
    dense = {f"{kind}_s": statistics.median(by_sparsity[0.0]) for kind, by_sparsity in times.items()}
    dense["file_bytes"] = size[0.0]
    write_json(options.out, SCHEMA, {"marks": marks, "dense": dense, "provenance": provenance(settings=settings)})
    print(json.dumps(marks, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default="ffn-only", help="an allocation without a search")
    parser.add_argument("--align", type=int, default=1, help="kept FFN channels are a multiple of it")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, default=16, help="decoded tokens a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency.json"))
    return parser.parse_args()


def _export(
    project: Experiment,
    config: ModelConfig,
    folder: Path,
    calibration: Path,
    sparsity: float,
    options: argparse.Namespace,
    out: Path,
) -> None:
    """Prune a fresh copy of the model and write it as `ffp export` does."""
    prunable = PrunableModel(load_model(folder, config), min_keep=config.min_keep, align=options.align)
    problem, stats = prunable.problem(sparsity), steps.open_calibration(prunable, calibration)
    allocator = registry.create(options.method, {})
    allocation = allocator.allocate(
        problem, stats=stats, reward=None, budget=project.grid.search.budget(), seed=0
    ).allocation
    cut(prunable, kept_units(problem, allocation, stats.orders(project.grid.calibration.score)))
    save_pruned(prunable, out)


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
            prefill_s, first = _timed(lambda model=model: model(ids, use_cache=True, logits_to_keep=1))  # type: ignore[misc]
            layers = first.past_key_values.layers
            cache[sparsity] = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
            decode_s, _ = _timed(lambda model=model, first=first: _decode(model, first, steps))  # type: ignore[misc]
            if number:  # the first round warms up
                times["prefill"][sparsity].append(prefill_s)
                times["decode"][sparsity].append(decode_s / steps)
    return times, cache


def _decode(model: Any, output: Any, steps: int) -> None:
    """Greedy tokens, one forward each, on the cache of the prompt."""
    for _ in range(steps):
        token = output.logits[:, -1:].argmax(-1)
        output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


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
