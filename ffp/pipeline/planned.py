"""What preflight looks at for a model of a grid: with what is fetched, or with the folders that a step was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ffp.allocators import is_search
from ffp.allocators.base import Method, Search
from ffp.allocators.shortage import shortage
from ffp.assets.stock import is_installed
from ffp.config import Cell, Experiment
from ffp.core.problem import PruningProblem
from ffp.models.checkpoint import load_skeleton, load_tokenizer
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import Origin, contexts_of
from ffp.pipeline.inputs import fitted_windows, recovery_windows, scored_windows
from ffp.pipeline.memory_plan import gram_bytes
from ffp.pipeline.preflight import Planned, preflight
from ffp.pipeline.sizes import (
    are_sizes_known,
    devices_of,
    is_fetched,
    load_sizes,
    peak_memory,
    prunables_of,
    sizes_folder,
    units_of,
)
from ffp.pipeline.training_plan import recovered_cells
from ffp.store import schemas
from ffp.store.digests import asset_digest, tasks_digest
from ffp.store.identity import preflight_settings
from ffp.store.layout import Layout
from ffp.store.provenance import provenance

Windows = Callable[[], Mapping[str, torch.Tensor]]


def planned_model(experiment: Experiment, name: str) -> Planned:
    """Returns what is known of a model of a grid from what is fetched so far; of this machine nothing is known.

    Raises:
        ConfigError: The model's sizes are not known.
    """
    layout, grid = Layout.from_grid(experiment.grid), experiment.grid
    each = prunables_of(experiment, name, load_sizes(experiment, name))
    architecture = experiment.models[name].architecture or {}
    known = sizes_folder(experiment, name) is not None or "max_position_embeddings" in architecture
    found = _planned(experiment, name, each, contexts=contexts_of(grid) if known else None)
    if not layout.model(name).manifest.is_file():
        return found
    texts = {text: layout.text(text).folder for text in grid.all_texts if layout.text(text).manifest.is_file()}
    tasks = layout.tasks(str(experiment.tasks_name))
    return _with_assets(
        experiment, name, found, layout.model(name).folder, texts, tasks.folder if tasks.manifest.is_file() else None
    )


def check_model(
    experiment: Experiment, name: str, model_dir: Path, text_dirs: Mapping[str, Path], tasks_dir: Path | None,
    out: Path,
) -> None:  # fmt: skip
    """The workflow's first step for a model: checks all that it was given, and writes down what it checked.

    Args:
        experiment: The grid.
        name: One of its models.
        model_dir: The fetched model.
        text_dirs: All fetched texts of the grid, by name.
        tasks_dir: The fetched tasks; None for a grid without tasks.
        out: The file to write.

    Raises:
        FfpError: The first fault with its remedy.
    """
    inputs = {"model": asset_digest(model_dir), **{f"text {text}": asset_digest(at) for text, at in text_dirs.items()}}
    inputs |= {"tasks": tasks} if (tasks := tasks_digest(experiment, tasks_dir)) else {}
    found = _given(experiment, name, model_dir, text_dirs, tasks_dir)
    origin = provenance(inputs, settings=preflight_settings(experiment, name))
    schemas.PreflightFile(checks=preflight(found), provenance=origin).write(out)


def check_unless_done(experiment: Experiment, name: str) -> None:
    """Checks, before a search, what is fetched of a model and of all texts and tasks, unless that was done already.

    Raises:
        FfpError: The first fault with its remedy.
    """
    done = Layout.from_grid(experiment.grid).calibration(name).preflight
    settings = preflight_settings(experiment, name)
    if done.is_file() and schemas.PreflightFile.read(done).provenance.get("settings") == settings:
        return
    if is_fetched(experiment, name):
        preflight(planned_model(experiment, name))


def check_machine(experiment: Experiment, name: str, model_dir: Path, text_dir: Path | None, out: Path) -> None:
    """Checks, where a model is about to be calibrated, that this machine can do it, and what calibration reads.

    The same where Gram matrices are about to be collected, which a calibrated grid may have not needed before.

    Args:
        experiment: The grid.
        name: One of its models.
        model_dir: The fetched model.
        text_dir: The fetched calibration text; None where the calibration has its windows already.
        out: Folder of the calibration.

    Raises:
        FfpError: The first fault with its remedy.
    """
    grid = experiment.grid
    found = _given(experiment, name, model_dir, {grid.calibration_text: text_dir} if text_dir else {}, None)
    prunable = found.prunables[0]
    tokens = grid.calibration.windows * grid.calibration.context
    tokens += (grid.search.windows + grid.search.selection_windows) * grid.search.context
    inputs = sum(prunable.linear(path).in_features for path in prunable.decision_names("structured"))
    size = 4 * tokens + 16 * inputs + (gram_bytes(prunable) if experiment.keeps_grams else 0)
    memory = peak_memory(prunable, experiment, name), devices_of(experiment, name)
    preflight(replace(found, memory=memory, disk=(out, size)))


def _given(
    experiment: Experiment, name: str, model_dir: Path, text_dirs: Mapping[str, Path], tasks_dir: Path | None
) -> Planned:
    each = prunables_of(experiment, name, load_skeleton(model_dir))
    found = _planned(experiment, name, each, contexts=contexts_of(experiment.grid))
    return _with_assets(experiment, name, found, model_dir, text_dirs, tasks_dir)


def _planned(experiment: Experiment, name: str, each: list[PrunableModel], **known: Any) -> Planned:
    """What the grid alone says of a model."""
    grid, cells = experiment.grid, experiment.cells(dense=False, only=name)
    return Planned(
        name=name,
        config=experiment.models[name],
        settings=grid,
        prunables=each,
        problems=_problems(experiment, name, each),
        origins=_origins(experiment, name, each),
        searches=any(is_search(experiment.method(cell.method)) for cell in cells),
        trains=bool(recovered_cells(experiment, name)),
        chats=experiment.tasks is not None and grid.evaluation.chat_template,
        tasks=experiment.tasks if is_installed() else None,
        **known,
    )


def _problems(experiment: Experiment, name: str, each: Sequence[PrunableModel]) -> list[tuple[Method, PruningProblem]]:
    """Every method with every problem that it is asked, once; each: the model with each of units_of."""
    return [(experiment.create(cell.method), problem) for cell, problem in _asked(experiment, name, each)]


def _asked(
    experiment: Experiment, name: str, each: Sequence[PrunableModel]
) -> Iterator[tuple[Cell, PruningProblem]]:  # fmt: skip
    """Yields a cell for each problem of each method."""
    cells = experiment.cells(dense=False, only=name)
    units = units_of(experiment, name)
    for cell in {(cell.method, cell.sparsity, cell.granularity): cell for cell in cells}.values():
        prunable = each[units.index(experiment.model(cell).units)]
        yield cell, prunable.problem(float(cell.sparsity), cell.granularity)


def shortages(experiment: Experiment, name: str, each: Sequence[PrunableModel]) -> list[str]:
    """Returns a sentence for each search that has too few tokens to search; each: the model with each of units_of."""
    search, found = experiment.grid.search, []
    for cell, problem in _asked(experiment, name, each):
        if isinstance(method := experiment.create(cell.method), Search):
            has_policy = experiment.init_cell(cell) is not None
            sizes = (search.windows, search.context)
            found.append(shortage(method, problem, search.budget(), *sizes, name=cell.method, has_policy=has_policy))
    return [f"{name}: {sentence}" for sentence in dict.fromkeys(found) if sentence]


def _origins(experiment: Experiment, name: str, each: Sequence[PrunableModel]) -> list[Origin] | None:
    """The searches that start from the policy of another model; None where the sizes of one are not known."""
    models = {name: each}
    for other in experiment.partners(name):
        if not are_sizes_known(experiment, other):
            return None
        models[other] = prunables_of(experiment, other, load_sizes(experiment, other))

    def problem(cell: Cell) -> PruningProblem:
        units = units_of(experiment, cell.model).index(experiment.model(cell).units)
        return models[cell.model][units].problem(float(cell.sparsity), cell.granularity)

    found = []
    for cell, origin in experiment.origins(name):
        method = experiment.create(cell.method)
        assert isinstance(method, Search)
        found.append(Origin(method, cell.path, problem(cell), origin.path, problem(origin)))
    return found


def _with_assets(
    experiment: Experiment, name: str, found: Planned, model_dir: Path, text_dirs: Mapping[str, Path],
    tasks_dir: Path | None,
) -> Planned:  # fmt: skip
    tokenizer = load_tokenizer(model_dir)
    windows: Windows = partial(_windows, experiment, name, found.prunables[0], tokenizer, text_dirs)
    return replace(found, tokenizer=tokenizer, windows=windows if text_dirs else None, tasks_dir=tasks_dir)


def _windows(
    experiment: Experiment, name: str, prunable: PrunableModel, tokenizer: Any, text_dirs: Mapping[str, Path]
) -> dict[str, torch.Tensor]:
    """The windows of all texts that are there, by what they are for."""
    found: dict[str, torch.Tensor] = {}
    if text_dir := text_dirs.get(experiment.grid.calibration_text):
        found |= fitted_windows(experiment, name, prunable, tokenizer, text_dir)
        if trained := recovered_cells(experiment, name):
            found["recovery"] = recovery_windows(experiment, trained[0], prunable, tokenizer, text_dir)
    bos = experiment.models[name].bos
    for text in experiment.grid.test_texts:
        if text in text_dirs:
            found[f"test {text}"] = scored_windows(experiment, prunable, tokenizer, text, text_dirs[text], bos=bos)
    return found
