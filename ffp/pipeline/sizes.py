"""The models of a grid without their weights: modules of every variant, and what its jobs hold on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ffp.allocators import is_search
from ffp.config import Cell, Experiment, LocalSource
from ffp.core.errors import ConfigError
from ffp.core.plain import shell_line
from ffp.models.checkpoint import build_skeleton, is_spread, load_skeleton
from ffp.models.placement import choose_device
from ffp.models.prunable import PrunableModel
from ffp.pipeline.memory_plan import holds_gradients, step_memory, takes_gradients
from ffp.pipeline.training_plan import recovered_cells, recovery_memory
from ffp.pruning.pruners import find_pruner
from ffp.store.layout import Layout, expanded


def load_sizes(experiment: Experiment, name: str) -> PreTrainedModel:
    """Returns a model without weights: by its config.json (see sizes_folder), else by the architecture of its YAML.

    Its dtype is what that says, or float32.

    Raises:
        ConfigError: There is no config.json, and its YAML gives no architecture.
    """
    if found := sizes_folder(experiment, name):
        return load_skeleton(found)
    config, entry = experiment.models[name], experiment.entry("models", name)
    if config.architecture is None:
        folder = Layout.from_grid(experiment.grid).model(name).folder
        fetch = shell_line(["ffp", "asset", "model", "--config", entry, "--out", folder])
        raise ConfigError(
            f"the sizes of {name} are not known: {folder}/config.json does not exist, and {entry} has no architecture. "
            f"Run `{fetch}`, or give it its model_type and sizes."
        )
    return build_skeleton(config.architecture)


def are_sizes_known(experiment: Experiment, name: str) -> bool:
    """Returns whether load_sizes finds a model."""
    return sizes_folder(experiment, name) is not None or experiment.models[name].architecture is not None


def sizes_folder(experiment: Experiment, name: str) -> Path | None:
    """Returns the folder whose config.json has a model's sizes: of the fetched model, else its source on this machine.

    None where neither is there.
    """
    source = experiment.models[name].source
    folders = [Layout.from_grid(experiment.grid).model(name).folder]
    folders += [expanded(source.path)] if isinstance(source, LocalSource) else []
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def prunables_of(experiment: Experiment, name: str, skeleton: PreTrainedModel) -> list[PrunableModel]:
    """Returns the model with each of units_of."""
    return [PrunableModel(skeleton, **units) for units in units_of(experiment, name)]


def units_of(experiment: Experiment, name: str) -> list[dict[str, Any]]:
    """Returns what counts the units of a model: as its YAML says, and as variants of the grid do."""
    asked = [experiment.models[name].units]
    for cell in experiment.cells(dense=False, only=name):
        if (units := experiment.model(cell).units) not in asked:
            asked.append(units)
    return asked


def is_fetched(experiment: Experiment, name: str) -> bool:
    """Returns whether the model is fetched, as far as its sizes."""
    return (Layout.from_grid(experiment.grid).model(name).folder / "config.json").is_file()


def peak_memory(prunable: PrunableModel, experiment: Experiment, name: str) -> int:
    """Returns the bytes that the largest of the grid's jobs for this model takes on the device."""
    memory = memory_of(prunable, experiment, name) | recovery_memory(prunable, experiment, name)
    return max(memory[step] for step in computing_steps(experiment, name))


def computing_steps(experiment: Experiment, name: str) -> set[str]:
    """Returns the steps that forward something through a model."""
    once = {"calibrate", "grams"} if experiment.keeps_grams else {"calibrate"}
    return once | {*(step for step, cells in computing_cells(experiment, name).items() if cells)}


def memory_of(prunable: PrunableModel, experiment: Experiment, name: str) -> dict[str, int]:
    """Returns peak bytes on the device by step, without recovery."""
    cells = list(experiment.cells(dense=False, only=name))
    methods = [experiment.create(cell.method) for cell in cells]
    compensated = any(experiment.compensated_search(cell.method) for cell in cells)
    return step_memory(
        prunable, experiment.grid, experiment.models[name], gradients=any(map(takes_gradients, methods)),
        held=any(map(holds_gradients, methods)), grams=experiment.keeps_grams, compensated=compensated,
    )  # fmt: skip


def devices_of(experiment: Experiment, name: str) -> list[torch.device]:
    """Returns the devices that hold a model: one, or several over which it is spread."""
    config = experiment.models[name]
    device = choose_device(config.device)
    spread = range(torch.cuda.device_count()) if is_spread(config, device) else ()
    return [torch.device("cuda", i) for i in spread] or [device]


def forward_flops(prunable: PrunableModel) -> float:
    """Returns multiplications and additions in products with weights, for one token; attention's are left out."""
    head = int(prunable.config.vocab_size * prunable.config.hidden_size)
    return 2.0 * (prunable.problem(0.0).total_params + head)


def computing_cells(experiment: Experiment, name: str) -> dict[str, list[Cell]]:
    """Returns the cells of a model for which a step runs the model: searches that no other cell makes, and so on."""
    cells = list(experiment.cells(only=name))
    pruned = [cell for cell in cells if not cell.is_dense]
    return {
        "allocate": [c for c in pruned if is_search(experiment.method(c.method)) and not experiment.same_search(c)],
        "apply": [cell for cell in pruned if streams(experiment, cell.method, cell.granularity)],
        "recover": recovered_cells(experiment, name),
        "evaluate": cells,
    }


def streams(experiment: Experiment, method: str, granularity: str) -> bool:
    """Returns whether applying a cell pushes the calibration text through the model."""
    if granularity == "structured":
        return experiment.compensation(method) != "none"
    return find_pruner(experiment.pruner(method)).reads == "stream"
