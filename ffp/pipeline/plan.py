"""Estimates what a grid takes, from the sizes of its models alone, before anything is fetched or queued.

Time is the products with weights, at a speed that the caller assumes. torch.utils.flop_counter would count the same
products (a test compares them) and attention's besides, but takes seconds for each large model, and training or
compensation would still need formulas.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent

import pandas as pd
import torch

from ffp.config import Experiment, HubSource
from ffp.config.assets import JobKind
from ffp.core import projection
from ffp.core.plain import duration
from ffp.measure.bos import place_bos
from ffp.measure.task_cost import TaskCost
from ffp.models.checkpoint import dtype_of, load_tokenizer
from ffp.models.prunable import PrunableModel
from ffp.pipeline.idle import idle_settings
from ffp.pipeline.memory_plan import gram_bytes
from ffp.pipeline.planned import planned_model, shortages
from ffp.pipeline.preflight import CHECKS, STEPS, preflight
from ffp.pipeline.sizes import computing_cells, computing_steps, forward_flops, memory_of
from ffp.pipeline.task_plan import lines as task_lines
from ffp.pipeline.task_plan import plan_tasks, task_tokens
from ffp.pipeline.took import Speed, speed_of
from ffp.pipeline.training_plan import recovered_cells, recovery_memory, training_tokens
from ffp.store.layout import Layout
from ffp.store.shared import replaced

ALIGN_ADVICE = (
    "FFN widths that are no multiple of 8 are slow on GPUs: models of 7 B without 10 to 30 % of their parameters ran "
    "1.4 to 2.9 times as long as dense on an H100, and 0.74 to 0.91 times as long in multiples of 8."
)
# Steps whose jobs ask for what `resources` says of searches and of scores; see workflow/rules.
JOB_STEPS: Mapping[JobKind, tuple[str, ...]] = {
    "search": ("calibrate", "grams", "allocate", "recover"), "score": ("apply", "evaluate"),
}  # fmt: skip
TEST_TOKENS = 340_000  # a whole test text, for grids that limit no windows; WikiText-2's


@dataclass(frozen=True)
class ModelPlan:
    """What one model of a grid is and takes.

    Attributes:
        name: Name in the grid.
        family: Its model_type.
        blocks: Transformer blocks.
        bos: Where windows have a BOS; "auto" for a model that is not fetched, where the tokenizer decides.
        params: Parameters of the whole model.
        unit_params: Parameters that a method may remove.
        units: What the units of a block are; several where variants differ.
        limits: Largest sparsity that min_keep and keep_blocks allow, by granularity.
        memory: Peak bytes on the device, by step.
        host: Bytes of the weights.
        grams: Bytes of the Gram matrices; 0 for none.
        tasks: What scoring each task takes; empty where that is not known.
        flops: Multiplications and additions of all its jobs, by step.
        speed: How fast its jobs run.
        jobs: Number of jobs, by step.
        checks: What was checked of it.
        warnings: Sentences about what may go wrong.
    """

    name: str
    family: str
    blocks: int
    bos: str
    params: int
    unit_params: int
    units: tuple[str, ...]
    limits: dict[str, float]
    memory: dict[str, int]
    host: int
    grams: int
    tasks: dict[str, TaskCost]
    flops: dict[str, float]
    speed: Speed
    jobs: dict[str, int]
    checks: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_model(experiment: Experiment, name: str, *, tflops: float | None = None) -> ModelPlan:
    """Checks one model of a grid and counts what its cells take.

    Args:
        experiment: The grid.
        name: One of its models.
        tflops: Sustained speed of a device, 10^12 operations a second; None for what speed_of finds.

    Raises:
        FfpError: The model's sizes are unknown, or something would fail a run; see preflight.
    """
    planned = planned_model(experiment, name)
    checks, each = preflight(planned), planned.prunables
    config, prunable = experiment.models[name], each[0]
    memory = memory_of(prunable, experiment, name) | recovery_memory(prunable, experiment, name)
    params = prunable.model_params()
    tasks, short = plan_tasks(experiment, name), shortages(experiment, name, each)
    return ModelPlan(
        name=name,
        family=str(prunable.config.model_type),
        blocks=len(prunable.blocks),
        bos=_bos(experiment, name),
        params=params,
        unit_params=prunable.problem(0.0).total_params,
        units=tuple(dict.fromkeys(one.describe_units() for one in each)),
        limits=_limits(experiment, each),
        memory=memory,
        host=params * dtype_of(prunable.model, config).itemsize,
        grams=gram_bytes(prunable) if experiment.keeps_grams else 0,
        tasks=tasks,
        flops=planned_flops(prunable, experiment, name, task_tokens(experiment, tasks)),
        speed=Speed(tflops * 1e12, "given") if tflops else speed_of(experiment, name, prunable),
        jobs=_jobs(experiment, name),
        checks=tuple(checks),
        warnings=(*_warnings(experiment, name, memory), *_unit_warnings(prunable, name), *short),
    )


def _limits(experiment: Experiment, each: Sequence[PrunableModel]) -> dict[str, float]:
    """Returns the largest sparsity that all variants allow, by granularity."""
    return {
        granularity: min(projection.max_sparsity(one.problem(0.0, granularity)) for one in each)
        for granularity in experiment.grid.granularities
    }


def _bos(experiment: Experiment, name: str) -> str:
    """Where the model's windows have a BOS; what is asked for, if its tokenizer is not here."""
    asked, files = experiment.models[name].bos, Layout.from_grid(experiment.grid).model(name)
    return place_bos(load_tokenizer(files.folder), asked) if files.manifest.is_file() else asked


def planned_flops(prunable: PrunableModel, experiment: Experiment, name: str, scored: int) -> dict[str, float]:
    """Returns multiplications and additions of all cells, by step; pruned models are counted as dense.

    Args:
        prunable: The model's modules, without weights.
        experiment: The grid.
        name: Of the model.
        scored: Tokens of tasks.
    """
    grid = experiment.grid
    units = prunable.problem(0.0).total_params
    search, calibration, evaluation = grid.search, grid.calibration, grid.evaluation
    selection = search.selection_windows * search.context
    texts = search.windows * search.context + selection
    cells = computing_cells(experiment, name)
    spent = search.budget().tokens(search.context) + (search.finalists + len(search.checkpoints)) * selection
    text = evaluation.windows * evaluation.context or TEST_TOKENS
    scored += text * len(grid.test_texts)
    stream = calibration.windows * calibration.context
    outputs = [prunable.linear(module.output) for module in prunable.modules]
    moments = sum(one.in_features * (one.in_features + one.out_features) for one in outputs)
    forward, trained = forward_flops(prunable), sum(training_tokens(experiment.recover(c)) for c in cells["recover"])
    return {
        "calibrate": forward * (stream + texts),
        "grams": forward * stream * experiment.keeps_grams,
        "allocate": forward * spent * len(cells["allocate"]),
        # a block is passed up to each output projection, and once more as a whole
        "apply": stream * (2 * 2.0 * units + 2.0 * moments) * len(cells["apply"]),
        "recover": forward * trained,
        # a trained cell is measured before its training too, on the first test text
        "evaluate": forward * (scored * len(cells["evaluate"]) + text * len(cells["recover"])),
    }


def _jobs(experiment: Experiment, name: str) -> dict[str, int]:
    cells = list(experiment.cells(only=name))
    pruned, trained = sum(not cell.is_dense for cell in cells), len(recovered_cells(experiment, name))
    grams = {"grams": 1} if experiment.keeps_grams else {}
    jobs = {"asset": 1, "preflight": 1, "calibrate": 1, **grams, "allocate": pruned, "apply": pruned}
    return {**jobs, **({"recover": trained} if trained else {}), "evaluate": len(cells)}


def _warnings(experiment: Experiment, name: str, memory: Mapping[str, int]) -> Iterator[str]:
    config = experiment.models[name]
    if isinstance(config.source, HubSource) and not _is_pinned(config.source):
        yield f"{name}: revision {config.source.revision!r} of {config.source.repo} is no commit and can change."
    if config.device == "cpu":
        yield from _memory_warnings(experiment, name, memory)


def _memory_warnings(experiment: Experiment, name: str, memory: Mapping[str, int]) -> Iterator[str]:
    """Yields a sentence for each kind of job that asks for less memory than its largest step takes."""
    resources, steps = experiment.models[name].resources, computing_steps(experiment, name)
    for kind, own in JOB_STEPS.items():
        needs = {step: memory[step] / 1e6 for step in own if step in steps}
        asked, largest = resources.of(kind)["mem_mb"], max(needs, key=lambda step: needs[step])
        if needs[largest] > asked:
            key = f"resources.{kind}.mem_mb" if getattr(resources, kind).mem_mb else "resources.mem_mb"
            yield f"{name}: {largest} asks for {asked} MB and takes about {needs[largest]:.0f}. Raise {key}."


def _unit_warnings(prunable: PrunableModel, name: str) -> Iterator[str]:
    """Yields what a user should know of a model's units: attention of which nothing can go."""
    decision = prunable.modules[2 if len(prunable.blocks) > 1 else 0].decision  # block 0 always keeps a unit
    if decision.n_units <= prunable.min_keep and prunable.heads > 1:
        joint = prunable.is_joint(0)
        why = "its heads share a norm" if joint else "a unit has all its query heads"
        remedy = "" if joint else "attention_units: query-heads, or "
        yield f"{name}: attention cannot be pruned, since {why}. Set {remedy}min_keep: 0."


def _is_pinned(source: HubSource) -> bool:
    """Whether a hub source names a commit, whose files cannot change."""
    return re.fullmatch(r"[0-9a-f]{40}", source.revision) is not None


def report(experiment: Experiment, *, tflops: float | None = None) -> str:
    """Returns the plan of a grid as text.

    Args:
        experiment: The grid and what it names.
        tflops: Sustained speed of a device, 10^12 operations a second; None for what is known of it.
    """
    plans = [plan_model(experiment, name, tflops=tflops) for name in experiment.grid.models]
    jobs = sum((Counter(plan.jobs) for plan in plans), Counter[str]())
    jobs["asset"] += len(experiment.texts) + (experiment.tasks is not None)
    counted = ", ".join(f"{count} {step}" for step, count in jobs.items())
    cells, seconds = len(list(experiment.cells())), sum(sum(p.flops.values()) / p.speed.flops for p in plans)
    texts = [part.source for text in experiment.texts.values() for part in text.sources]
    tasks = experiment.tasks.sources if experiment.tasks else []
    loose = dict.fromkeys(s.repo for s in [*texts, *tasks] if isinstance(s, HubSource) and not _is_pinned(s))
    warnings = [warning for plan in plans for warning in plan.warnings]
    warnings += [f"{repo}: its revision is no commit." for repo in loose]
    warnings += [*idle_settings(experiment), *replaced(experiment)]
    lines = [
        f"{experiment.file}: {experiment.grid.title}\n",
        f"{_models_table(plans)}\n",
        "What each block has, and may lose:\n",
        *(f"  {plan.name}: {units}" for plan in plans for units in plan.units),
        "",
        "Memory on the device in GB, and time of it:\n",
        f"{_cost_table(plans)}\n",
        *(f"  {plan.name}: at {plan.speed.flops / 1e12:.3g} TFLOP/s ({plan.speed.source})" for plan in plans),
        "",
        *task_lines(experiment, {plan.name: plan.tasks for plan in plans}),
        *(f"{plan.name}: Gram matrices take {plan.grams / 1e9:.2f} GB of disk.\n" for plan in plans if plan.grams),
        f"{cells} cells, {jobs.total() + 1} jobs ({counted}, 1 report), about {duration(seconds)} of a device.",
        *_checked(plans),
    ]
    return "\n".join([*lines, *_advice(experiment), *(f"warning: {warning}" for warning in warnings)])


def _checked(plans: list[ModelPlan]) -> Iterator[str]:
    """What was checked of every model, and what waits for something that is not here."""
    done = [check.about for check in CHECKS if all(check.about in plan.checks for plan in plans)]
    later = [check.about for check in CHECKS if check.about not in done]
    yield f"\nChecked: {'; '.join(done)}."
    if later:
        yield f"Checked once it is known, before a run spends anything: {'; '.join(later)}."


def _advice(experiment: Experiment) -> Iterator[str]:
    """What would make pruned models faster where they run."""
    gpus = {"cuda", "auto"} if torch.cuda.is_available() else {"cuda"}
    models = {name: experiment.models[name] for name in experiment.grid.models}
    slow = [name for name, config in models.items() if config.device in gpus and config.align % 8]
    if slow and "structured" in experiment.grid.granularities:
        yield f"advice: set align: 8 for {', '.join(slow)}. {ALIGN_ADVICE}"


def _models_table(plans: list[ModelPlan]) -> str:
    rows = {}
    for plan in plans:
        limits = ", ".join(f"{value:.3f} {name}" for name, value in plan.limits.items())
        share = f"{plan.unit_params / plan.params:.1%}"
        rows[plan.name] = (plan.family, plan.bos, plan.blocks, f"{plan.params / 1e6:,.1f} M", share, limits)
    return table(rows, ("family", "BOS", "blocks", "params", "in units", "largest sparsity"))


def _cost_table(plans: list[ModelPlan]) -> str:
    rows, steps = {}, [step for step in STEPS if any(step in plan.memory for plan in plans)]
    for plan in plans:
        memory = [f"{plan.memory.get(step, 0) / 1e9:.1f}" for step in steps]
        times = [duration(plan.flops[step] / plan.speed.flops) for step in steps]
        rows[plan.name] = (*memory, f"{plan.host / 1e9:.1f}", *times)
    return table(rows, (*steps, "weights", *(f"{step} time" for step in steps)))


def table(rows: Mapping[str, tuple[object, ...]], columns: tuple[str, ...]) -> str:
    """Returns rows by model, the models to the left."""
    frame = pd.DataFrame.from_dict(dict(rows), orient="index", columns=list(columns))
    return indent(frame.rename_axis(columns="model").to_string(), "  ")
