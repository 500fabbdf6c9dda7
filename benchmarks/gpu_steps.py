"""The steps that benchmarks/gpu.py measures, on one model in memory."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import seconds
from ffp import api
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.config import Experiment
from ffp.core.problem import Allocation
from ffp.measure.reward import ModelReward
from ffp.measure.text import Text
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import check_disk
from ffp.pipeline.plan import ModelPlan, plan_model
from ffp.pipeline.sizes import forward_flops
from ffp.pruning.cuts import Candidates, make_cut

LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-7b": {**LLAMA, "vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32,
                 "max_position_embeddings": 2048},
    "llama-3.1-8b": {**LLAMA, "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
                     "max_position_embeddings": 131072},
    "tiny": {"model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 96,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 64},
}  # fmt: skip
PATIENCE_S = 20.0  # a step that took so long is not measured again
SHARD = "5GB"  # as of ffp export


@dataclass
class Run:
    """One shape in the course of its steps, which hand on what later ones need.

    Attributes:
        name: Of the shape.
        options: Of the command line.
        device: Where the model lies.
        plan: Of a grid with the benchmark's windows.
        model: The model, once it is built.
        calibration: Once it is measured.
        masks: Of the compensated model, once they are made.
    """

    name: str
    options: argparse.Namespace
    device: torch.device
    plan: ModelPlan
    model: Any = None
    calibration: api.Calibration | None = None
    masks: api.Masks | None = None

    def prunable(self, align: int = 1) -> PrunableModel:
        """Returns the model's decisions."""
        if self.model is None:
            raise RuntimeError("the model was not built")
        return PrunableModel(self.model, align=align)

    def windows(self, calibration: int) -> api.Windows:
        """Returns random tokens: as many windows to calibrate on, and those that candidates are rewarded on."""
        options, generator = self.options, torch.Generator().manual_seed(self.options.seed)
        search = max(options.candidate_windows, options.gate_windows)
        draw = partial(torch.randint, int(SHAPES[self.name]["vocab_size"]), generator=generator)
        return api.Windows(*(draw((count, options.context)) for count in (calibration, search, 1)))

    def known(self) -> api.Calibration:
        """Returns the calibration; one of a single window if that step was skipped or failed."""
        if self.calibration is None:
            prunable, batch = self.prunable(), self.options.batch_tokens
            self.calibration = api.calibrate(prunable, self.windows(1), batch_tokens=batch)
        return self.calibration

    def reward(self, candidates: Candidates) -> ModelReward:
        """Returns a reward that remembers nothing."""
        known = self.known()
        texts = [Text(name, ids, known.dense_loss[name]) for name, ids in known.windows.items()[1:]]
        return ModelReward(candidates, texts[0], texts[1], batch_tokens=self.options.batch_tokens)


@dataclass
class Measured:
    """What a step measured, and what the plan says of it.

    Attributes:
        rounds: Seconds of each round.
        tokens: Tokens that a round forwards; 0 where it forwards none.
        flops: Multiplications and additions of a round by the plan; 0 where it counts none.
        memory: Peak bytes on the device by the plan, if it has any.
        details: Further figures.
        over_plan: Further ratios of measured to planned.
    """

    rounds: list[float]
    tokens: int = 0
    flops: float = 0.0
    memory: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    over_plan: dict[str, float] = field(default_factory=dict)


def make_plan(shape: str, options: argparse.Namespace, windows: int, *, use: str = "uniform") -> ModelPlan:
    """Returns the plan of a grid with one cell at the sparsity of --sparsity, compensated by ridge.

    Args:
        shape: Name of the shape.
        options: Of the command line.
        windows: Of the calibration text.
        use: The cell's method.
    """
    search = max(options.candidate_windows, options.gate_windows)
    source = {"kind": "local", "path": "unused"}
    shares = dict.fromkeys(("calibration", "search", "selection", "test"), 0.25)
    parts = {
        f"models/{shape}": {"title": shape, "source": source, "dtype": options.dtype, "device": options.device,
                            "batch_tokens": options.batch_tokens, "architecture": dict(SHAPES[shape])},
        "texts/random": {"title": "Random", "sources": [{"name": "random", "source": source}], "shares": shares},
        "grid": {
            "title": "GPU", "models": [shape], "text": "random", "sparsities": [options.sparsity], "methods": ["ridge"],
            "variants": {"ridge": {"use": use, "compensate": "ridge"}},
            "calibration": {"windows": windows, "context": options.context},
            "search": {"context": options.context, "windows": search, "selection_windows": 1,
                       "windows_per_evaluation": options.candidate_windows},
            "evaluation": {"context": options.context}, "data": "unused",
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ffp-gpu-") as folder:
        for name, body in parts.items():
            path = Path(folder, f"{name}.yaml")
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(body))
        return plan_model(Experiment(Path(folder, "grid.yaml")), shape)


def build(run: Run) -> Measured:
    """Makes the model with random weights on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(run.options.seed)
    config = AutoConfig.for_model(**SHAPES[run.name])

    def make() -> None:
        with run.device:
            model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, run.options.dtype))
        run.model = model.eval().requires_grad_(False)

    return Measured([_seconds(make)], memory=run.plan.host)


def calibrate(run: Run) -> Measured:
    """Collects the statistics of the dense model."""
    prunable, windows, batch = run.prunable(), run.windows(run.options.windows), run.options.batch_tokens
    api.calibrate(prunable, run.windows(1), batch_tokens=batch)  # warms up

    def action() -> None:
        run.calibration = api.calibrate(prunable, windows, batch_tokens=batch)

    rounds = _take_turns({"calibrate": action}, run.options.rounds)["calibrate"]
    tokens = sum(ids.numel() for _, ids in windows.items())
    losses = {name: float(found.mean()) for name, found in run.known().dense_loss.items()}
    flops, memory = run.plan.flops["calibrate"], run.plan.memory["calibrate"]
    return Measured(rounds, tokens, flops, memory, {"dense_loss": losses})


def candidate(run: Run) -> Measured:
    """Rewards candidates of several sparsities, and the dense model, on the same windows in turn."""
    options, prunable, statistics_ = run.options, run.prunable(), run.known().statistics
    problem, windows = prunable.problem(0.0), range(options.candidate_windows)
    asked = {"dense": [decision.n_units for decision in problem.decisions]}
    for sparsity in options.sparsities:
        asked |= {f"{sparsity:.2f}/{align}": _channels(run.prunable(align), sparsity) for align in options.aligns}
    made: list[Candidates] = []
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    setup_s = _seconds(lambda: made.append(cut.candidates(statistics_)))
    rewards: dict[str, float] = {}

    def score(name: str) -> None:
        rewards[name] = run.reward(made[0])(Allocation.of(problem, asked[name]), windows=windows)

    try:
        times = _take_turns({name: partial(score, name) for name in asked}, options.rounds, warm_up=True)
    finally:
        made[0].restore()
    head = forward_flops(prunable) - 2.0 * problem.total_params
    figures = {}
    for name, keep in asked.items():
        removed = problem.sparsity_of(keep)
        figures[name] = {
            "sparsity": removed,
            "seconds": statistics.median(times[name]),
            "over_dense": statistics.median(a / b for a, b in zip(times[name], times["dense"], strict=True)),
            "flops_over_dense": 1 - removed * (1 - head / forward_flops(prunable)),
            "reward": rewards[name],
        }
    tokens = options.candidate_windows * options.context
    flops, memory = tokens * forward_flops(prunable), run.plan.memory["allocate"]
    return Measured(times["dense"], tokens, flops, memory, {"setup_s": setup_s, "candidates": figures})


def gate(run: Run) -> Measured:
    """Takes the gradients of all gates, and rewards the same allocation on the same windows, with each of --aligns."""
    options = run.options
    times = {align: _gate_times(run, align) for align in options.aligns}
    figures = {
        str(align): {
            "seconds": statistics.median(found["gate"]),
            "reward_s": statistics.median(found["reward"]),
            "over_reward": statistics.median(a / b for a, b in zip(found["gate"], found["reward"], strict=True)),
        }
        for align, found in times.items()
    }
    tokens = options.gate_windows * options.context
    flops = 3 * tokens * forward_flops(run.prunable())  # a backward counts as two forwards
    memory = make_plan(run.name, options, options.windows, use="fastforward-guided").memory["allocate"]
    return Measured(times[options.aligns[0]]["gate"], tokens, flops, memory, {"aligns": figures})


def _gate_times(run: Run, align: int) -> dict[str, list[float]]:
    """Seconds of the gradients and of the reward, in turn."""
    options, prunable, known = run.options, run.prunable(align), run.known().statistics
    allocation, windows = uniform_allocation(prunable.problem(options.sparsity)), range(options.gate_windows)
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    candidates = cut.candidates(known.of(prunable))
    actions = {
        "gate": lambda: run.reward(candidates).marginal_utility(allocation, windows=windows),
        "reward": lambda: run.reward(candidates)(allocation, windows=windows),
    }
    try:
        return _take_turns(actions, options.rounds, warm_up=True)
    finally:
        candidates.restore()


def compensate(run: Run) -> Measured:
    """Chooses the units that stay, and solves for the output projections that make up for the others."""
    options, prunable, known = run.options, run.prunable(), run.known()
    cut = make_cut("structured", score="wanda", compensation="ridge", pruner="wanda")
    problem = prunable.problem(options.sparsity)
    allocation = uniform_allocation(problem)

    def action(count: int) -> None:
        text = api.Calibration(run.windows(count), known.dense_loss, known.statistics)
        run.masks = api.make_masks(prunable, text, problem, allocation, cut, batch_tokens=options.batch_tokens)

    one_window_s = _seconds(partial(action, 1))  # warms up
    rounds = _take_turns({"ridge": partial(action, options.compensate_windows)}, options.rounds)["ridge"]
    plan = make_plan(run.name, options, options.compensate_windows)
    tokens, details = options.compensate_windows * options.context, {"one_window_s": one_window_s}
    return Measured(rounds, tokens, plan.flops["apply"], plan.memory["apply"], details)


def export(run: Run) -> Measured:
    """Cuts the model and writes its checkpoint to a temporary folder."""
    prunable, known = run.prunable(), run.known()
    problem = prunable.problem(run.options.sparsity)
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    masks = run.masks or api.make_masks(prunable, known, problem, uniform_allocation(problem), cut)
    with tempfile.TemporaryDirectory(prefix="ffp-gpu-") as scratch:
        check_disk(Path(scratch, "model"), run.plan.host)
        install_s = _seconds(lambda: api.install(prunable, problem, masks, cut))
        save_s = _seconds(lambda: run.model.save_pretrained(scratch, max_shard_size=SHARD, save_original_format=False))
        size = sum(file.stat().st_size for file in Path(scratch).glob("*.safetensors"))
    params = prunable.model_params()
    details = {"install_s": install_s, "save_s": save_s, "bytes": size, "params": params,
               "bytes_per_param": size / params, "bytes_per_s": size / save_s}  # fmt: skip
    return Measured([install_s + save_s], details=details, over_plan={"disk": size / run.plan.host})


STEPS: Mapping[str, Callable[[Run], Measured]] = {
    step.__name__: step for step in (build, calibrate, candidate, gate, compensate, export)
}


def _channels(prunable: PrunableModel, sparsity: float) -> list[int]:
    """KV groups and single channels that the uniform allocation keeps."""
    problem = prunable.problem(sparsity)
    return [keep * decision.bundle for decision, keep in uniform_allocation(problem).items(problem)]


def _take_turns(
    actions: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: bool = False
) -> dict[str, list[float]]:
    """Seconds of each action in each round; a warm-up does not count. No round begins after PATIENCE_S."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    if warm_up:
        for action in actions.values():
            action()
    started = time.perf_counter()
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(_seconds(action))
        if time.perf_counter() - started > PATIENCE_S:
            break
    return times


def _seconds(action: Callable[[], Any]) -> float:
    """Seconds until the device has done the work."""

    def finish() -> None:
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return seconds(finish)
