"""How fast a candidate is scored: prefix views against the dense forward, masking, and reloading, in one run.

    python benchmarks/evaluator.py

Needs what `make demo` leaves behind. All variants score the same tokens, in turn, ROUNDS times; medians are reported.

- `candidate_over_dense`: by sparsity, time of a candidate (FFN-only allocation) over that of the dense model.
- `switch_over_dense`: time to switch between two candidates over a dense forward.
- `useful_share`: share of a candidate's operator time in matrix products and attention, by torch's profiler; the
  LM head's product is among them, its softmax is not.
- `speedup_over_masking`: a dense forward that multiplies masks into the inputs of the output projections, over ours.
- `speedup_over_reloading`: reading the weights from disk and cutting them for each candidate, over ours.
- `peak_mem_bytes`: largest resident set of the process after the sliced variants, before the others ran.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.config import Experiment, ModelConfig
from ffp.measure.cost import peak_memory
from ffp.measure.loss import token_losses
from ffp.models.checkpoint import load_model
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import SlicedModel, cut
from ffp.pipeline import steps
from ffp.pruning.structured import kept_units
from ffp.store.files import read_tensors, write_json
from ffp.store.provenance import provenance

SCHEMA = "ffp/benchmark/evaluator/1"
SPARSITIES = (0.1, 0.2, 0.3, 0.5)
USEFUL = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product", "aten::matmul", "aten::linear")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    experiment = Experiment(options.config)
    config, data = experiment.models[options.model], Path(experiment.grid.data)
    folder, calibration = data / "models" / options.model, data / "calibration" / options.model
    arrays, _ = read_tensors(calibration / "tokens.safetensors", steps.TOKENS)
    ids = torch.from_numpy(arrays["search"][: options.windows].astype(np.int64))
    prunable = PrunableModel(load_model(folder, config))
    orders = steps.open_calibration(prunable, calibration).orders(experiment.grid.calibration.score)
    sliced = SlicedModel(prunable, orders)
    with torch.no_grad():
        marks = {
            **_candidates(sliced, ids, options.rounds),
            **_rivals(sliced, orders, folder, config, ids, options.rounds),
        }
    settings = {"model": options.model, "tokens": ids.numel(), "rounds": options.rounds, "threads": options.threads}
    write_json(options.out, SCHEMA, {"marks": marks, "provenance": provenance(settings=settings)})
    print(json.dumps(marks, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=4, help="windows of the search text behind a candidate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluator.json"))
    return parser.parse_args()


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _keep(sliced: SlicedModel, sparsity: float) -> tuple[int, ...]:
    return ffn_only_allocation(sliced.prunable.problem(sparsity)).keep


def _candidates(sliced: SlicedModel, ids: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Forward times of the dense model and of candidates in turn, the cost of switching, and where the time goes."""
    forward: dict[float, list[float]] = {s: [] for s in (0.0, *SPARSITIES)}
    switch = []
    for _ in range(rounds + 1):  # the first round warms up
        for sparsity, times in forward.items():
            keep = _keep(sliced, sparsity)
            switch.append(_seconds(lambda keep=keep: sliced.set_keep(keep)))  # type: ignore[misc]
            times.append(_seconds(lambda: token_losses(sliced.model, ids)))
    dense = statistics.median(forward[0.0][1:])
    sliced.set_keep(_keep(sliced, 0.3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        token_losses(sliced.model, ids)
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    useful = sum(event.self_cpu_time_total for event in events if event.key.startswith(USEFUL))
    over_dense = {f"{s:.2f}": statistics.median(times[1:]) / dense for s, times in forward.items()}
    return {
        "candidate_over_dense": over_dense,
        "switch_over_dense": statistics.median(switch[len(forward) :]) / dense,
        "useful_share": useful / total,
        "dense_s": dense,
        "tokens_per_s": ids.numel() / dense,
        "peak_mem_bytes": peak_memory(),
    }


def _rivals(
    sliced: SlicedModel, orders: dict[str, Any], folder: Path, config: ModelConfig, ids: torch.Tensor, rounds: int
) -> dict[str, float]:
    """The two other ways at 30 %, interleaved with ours."""
    prunable, problem = sliced.prunable, sliced.prunable.problem(0.3)
    dense, keep = _keep(sliced, 0.0), _keep(sliced, 0.3)
    masks = [
        (
            prunable.linear(module.output),
            (torch.arange(module.decision.n_units) < k).float().repeat_interleave(module.output_width),
        )
        for module, k in zip(prunable.modules, keep, strict=True)
    ]
    times: dict[str, list[float]] = {"ours": [], "masking": [], "reloading": []}
    for _ in range(rounds):
        sliced.set_keep(dense)
        times["ours"].append(_seconds(lambda: (sliced.set_keep(keep), token_losses(sliced.model, ids))))
        sliced.set_keep(dense)
        hooks = [
            linear.register_forward_pre_hook(lambda module, inputs, mask=mask: (inputs[0] * mask,))
            for linear, mask in masks
        ]
        times["masking"].append(_seconds(lambda: token_losses(sliced.model, ids)))
        for hook in hooks:
            hook.remove()
        times["reloading"].append(_seconds(lambda: _reloaded(folder, config, problem, orders, ids)))
    ours = statistics.median(times["ours"])
    return {
        "speedup_over_masking": statistics.median(times["masking"]) / ours,
        "speedup_over_reloading": statistics.median(times["reloading"]) / ours,
    }


def _reloaded(folder: Path, config: ModelConfig, problem: Any, orders: dict[str, Any], ids: torch.Tensor) -> None:
    prunable = PrunableModel(load_model(folder, config))
    cut(prunable, kept_units(problem, ffn_only_allocation(problem), orders))
    token_losses(prunable.model, ids)


if __name__ == "__main__":
    main()
