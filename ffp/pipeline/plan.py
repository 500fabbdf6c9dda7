"""Estimates what a grid takes, from the sizes of its models alone, before anything is fetched or queued.

Time is the products with weights, at a speed that the caller assumes. torch.utils.flop_counter would count the same
products (a test compares them) and attention's besides, but takes seconds for each large model, and training or
compensation would still need formulas.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

import pandas as pd
import torch
from transformers import PreTrainedModel

from ffp.allocators import is_search
from ffp.config import Experiment, HubSource
from ffp.core import projection
from ffp.core.errors import BudgetError, ConfigError
from ffp.measure.bos import place_bos
from ffp.measure.task_cost import TaskCost
from ffp.models.checkpoint import build_skeleton, dtype_of, is_spread, load_skeleton, load_tokenizer
from ffp.models.placement import choose_device
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import check_context, check_disk, check_memory, contexts_of
from ffp.pipeline.memory_plan import gram_bytes, holds_gradients, step_memory, takes_gradients
from ffp.pipeline.task_plan import lines as task_lines
from ffp.pipeline.task_plan import plan_tasks, task_tokens
from ffp.pipeline.training_plan import recovered_cells, recovery_memory, training_tokens
from ffp.pruning.pruners import find_pruner
from ffp.store.layout import Layout

STEPS = ("calibrate", "allocate", "apply", "recover", "evaluate")
ALIGN_ADVICE = (
    "FFN widths that are no multiple of 8 are slow on GPUs: models of 7 B without 10 to 30 % of their parameters ran "
    "1.4 to 2.9 times as long as dense on an H100, and 0.74 to 0.91 times as long in multiples of 8."
)
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
        grams: Bytes of the Gram matrices that calibration keeps; 0 for none.
        tasks: What scoring each task takes; empty where that is not known.
        flops: Multiplications and additions of all its jobs, by step.
        jobs: Number of jobs, by step.
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
    jobs: dict[str, int]
    warnings: tuple[str, ...]


def plan_model(experiment: Experiment, name: str) -> ModelPlan:
    """Checks one model of a grid and counts what its cells take.

    Raises:
        ConfigError: The model's sizes are unknown, a context of the grid exceeds its positions, or a method does not
            suit it.
        BudgetError: A sparsity of the grid cannot be met.
    """
    config, skeleton = experiment.models[name], _skeleton(experiment, name)
    each = _prunables(experiment, name, skeleton)
    prunable = each[0]
    if _is_fetched(experiment, name) or "max_position_embeddings" in (config.architecture or {}):
        check_context(prunable.config, contexts_of(experiment.grid))
    limits = _limits(experiment, name, each)
    _check_methods(experiment, name, skeleton)
    memory = _memory(prunable, experiment, name) | recovery_memory(prunable, experiment, name)
    params = sum(parameter.numel() for parameter in prunable.model.parameters())
    tasks = plan_tasks(experiment, name)
    return ModelPlan(
        name=name,
        family=str(prunable.config.model_type),
        blocks=len(prunable.blocks),
        bos=_bos(experiment, name),
        params=params,
        unit_params=prunable.problem(0.0).total_params,
        units=tuple(dict.fromkeys(one.describe_units() for one in each)),
        limits=limits,
        memory=memory,
        host=params * dtype_of(prunable.model, config).itemsize,
        grams=gram_bytes(prunable) if experiment.keeps_grams else 0,
        tasks=tasks,
        flops=_flops(prunable, experiment, name, task_tokens(experiment, tasks)),
        jobs=_jobs(experiment, name),
        warnings=(*_warnings(experiment, name, memory), *_unit_warnings(prunable, name)),
    )


def check_machine(experiment: Experiment, name: str, model_dir: Path, out: Path) -> None:
    """Checks, before the first job of a model loads it, that its grid suits the model, and the model this machine.

    Args:
        experiment: The grid.
        name: The model's name.
        model_dir: Where it was fetched to.
        out: Folder of its calibration.

    Raises:
        ConfigError: A context exceeds the model's positions, a method does not suit it, or memory or the disk does not
            suffice.
    """
    config, grid, skeleton = experiment.models[name], experiment.grid, load_skeleton(model_dir)
    prunable = PrunableModel(skeleton, **config.units)
    _check_methods(experiment, name, skeleton)
    check_context(prunable.config, contexts_of(experiment.grid))
    device = choose_device(config.device)
    spread = range(torch.cuda.device_count()) if is_spread(config, device) else ()
    check_memory(peak_memory(prunable, experiment, name), *([torch.device("cuda", i) for i in spread] or [device]))
    tokens = grid.calibration.windows * grid.calibration.context
    tokens += (grid.search.windows + grid.search.selection_windows) * grid.search.context
    inputs = sum(prunable.linear(path).in_features for path in prunable.decision_names("structured"))
    check_disk(out, 4 * tokens + 16 * inputs + (gram_bytes(prunable) if experiment.keeps_grams else 0))


def _check_methods(experiment: Experiment, name: str, skeleton: PreTrainedModel) -> None:
    """Checks that the methods of the grid can serve this model; ConfigError that names the grid."""
    for cell in experiment.cells(dense=False):
        if cell.model == name and not cell.is_dense:
            prunable = PrunableModel(skeleton, **experiment.model(cell).units)
            try:
                experiment.create(cell.method).check(prunable.problem(float(cell.sparsity), cell.granularity))
            except ConfigError as error:
                raise ConfigError(f"{experiment.file}: {cell.method} on {name}: {error}") from error


def _limits(experiment: Experiment, name: str, each: list[PrunableModel]) -> dict[str, float]:
    """Returns the largest sparsity that all variants allow, by granularity; BudgetError if the grid asks for more."""
    limits: dict[str, float] = {}
    for granularity in experiment.grid.granularities:
        limits[granularity] = min(projection.max_sparsity(one.problem(0.0, granularity)) for one in each)
        for sparsity in experiment.grid.sparsities_of(granularity):
            if sparsity > limits[granularity]:
                raise BudgetError(
                    f"{experiment.file}: sparsity {sparsity:.2f} on {name} cannot be met: at most "
                    f"{limits[granularity]:.4f} can be removed. Lower the grid's sparsities, or min_keep or "
                    f"keep_blocks in {experiment.root}/models/{name}.yaml."
                )
    return limits


def _skeleton(experiment: Experiment, name: str) -> PreTrainedModel:
    """The model without weights: by its fetched config.json, else by the architecture that its YAML gives.

    Its dtype is what that says, or float32.
    """
    config, folder = experiment.models[name], Layout.from_grid(experiment.grid).model(name).folder
    if _is_fetched(experiment, name):
        return load_skeleton(folder)
    if config.architecture is None:
        raise ConfigError(
            f"the sizes of {name} are not known: {folder}/config.json does not exist, and {experiment.root}/models/"
            f"{name}.yaml has no architecture. Run `ffp asset model` for it, or give it its model_type and sizes."
        )
    return build_skeleton(config.architecture)


def _prunables(experiment: Experiment, name: str, skeleton: PreTrainedModel) -> list[PrunableModel]:
    """The model as its YAML prunes it, and as variants of the grid do."""
    asked = [experiment.models[name].units]
    for cell in experiment.cells(dense=False):
        if cell.model == name and (units := experiment.model(cell).units) not in asked:
            asked.append(units)
    return [PrunableModel(skeleton, **units) for units in asked]


def _is_fetched(experiment: Experiment, name: str) -> bool:
    return (Layout.from_grid(experiment.grid).model(name).folder / "config.json").is_file()


def _bos(experiment: Experiment, name: str) -> str:
    """Where the model's windows have a BOS; what is asked for, if its tokenizer is not here."""
    asked, files = experiment.models[name].bos, Layout.from_grid(experiment.grid).model(name)
    return place_bos(load_tokenizer(files.folder), asked) if files.manifest.is_file() else asked


def peak_memory(prunable: PrunableModel, experiment: Experiment, name: str) -> int:
    """Returns the bytes that the largest of the grid's jobs for this model takes on the device."""
    cells = [cell for cell in experiment.cells(dense=False) if cell.model == name]
    steps = {"calibrate", "evaluate"}
    steps |= {"allocate" for cell in cells if is_search(experiment.method(cell.method))}
    steps |= {"apply" for cell in cells if _streams(experiment, cell.method, cell.granularity)}
    memory = _memory(prunable, experiment, name)
    return max([*(memory[step] for step in steps), *recovery_memory(prunable, experiment, name).values()])


def _memory(prunable: PrunableModel, experiment: Experiment, name: str) -> dict[str, int]:
    cells = [cell for cell in experiment.cells(dense=False) if cell.model == name]
    methods = [experiment.create(cell.method) for cell in cells]
    compensated = any(experiment.compensated_search(cell.method) for cell in cells)
    return step_memory(
        prunable, experiment.grid, experiment.models[name], gradients=any(map(takes_gradients, methods)),
        held=any(map(holds_gradients, methods)), grams=experiment.keeps_grams, compensated=compensated,
    )  # fmt: skip


def forward_flops(prunable: PrunableModel) -> float:
    """Returns multiplications and additions in products with weights, for one token; attention's are left out."""
    head = int(prunable.config.vocab_size * prunable.config.hidden_size)
    return 2.0 * (prunable.problem(0.0).total_params + head)


def _flops(prunable: PrunableModel, experiment: Experiment, name: str, scored: int) -> dict[str, float]:
    """Multiplications and additions of all cells, by step; pruned models are counted as dense.

    scored: tokens of tasks.
    """
    grid = experiment.grid
    units = prunable.problem(0.0).total_params
    search, calibration, evaluation = grid.search, grid.calibration, grid.evaluation
    selection = search.selection_windows * search.context
    texts = search.windows * search.context + selection
    cells = [cell for cell in experiment.cells() if cell.model == name]
    pruned = [cell for cell in cells if not cell.is_dense]
    searches = [c for c in pruned if is_search(experiment.method(c.method)) and experiment.same_search(c) is None]
    spent = search.budget().tokens(search.context) + (search.finalists + len(search.checkpoints)) * selection
    scored += (evaluation.windows * evaluation.context or TEST_TOKENS) * len(grid.test_texts)
    stream = calibration.windows * calibration.context
    outputs = [prunable.linear(module.output) for module in prunable.modules]
    moments = sum(one.in_features * (one.in_features + one.out_features) for one in outputs)
    streamed = [cell for cell in pruned if _streams(experiment, cell.method, cell.granularity)]
    forward, trained = forward_flops(prunable), sum(training_tokens(experiment.recover(cell)) for cell in cells)
    return {
        "calibrate": forward * (stream + texts),
        "allocate": forward * spent * len(searches),
        # a block is passed up to each output projection, and once more as a whole
        "apply": stream * (2 * 2.0 * units + 2.0 * moments) * len(streamed),
        "recover": forward * trained,
        "evaluate": forward * scored * len(cells),
    }


def _streams(experiment: Experiment, method: str, granularity: str) -> bool:
    """Whether applying a cell pushes the calibration text through the model."""
    if granularity == "structured":
        return experiment.compensation(method) != "none"
    return find_pruner(experiment.pruner(method)).reads == "stream"


def _jobs(experiment: Experiment, name: str) -> dict[str, int]:
    cells = [cell for cell in experiment.cells() if cell.model == name]
    pruned, trained = sum(not cell.is_dense for cell in cells), len(recovered_cells(experiment, name))
    jobs = {"asset": 1, "calibrate": 1, "allocate": pruned, "apply": pruned}
    return {**jobs, **({"recover": trained} if trained else {}), "evaluate": len(cells)}


def _warnings(experiment: Experiment, name: str, memory: Mapping[str, int]) -> Iterator[str]:
    config = experiment.models[name]
    if isinstance(config.source, HubSource) and not _is_pinned(config.source):
        yield f"{name}: revision {config.source.revision!r} of {config.source.repo} is no commit and can change."
    need = max(memory.values()) / 1e6
    if config.device == "cpu" and need > config.resources.mem_mb:
        yield f"{name}: a job asks for {config.resources.mem_mb} MB and takes about {need:.0f}. Raise resources.mem_mb."


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


def report(experiment: Experiment, *, tflops: float) -> str:
    """Returns the plan of a grid as text.

    Args:
        experiment: The grid and what it names.
        tflops: Sustained speed of a device, 10^12 operations a second.
    """
    plans = [plan_model(experiment, name) for name in experiment.grid.models]
    jobs = sum((Counter(plan.jobs) for plan in plans), Counter[str]())
    jobs["asset"] += len(experiment.texts) + (experiment.tasks is not None)
    counted = ", ".join(f"{count} {step}" for step, count in jobs.items())
    cells, hours = len(list(experiment.cells())), sum(_hours(sum(p.flops.values()), tflops) for p in plans)
    texts = [part.source for text in experiment.texts.values() for part in text.sources]
    tasks = experiment.tasks.sources if experiment.tasks else []
    loose = dict.fromkeys(s.repo for s in [*texts, *tasks] if isinstance(s, HubSource) and not _is_pinned(s))
    warnings = [warning for plan in plans for warning in plan.warnings]
    warnings += [f"{repo}: its revision is no commit." for repo in loose]
    lines = [
        f"{experiment.file}: {experiment.grid.title}\n",
        f"{_models_table(plans)}\n",
        "What each block has, and may lose:\n",
        *(f"  {plan.name}: {units}" for plan in plans for units in plan.units),
        "",
        f"Memory on the device in GB, and hours of it at {tflops:g} TFLOP/s:\n",
        f"{_cost_table(plans, tflops)}\n",
        *task_lines(experiment, {plan.name: plan.tasks for plan in plans}),
        *(f"{plan.name}: Gram matrices take {plan.grams / 1e9:.2f} GB of disk.\n" for plan in plans if plan.grams),
        f"{cells} cells, {jobs.total() + 1} jobs ({counted}, 1 report), about {hours:.1f} device hours.",
    ]
    return "\n".join([*lines, *_advice(experiment), *(f"warning: {warning}" for warning in warnings)])


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
    return _table(rows, ("family", "BOS", "blocks", "params", "in units", "largest sparsity"))


def _cost_table(plans: list[ModelPlan], tflops: float) -> str:
    rows, steps = {}, [step for step in STEPS if any(step in plan.memory for plan in plans)]
    for plan in plans:
        memory = [f"{plan.memory.get(step, 0) / 1e9:.1f}" for step in steps]
        hours = [f"{_hours(plan.flops[step], tflops):.2f}" for step in steps]
        rows[plan.name] = (*memory, f"{plan.host / 1e9:.1f}", *hours)
    return _table(rows, (*steps, "weights", *(f"{step} h" for step in steps)))


def _hours(flops: float, tflops: float) -> float:
    return flops / (tflops * 1e12) / 3600


def _table(rows: Mapping[str, tuple[object, ...]], columns: tuple[str, ...]) -> str:
    """Rows by model, the models to the left."""
    frame = pd.DataFrame.from_dict(dict(rows), orient="index", columns=list(columns))
    return indent(frame.rename_axis(columns="model").to_string(), "  ")
