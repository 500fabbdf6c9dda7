"""Times a candidate of a search: prefix views against the dense forward, masking and reloading, in one run.

    python -m benchmarks.evaluator

Needs what `make demo` leaves behind. All variants score the same tokens, in turn, ROUNDS times; medians are reported.

- `candidate_over_dense`: by sparsity, time of a candidate (FFN-only allocation) over that of the dense model.
- `switch_over_dense`: time to switch between two candidates over a dense forward.
- `useful_share`: share of a candidate's operator time in matrix products and attention, by torch's profiler; the
  product of the LM head is among them, its softmax is not.
- `dense_s`, `tokens_per_s`: the dense forward.
- `speedup_over_masking`: a dense forward that multiplies masks into the inputs of the output projections, over ours.
- `speedup_over_reloading`: reading the weights from disk and cutting them for each candidate, over ours.
- `peak_mem_bytes`: largest resident set of the process after the sliced variants, before the others ran.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from benchmarks.common import make_parser, open_model, seconds, write_marks
from ffp import api
from ffp.allocators import create
from ffp.config import Experiment
from ffp.core.problem import PruningProblem
from ffp.measure.cost import peak_memory
from ffp.measure.loss import token_losses
from ffp.models.sliced import SlicedModel
from ffp.pipeline import steps
from ffp.pruning.cuts import Cut, make_cut
from ffp.store.layout import Layout

SCHEMA = "ffp/benchmark/evaluator/1"
SPARSITIES = (0.1, 0.2, 0.3, 0.5)
RIVALS_AT = 0.3
USEFUL = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product", "aten::matmul", "aten::linear")
Answers = dict[float, api.AllocationResult]


@torch.no_grad()
def main() -> None:
    """Times all variants and writes the JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    experiment = Experiment(options.config)
    cut = make_cut("structured", score=experiment.grid.calibration.score, compensation="none", pruner="wanda")
    prunable, calibration = open_model(experiment, options.model)
    ids = calibration.windows.search[: options.windows]
    answers: Answers = {
        sparsity: api.allocate(prunable, calibration, create("ffn-only", {}), sparsity=sparsity, cut=cut)
        for sparsity in (0.0, *SPARSITIES)
    }
    answer = answers[RIVALS_AT]
    masks = api.make_masks(prunable, calibration, answer.problem, answer.allocation, cut)
    sliced = cut.candidates(calibration.statistics)
    assert isinstance(sliced, SlicedModel)
    marks = _time_candidates(sliced, answers, ids, options.rounds)

    def reload() -> None:
        _score_reloaded(experiment, options.model, answer.problem, masks, cut, ids)

    marks |= _time_rivals(sliced, answers, ids, options.rounds, reload)
    settings = {"model": options.model, "tokens": ids.numel(), "rounds": options.rounds, "threads": options.threads}
    write_marks(options.out, SCHEMA, {"marks": marks}, settings)


def _options() -> argparse.Namespace:
    parser = make_parser("benchmarks.evaluator", __doc__, grid="demo")
    parser.add_argument("--model", default="smollm2-135m", help="model of the grid (%(default)s)")
    parser.add_argument("--windows", type=int, default=4, help="windows of the search text behind a candidate")
    parser.add_argument("--rounds", type=int, default=5, help="times that each variant runs (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser.parse_args()


def _time_candidates(sliced: SlicedModel, answers: Answers, ids: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Forward times of the dense model and of candidates in turn, the cost of switching, and where the time goes."""
    forward: dict[float, list[float]] = {sparsity: [] for sparsity in answers}
    switch = []
    for _ in range(rounds + 1):  # the first round warms up
        for sparsity, times in forward.items():
            switch.append(seconds(lambda s=sparsity: sliced.set_allocation(answers[s].allocation)))  # type: ignore[misc]
            times.append(seconds(lambda: token_losses(sliced.model, ids)))
    dense = statistics.median(forward[0.0][1:])
    sliced.set_allocation(answers[RIVALS_AT].allocation)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        token_losses(sliced.model, ids)
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    useful = sum(event.self_cpu_time_total for event in events if event.key.startswith(USEFUL))
    return {
        "candidate_over_dense": {f"{s:.2f}": statistics.median(times[1:]) / dense for s, times in forward.items()},
        "switch_over_dense": statistics.median(switch[len(forward) :]) / dense,
        "useful_share": useful / total,
        "dense_s": dense,
        "tokens_per_s": ids.numel() / dense,
        "peak_mem_bytes": peak_memory(),
    }


def _time_rivals(
    sliced: SlicedModel, answers: Answers, ids: torch.Tensor, rounds: int, reload: Any
) -> dict[str, float]:
    """The two other ways to score a candidate at RIVALS_AT, interleaved with ours."""
    prunable = sliced.prunable
    dense, candidate = answers[0.0].allocation, answers[RIVALS_AT].allocation
    masks = [
        (
            prunable.linear(module.output),
            (torch.arange(module.decision.n_units) < keep).float().repeat_interleave(module.output_width),
        )
        for module, keep in zip(prunable.modules, candidate.keep, strict=True)
    ]

    def switch_and_score() -> None:
        sliced.set_allocation(candidate)
        token_losses(sliced.model, ids)

    times: dict[str, list[float]] = {"ours": [], "masking": [], "reloading": []}
    for _ in range(rounds):
        sliced.set_allocation(dense)
        times["ours"].append(seconds(switch_and_score))
        sliced.set_allocation(dense)
        hooks = [
            linear.register_forward_pre_hook(lambda module, inputs, mask=mask: (inputs[0] * mask,))
            for linear, mask in masks
        ]
        times["masking"].append(seconds(lambda: token_losses(sliced.model, ids)))
        for hook in hooks:
            hook.remove()
        times["reloading"].append(seconds(reload))
    ours = statistics.median(times["ours"])
    return {
        "speedup_over_masking": statistics.median(times["masking"]) / ours,
        "speedup_over_reloading": statistics.median(times["reloading"]) / ours,
    }


def _score_reloaded(
    experiment: Experiment, name: str, problem: PruningProblem, masks: api.Masks, cut: Cut, ids: torch.Tensor
) -> None:
    """Loads the model anew, prunes it and scores it."""
    prunable = steps.load_prunable(experiment, name, Layout.from_grid(experiment.grid).model(name).folder)
    api.install(prunable, problem, masks, cut)
    token_losses(prunable.model, ids)


if __name__ == "__main__":
    main()
