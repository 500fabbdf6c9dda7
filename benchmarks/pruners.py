"""Times pruners and heuristic allocations: Wanda against a plain forward and a sort, each heuristic in seconds.

    python -m benchmarks.pruners

Needs what `make demo` leaves behind (a model and its text). Rounds are interleaved; medians are reported. With
--cpu-time the process's CPU seconds are taken instead of the clock's: for one thread on a machine that others use too.

- `wanda_over_forward_and_sort`: time of Wanda on WINDOWS x CONTEXT tokens (statistics block after block on the pruned
  stream, masks, zeroed weights) over that of one plain forward of the same tokens through the whole model, LM head
  included, plus one sort of all pruned weights by rows. `wanda_dense_...`: the same on the dense model's statistics,
  with the calibration pass that collects them.
- `sparsegpt_over_forward_and_sort`: of the same tokens, for comparison.
- `heuristic_s`: by method, seconds of its allocation after calibration.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import make_parser, seconds, write_marks
from ffp.allocators import METHODS, create
from ffp.allocators.base import Heuristic
from ffp.config import Experiment
from ffp.measure.calibration import collect
from ffp.measure.windows import token_windows
from ffp.models.checkpoint import load_tokenizer
from ffp.models.prunable import PrunableModel
from ffp.pipeline import steps
from ffp.pruning.unstructured import prune_weights
from ffp.store.documents import read_documents
from ffp.store.layout import Layout

SCHEMA = "ffp/benchmark/pruners/1"
SPARSITY = 0.6  # of the pruners
HEURISTICS_AT = 0.3
SETTINGS = ("model", "windows", "context", "rounds", "threads", "batch", "cpu_time")


def main() -> None:
    """Times pruners and heuristics and writes the JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    experiment = Experiment(options.config)
    layout = Layout.from_grid(experiment.grid)
    folder = layout.model(options.model).folder
    documents = read_documents(layout.text(experiment.grid.calibration_text).documents("calibration"))
    tokenizer = load_tokenizer(folder)
    ids = token_windows(tokenizer, documents, context=options.context, windows=options.windows, name="calibration text")
    prunable = steps.load_prunable(experiment, options.model, folder)
    marks = {**_pruners(prunable, ids, options), "heuristic_s": _heuristics(prunable, ids, options)}
    write_marks(options.out, SCHEMA, {"marks": marks}, {name: getattr(options, name) for name in SETTINGS})


def _options() -> argparse.Namespace:
    parser = make_parser("benchmarks.pruners", __doc__, grid="demo")
    parser.add_argument("--model", default="smollm2-135m", help="model of the grid (%(default)s)")
    parser.add_argument("--windows", type=int, default=128, help="of the calibration text (%(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window (%(default)s)")
    parser.add_argument("--batch", type=int, default=2048, help="tokens in one forward, of both sides (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="times that each side runs (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process instead of the clock's")
    parser.add_argument("--sparsegpt", action="store_true", help="time SparseGPT too")
    options = parser.parse_args()
    options.clock = time.process_time if options.cpu_time else time.perf_counter
    return options


@torch.no_grad()
def _forward(prunable: PrunableModel, ids: torch.Tensor, batch: int) -> None:
    """A plain forward of all tokens, logits included."""
    for start in range(0, len(ids), rows := max(1, batch // ids.shape[1])):
        prunable.model(ids[start : start + rows], use_cache=False)


def _sort(prunable: PrunableModel, paths: list[str]) -> None:
    for path in paths:
        prunable.linear(path).weight.data.sort(dim=1)


def _pruners(prunable: PrunableModel, ids: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Runs every side of the comparison in turn, on the dense weights each time."""
    paths = list(prunable.decision_names("unstructured"))
    dense = {path: prunable.linear(path).weight.data.clone() for path in paths}
    remove = {path: int(weight.numel() * SPARSITY) for path, weight in dense.items()}

    def wanda_dense() -> None:
        moments = collect(prunable, ids, batch_tokens=options.batch).sq_means
        prune_weights(prunable, remove, pruner="wanda-dense", sq_means=moments)

    def stream(pruner: str) -> Callable[[], Any]:
        return lambda: prune_weights(prunable, remove, pruner=pruner, windows=ids, batch_tokens=options.batch)

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
            times[name].append(seconds(action, options.clock))
    for path, weight in dense.items():
        prunable.linear(path).weight.data.copy_(weight)
    median = {name: statistics.median(taken) for name, taken in times.items()}
    plain = median["forward"] + median["sort"]
    ratios = {f"{name}_over_forward_and_sort": median[name] / plain for name in list(actions)[2:]}
    return {**ratios, **{f"{name}_s": taken for name, taken in median.items()}}


def _heuristics(prunable: PrunableModel, ids: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each method that evaluates nothing, on statistics of two windows: their number does not matter."""
    known = collect(prunable, ids[:2], batch_tokens=options.batch)
    found = {}
    for name in METHODS:
        if name == "import" or not isinstance(method := create(name, {}), Heuristic):
            continue
        granularity = "structured" if "structured" in method.granularities else "unstructured"
        stats, problem = known.for_granularity(granularity), prunable.problem(HEURISTICS_AT, granularity)
        times = [
            seconds(lambda method=method, problem=problem, stats=stats: method.allocate(problem, stats), options.clock)  # type: ignore[misc]
            for _ in range(options.rounds)
        ]
        found[name] = statistics.median(times)
    return found


if __name__ == "__main__":
    main()
