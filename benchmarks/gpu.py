"""Times the steps of pruning on one GPU, and compares memory and time with the plan of `ffp validate`.

    python -m benchmarks.gpu [--shapes llama-7b llama-3.1-8b] [--windows 128] [--skip export] [--out FILE]

Needs no network and no file: the models have the sizes of LLaMA-7B and Llama-3.1-8B, and random weights and tokens.
Both take less than ten minutes on one H100. The JSON is written again after every step, so that a run that is stopped
leaves what it measured. A step that fails is recorded with the last line of its error, and the next one goes on.

Each step of `shapes.NAME.steps` has `seconds` (the median of `rounds`), `tokens_per_s`, `peak_memory_bytes` (tensors on
the GPU, weights included), `plan` (the plan's bytes, multiplications and additions, and its seconds at --tflops) and
`over_plan` (measured over planned).

- `build`: the model with random weights, made on the device.
- `calibrate`: one pass over all windows; the plan counts the LM head, which the calibration text does not pass.
- `candidate`: one reward of a search. `seconds` are those of the dense model; `candidates` has each sparsity with FFN
  channels in multiples of each of --aligns, `over_dense` in time beside `flops_over_dense`. All take turns.
- `gate`: one gradient step of fastforward-guided, in turn with a plain reward of the same windows. `aligns` has each of
  --aligns; `seconds` are those of the first.
- `compensate`: ridge, block by block, on --compensate-windows windows.
- `export`: cuts the model and writes its safetensors; `over_plan.disk` compares with the dense size.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_steps import SHAPES, STEPS, Run, make_plan
from ffp.models.placement import choose_device
from ffp.pipeline.estimate import SHARE, flops_per_second
from ffp.store.files import write_json
from ffp.store.provenance import provenance

SCHEMA = "ffp/benchmark/gpu/1"
OUT = Path("benchmarks/results/gpu.json")
SETTINGS = ("windows", "compensate_windows", "candidate_windows", "gate_windows", "context", "batch_tokens",
            "sparsity", "sparsities", "aligns", "rounds", "dtype", "tflops", "seed")  # fmt: skip


def main() -> None:
    """Measures every shape, step by step, and writes the JSON after each."""
    options, started = _options(), time.perf_counter()
    logging.getLogger("ffp").setLevel(logging.ERROR)
    device = choose_device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    settings = {key: getattr(options, key) for key in SETTINGS}
    origin = provenance(settings=settings, seed=options.seed, device=name).model_dump(mode="json")
    if options.commit:
        origin |= {"commit": options.commit, "dirty": False}
    probe = flops_per_second(device, getattr(torch, options.dtype))
    speed = {"validate": options.tflops, "prune": probe * SHARE / 1e12}
    shapes: dict[str, Any] = {}
    body = {"marks": {}, "assumed_tflops": speed, "shapes": shapes, "elapsed_s": 0.0, "provenance": origin}
    for shape in options.shapes:
        run = Run(shape, options, device, make_plan(shape, options, options.windows))
        sizes = {"blocks": run.plan.blocks, "params": run.plan.params, "unit_params": run.plan.unit_params}
        steps: dict[str, Any] = {}
        shapes[shape] = {**sizes, "steps": steps}
        for step in (step for step in STEPS if step not in options.skip):
            elapsed = time.perf_counter() - started
            late = elapsed > options.limit
            steps[step] = {"failed": f"not begun: --limit {options.limit:g} s is over"} if late else measure(run, step)
            body |= {"marks": _marks(shapes), "elapsed_s": time.perf_counter() - started}
            write_json(options.out, SCHEMA, body)
            print(f"[{body['elapsed_s']:6.1f} s] {shape} {step}: {_line(steps[step])}", flush=True)
        del run


def measure(run: Run, step: str) -> dict[str, Any]:
    """Runs a step and returns its entry in the JSON; where it fails, the last line of the error."""
    cuda = run.device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = STEPS[step](run)
    except Exception as error:  # whatever it is, the next step goes on
        return {"failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"}
    taken, peak = statistics.median(found.rounds), torch.cuda.max_memory_allocated() if cuda else None
    planned = found.flops / (run.options.tflops * 1e12)
    ratios = {
        "memory": peak / found.memory if peak and found.memory else None,
        "seconds": taken / planned if planned else None,
        **found.over_plan,
    }
    return {
        "seconds": taken,
        "rounds": found.rounds,
        "tokens": found.tokens,
        "tokens_per_s": found.tokens / taken,
        "tflops": found.flops / taken / 1e12,
        "peak_memory_bytes": peak,
        "plan": {"memory_bytes": found.memory, "flops": found.flops, "seconds": planned},
        "over_plan": ratios,
        **found.details,
    }


def _marks(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The main figures of each shape's steps that did not fail."""
    keys = ("seconds", "tokens_per_s", "tflops", "peak_memory_bytes", "over_plan")
    return {
        shape: {step: {key: one[key] for key in keys} for step, one in body["steps"].items() if "seconds" in one}
        for shape, body in shapes.items()
    }


def _line(entry: Mapping[str, Any]) -> str:
    """A step's figures for the terminal."""
    if "failed" in entry:
        return f"failed: {entry['failed']}"
    words = [f"{entry['seconds']:.3g} s", f"{entry['tokens_per_s']:,.0f} tokens/s" if entry["tokens"] else ""]
    words += [f"peak {entry['peak_memory_bytes'] / 1e9:.1f} GB" if entry["peak_memory_bytes"] else ""]
    words += [f"{name} {ratio:.2f} of the plan's" for name, ratio in entry["over_plan"].items() if ratio]
    return ", ".join(filter(None, words))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", nargs="+", choices=SHAPES, default=["llama-7b", "llama-3.1-8b"], help="models (%(default)s)")
    add("--skip", nargs="+", choices=STEPS, default=[], help="steps to leave out")
    add("--windows", type=int, default=128, help="of the calibration (%(default)s)")
    add("--compensate-windows", type=int, default=32, help="of the compensation (%(default)s)")
    add("--candidate-windows", type=int, default=4, help="of a reward (%(default)s)")
    add("--gate-windows", type=int, default=2, help="of a gradient step (%(default)s)")
    add("--context", type=int, default=2048, help="tokens of a window (%(default)s)")
    add("--batch-tokens", type=int, default=4096, help="tokens in one forward (%(default)s)")
    add("--sparsity", type=float, default=0.3, help="of the gate step, compensation and export (%(default)s)")
    add("--sparsities", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5], help="of the candidates (%(default)s)")
    add("--aligns", type=int, nargs="+", default=[1, 8, 128], help="FFN channels kept together (%(default)s)")
    add("--rounds", type=int, default=5, help="times that a step is measured, while they take below 20 s (%(default)s)")
    add("--limit", type=float, default=420.0, help="seconds after which no further step begins (%(default)s)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="precision (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s takes CUDA where it is there")
    add("--tflops", type=float, default=100.0, help="speed that the plan assumes, as of ffp validate (%(default)s)")
    add("--seed", type=int, default=0, help="of weights and tokens (%(default)s)")
    add("--commit", default="", help="commit of the code, clean, in place of what git says")
    add("--out", type=Path, default=OUT, metavar="PATH", help="JSON file (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
