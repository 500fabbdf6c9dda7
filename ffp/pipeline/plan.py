"""What a grid will take, from the sizes of its models alone: checked before anything is fetched or queued.

Memory is counted from the tensors that a step holds at once, activations by a bound; what the libraries themselves
take (about 0.5 GB on the host, as much for a CUDA context) is not in it. Time is counted in multiplications, at a
speed that the caller assumes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffp.config import Experiment, HubSource, ModelConfig
from ffp.core import projection
from ffp.core.errors import BudgetError, ConfigError
from ffp.measure.loss import CHUNK_TOKENS
from ffp.models.checkpoint import load_skeleton, skeleton_of
from ffp.models.prunable import PrunableModel

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Tokens of a task's document with all its answers, zero-shot, by the tokenizer of SmolLM2, and documents of the split
# that is scored; for tasks that are not listed, OTHER_TASK.
TASK_TOKENS = {
    "boolq": (297, 3270), "piqa": (68, 1838), "hellaswag": (316, 10042), "winogrande": (45, 1267),
    "arc_easy": (128, 2376), "arc_challenge": (148, 1172), "openbookqa": (60, 500),
}  # fmt: skip
OTHER_TASK = (300, 3000)
TEST_TOKENS = 340_000  # of a whole test text, where the grid takes all of it: WikiText-2's


@dataclass(frozen=True)
class ModelPlan:
    """What one model of a grid is and takes.

    limits: largest sparsity that min_keep allows, by granularity. memory: peak bytes on the device by step. host:
    bytes of the weights. flops: multiplications and additions of all its jobs, by step. jobs: by step.
    """

    name: str
    family: str
    blocks: int
    params: int
    unit_params: int
    limits: dict[str, float]
    memory: dict[str, int]
    host: int
    flops: dict[str, float]
    jobs: dict[str, int]
    warnings: tuple[str, ...]


def plan_model(project: Experiment, name: str) -> ModelPlan:
    """Check one model of a grid and count what its cells take.

    Raises ConfigError where its sizes are unknown, BudgetError where a sparsity of the grid cannot be met.
    """
    config, grid = project.models[name], project.grid
    prunable = PrunableModel(_skeleton(project, name), min_keep=config.min_keep, align=config.align)
    limits: dict[str, float] = {}
    for granularity in grid.granularities:
        limits[granularity] = projection.max_sparsity(prunable.problem(0.0, granularity))
        for sparsity in grid.sparsities_of(granularity):
            if sparsity > limits[granularity]:
                raise BudgetError(
                    f"{project.file}: sparsity {sparsity:.2f} on {name} cannot be met: at most "
                    f"{limits[granularity]:.4f} can be removed. Lower the grid's sparsities, or min_keep in "
                    f"{project.root}/models/{name}.yaml."
                )
    memory = _memory(prunable, project, config)
    params = sum(parameter.numel() for parameter in prunable.model.parameters())
    return ModelPlan(
        name=name,
        family=str(prunable.config.model_type),
        blocks=len(prunable.blocks),
        params=params,
        unit_params=prunable.problem(0.0).total_params,
        limits=limits,
        memory=memory,
        host=params * BYTES[config.dtype],
        flops=_flops(prunable, project, name),
        jobs=_jobs(project, name),
        warnings=tuple(_warnings(project, name, memory)),
    )


def _skeleton(project: Experiment, name: str) -> Any:
    """The model without weights: by its fetched config.json, else by the architecture that its YAML gives."""
    config, folder = project.models[name], Path(project.grid.data, "models", name)
    if (folder / "config.json").is_file():
        return load_skeleton(folder, config)
    if config.architecture is None:
        raise ConfigError(
            f"the sizes of {name} are not known: {folder}/config.json does not exist, and {project.root}/models/"
            f"{name}.yaml has no architecture. Run `ffp asset model` for it, or give it its model_type and sizes."
        )
    return skeleton_of(config.architecture)


def _memory(prunable: PrunableModel, project: Experiment, config: ModelConfig) -> dict[str, int]:
    """Peak bytes on the device by step: weights that are there, one batch's activations, and the step's own tensors."""
    grid, width, b = project.grid, int(prunable.config.hidden_size), BYTES[config.dtype]
    block = max(sum(p.numel() for p in one.parameters()) for one in prunable.blocks) * b
    weights = sum(p.numel() for p in prunable.model.parameters()) * b
    if config.offload:
        weights += block - b * sum(p.numel() for p in prunable.blocks.parameters())
    linears = [prunable.linear(path) for path, _ in prunable.linears(0)]

    def activations(context: int) -> int:
        """Of one batch inside one block, and the logits of one chunk."""
        tokens = max(config.batch_tokens, context)
        return tokens * b * (6 * width + sum(one.out_features for one in linears)) + _logits(prunable, CHUNK_TOKENS)

    search, calibration = grid.search.context, grid.calibration
    outputs = [prunable.linear(module.output) for module in prunable.modules[:2]]
    hidden = calibration.windows * calibration.context * width * b
    moments = max(8 * one.in_features * (one.in_features + one.out_features) for one in outputs)
    backward = activations(search) + len(prunable.blocks) * max(config.batch_tokens, search) * width * b
    needs = {
        "calibrate": activations(max(calibration.context, search)) + 8 * config.batch_tokens * linears[-1].in_features,
        "allocate": activations(search) + backward,
        "apply": activations(calibration.context) + hidden + block + moments,
        "evaluate": max(activations(grid.evaluation.context), _logits(prunable, config.batch_tokens)),
    }
    return {step: int(weights + need) for step, need in needs.items()}


def _logits(prunable: PrunableModel, tokens: int) -> int:
    """Bytes of the logits of so many tokens, in float32, with what the loss makes of them."""
    return 3 * 4 * tokens * int(prunable.config.vocab_size)


def _flops(prunable: PrunableModel, project: Experiment, name: str) -> dict[str, float]:
    """Multiplications and additions in products with weights, of all cells; pruned models counted as dense."""
    grid = project.grid
    units = prunable.problem(0.0).total_params
    head = prunable.config.vocab_size * prunable.config.hidden_size
    search, calibration, evaluation = grid.search, grid.calibration, grid.evaluation
    selection = search.selection_windows * search.context
    texts = search.windows * search.context + selection
    cells = [cell for cell in project.cells() if cell.model == name]
    pruned = [cell for cell in cells if cell.method != "dense"]
    searches = [cell for cell in pruned if project.method(cell.method).is_search]
    spent = search.budget().tokens(search.context) + search.finalists * selection
    scored = (evaluation.windows * evaluation.context or TEST_TOKENS) + _task_tokens(project)
    stream = calibration.windows * calibration.context
    moments = sum((one := prunable.linear(module.output)).in_features * (one.in_features + one.out_features)
                  for module in prunable.modules)  # fmt: skip
    solved = [cell for cell in pruned if _streams(project, cell.method, cell.granularity)]
    forward = 2.0 * (units + head)
    return {
        "calibrate": forward * (stream + texts),
        "allocate": forward * spent * len(searches),
        "apply": stream * (3 * 2.0 * units + 2.0 * moments) * len(solved),
        "evaluate": forward * scored * len(cells),
    }


def _streams(project: Experiment, method: str, granularity: str) -> bool:
    """Whether applying a cell pushes the calibration text through the model."""
    if granularity == "structured":
        return project.compensation(method) != "none"
    return project.pruner(method) in ("wanda", "sparsegpt")


def _task_tokens(project: Experiment) -> int:
    """Tokens of all the grid's task documents, with each of their answers."""
    tasks, limit = (project.tasks.tasks if project.tasks else {}), project.grid.evaluation.documents
    sizes = [TASK_TOKENS.get(task.stock, OTHER_TASK) for task in tasks.values()]
    return sum(tokens * (min(limit, documents) if limit else documents) for tokens, documents in sizes)


def _jobs(project: Experiment, name: str) -> dict[str, int]:
    cells = [cell for cell in project.cells() if cell.model == name]
    pruned = sum(cell.method != "dense" for cell in cells)
    return {"asset": 1, "calibrate": 1, "allocate": pruned, "apply": pruned, "evaluate": len(cells)}


def _warnings(project: Experiment, name: str, memory: Mapping[str, int]) -> Iterator[str]:
    config = project.models[name]
    if isinstance(config.source, HubSource) and not pinned(config.source):
        yield f"{name}: revision {config.source.revision!r} of {config.source.repo} is no commit and can change."
    need = max(memory.values()) / 1e6
    if config.device == "cpu" and need > config.resources.mem_mb:
        yield f"{name}: a job asks for {config.resources.mem_mb} MB and takes about {need:.0f}. Raise resources.mem_mb."


def pinned(source: HubSource) -> bool:
    """Whether a hub source names a commit, which cannot become something else."""
    return re.fullmatch(r"[0-9a-f]{40}", source.revision) is not None


def report(project: Experiment, *, tflops: float) -> str:
    """The plan of a grid as text. tflops: sustained speed of a device, 10^12 operations a second."""
    plans = [plan_model(project, name) for name in project.grid.models]
    lines = [f"{project.file}: {project.grid.title}", "", *_models_table(plans), ""]
    lines += [f"Memory on the device in GB, and hours of it at {tflops:g} TFLOP/s:", "", *_cost_table(plans, tflops)]
    jobs: dict[str, int] = {}
    for plan in plans:
        for step, count in plan.jobs.items():
            jobs[step] = jobs.get(step, 0) + count
    jobs["asset"] += 1 + (project.tasks is not None)
    cells, hours = len(list(project.cells())), sum(sum(p.flops.values()) for p in plans) / tflops / 3.6e15
    counted = ", ".join(f"{count} {step}" for step, count in jobs.items())
    lines += [
        "",
        f"{cells} cells, {sum(jobs.values()) + 1} jobs ({counted}, 1 report), about {hours:.1f} device hours.",
    ]
    texts = [part.source for part in project.text.sources]
    tasks = [part.source for part in project.tasks.tasks.values()] if project.tasks else []
    loose = dict.fromkeys(s.repo for s in [*texts, *tasks] if isinstance(s, HubSource) and not pinned(s))
    warnings = [
        *(w for plan in plans for w in plan.warnings),
        *(f"{repo}: its revision is no commit." for repo in loose),
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def _models_table(plans: list[ModelPlan]) -> list[str]:
    rows: list[tuple[str, ...]] = [("model", "family", "blocks", "params", "in units", "largest sparsity")]
    for plan in plans:
        limits = ", ".join(f"{value:.3f} {name}" for name, value in plan.limits.items())
        share = f"{plan.unit_params / plan.params:.1%}"
        rows.append((plan.name, plan.family, str(plan.blocks), f"{plan.params / 1e6:,.1f} M", share, limits))
    return _aligned(rows)


def _cost_table(plans: list[ModelPlan], tflops: float) -> list[str]:
    steps = ("calibrate", "allocate", "apply", "evaluate")
    rows: list[tuple[str, ...]] = [("model", *steps, "weights", *(f"{step} h" for step in steps))]
    for plan in plans:
        memory = [f"{plan.memory[step] / 1e9:.1f}" for step in steps]
        hours = [f"{plan.flops[step] / tflops / 3.6e15:.2f}" for step in steps]
        rows.append((plan.name, *memory, f"{plan.host / 1e9:.1f}", *hours))
    return _aligned(rows)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, the first one to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
