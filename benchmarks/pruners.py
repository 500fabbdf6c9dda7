"""What pruners and heuristic allocations cost: Wanda against a plain forward and a sort, each heuristic in seconds.

    python benchmarks/pruners.py

Needs what `make demo` leaves behind (a model and its text). Rounds are interleaved; medians are reported. With
--cpu-time the process's CPU seconds are taken instead of the clock's: for one thread on a machine that others use too.

- `wanda_over_forward_and_sort`: time of Wanda on WINDOWS x CONTEXT tokens (statistics block after block on the pruned
  stream, masks, zeroed weights) over that of one plain forward of the same tokens through the whole model, LM head
  included, plus one sort of all pruned weights by rows. `wanda_dense_...`: the same on the dense model's statistics,
  their collection included.
- `sparsegpt_over_forward_and_sort`: of the same tokens, for comparison.
- `heuristic_s`: by method, seconds of its allocation after calibration.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ffp.allocators import registry
from ffp.allocators.base import SearchBudget
from ffp.config import Experiment
from ffp.measure.calibration import BlockInfluence, collect
from ffp.measure.windows import read_documents, token_windows
from ffp.models.checkpoint import load_model, load_tokenizer
from ffp.models.prunable import PrunableModel
from ffp.pruning.statistics import Calibration
from ffp.pruning.unstructured import prune
from ffp.store.files import write_json
from ffp.store.provenance import provenance

SCHEMA = "ffp/benchmark/pruners/1"
SPARSITY = 0.6


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    experiment = Experiment(options.config)
    config, data = experiment.models[options.model], Path(experiment.grid.data)
    folder = data / "models" / options.model
    documents = read_documents(data / "text" / experiment.grid.text / "calibration.jsonl")
    tokenizer = load_tokenizer(folder)
    ids = token_windows(tokenizer, documents, context=options.context, windows=options.windows, name="calibration text")
    prunable = PrunableModel(load_model(folder, config), min_keep=config.min_keep)
    marks = {**_pruners(prunable, ids, options), "heuristic_s": _heuristics(prunable, ids, options)}
    settings = {
        name: getattr(options, name)
        for name in ("model", "windows", "context", "rounds", "threads", "batch", "cpu_time")
    }
    write_json(options.out, SCHEMA, {"marks": marks, "provenance": provenance(settings=settings)})
    print(json.dumps(marks, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2048, help="tokens in one forward, of both sides")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--sparsegpt", action="store_true", help="time it too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pruners.json"))
    options = parser.parse_args()
    options.clock = time.process_time if options.cpu_time else time.perf_counter
    return options


def _seconds(action: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    action()
    return clock() - started


@torch.no_grad()
def _forward(prunable: PrunableModel, ids: torch.Tensor, batch: int) -> None:
    """A plain forward of all tokens, logits included."""
    for start in range(0, len(ids), rows := max(1, batch // ids.shape[1])):
        prunable.model(ids[start : start + rows], use_cache=False)


def _sort(prunable: PrunableModel, paths: list[str]) -> None:
    for path in paths:
        prunable.linear(path).weight.data.sort(dim=1)


def _pruners(prunable: PrunableModel, ids: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Every side of the comparison in turn, on the dense weights each time."""
    paths = list(prunable.decisions("unstructured"))
    dense = {path: prunable.linear(path).weight.data.clone() for path in paths}
    remove = {path: int(weight.numel() * SPARSITY) for path, weight in dense.items()}

    def wanda_dense() -> None:
        moments = {path: known.sq_mean for path, known in collect(prunable, ids, batch_tokens=options.batch).items()}
        prune(prunable, remove, pruner="wanda-dense", sq_means=moments)

    def stream(pruner: str) -> Callable[[], Any]:
        return lambda: prune(prunable, remove, pruner=pruner, windows=ids, batch_tokens=options.batch)

    actions: dict[str, Callable[[], Any]] = {
        "forward": lambda: _forward(prunable, ids, options.batch),
        "sort": lambda: _sort(prunable, paths),
        "wanda": stream("wanda"),
        "wanda_dense": wanda_dense,
        **({"sparsegpt": stream("sparsegpt")} if options.sparsegpt else {}),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(options.rounds):
        for name, action in actions.items():
            for path, weight in dense.items():
                prunable.linear(path).weight.data.copy_(weight)
            times[name].append(_seconds(action, options.clock))
    for path, weight in dense.items():
        prunable.linear(path).weight.data.copy_(weight)
    median = {name: statistics.median(taken) for name, taken in times.items()}
    plain = median["forward"] + median["sort"]
    ratios = {f"{name}_over_forward_and_sort": median[name] / plain for name in list(actions)[2:]}
    return {**ratios, **{f"{name}_s": taken for name, taken in median.items()}}


def _heuristics(prunable: PrunableModel, ids: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each method that evaluates nothing, on statistics of a few windows: their number does not matter."""
    with BlockInfluence(prunable) as influence:
        moments = collect(prunable, ids[:2], batch_tokens=options.batch)
    found = {}
    for name, method in registry.METHODS.items():
        if method.is_search or name == "import":
            continue
        granularity = "structured" if "structured" in method.granularities else "unstructured"
        stats = Calibration(prunable, moments, 1, granularity=granularity, influence=influence.value())
        problem = prunable.problem(0.3, granularity)
        allocator = registry.create(name, {})
        found[name] = statistics.median(
            _seconds(
                lambda allocator=allocator, problem=problem, stats=stats: allocator.allocate(  # type: ignore[misc]
                    problem, stats=stats, reward=None, budget=SearchBudget(1, 1), seed=0
                ),
                options.clock,
            )
            for _ in range(options.rounds)
        )
    return found


if __name__ == "__main__":
    main()
