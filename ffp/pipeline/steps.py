"""The steps of the workflow: each loads its files, calls the API, and saves what comes back. One rule, one function."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffp import api
from ffp.allocators import is_search, reads_weights
from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError, ConfigError
from ffp.core.problem import Allocation
from ffp.measure.bos import place_bos
from ffp.measure.calibration import gram_matrices
from ffp.measure.cost import CostMeter
from ffp.measure.tasks import score_tasks
from ffp.models.checkpoint import load_model, load_skeleton, load_tokenizer
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import check_context
from ffp.pipeline.inputs import ScoredText, fitted_windows, read_test_texts
from ffp.pipeline.scratch import stage
from ffp.pruning.compensation import load_updates
from ffp.pruning.cuts import Cut, make_cut
from ffp.pruning.statistics import ModelStatistics
from ffp.store import schemas
from ffp.store.digests import (
    Digests,
    asset_digest,
    calibration_digests,
    check_cell,
    check_grams,
    is_of,
    score_digests,
    test_digests,
)  # fmt: skip
from ffp.store.files import sha256, whole
from ffp.store.identity import step_settings
from ffp.store.journal import FileJournal
from ffp.store.layout import CalibrationFiles, CellFiles
from ffp.store.provenance import provenance

log = logging.getLogger("ffp")


def calibrate(experiment: Experiment, model_name: str, model_dir: Path, text_dir: Path, out: Path) -> None:
    """Calibrates a model once for all its cells.

    Tokenises the calibration, search and selection texts, collects statistics of the dense model on the first and
    its losses on the others, and writes CalibrationFiles.
    """
    config, files, model_dir = experiment.models[model_name], CalibrationFiles(out), stage(model_dir)
    inputs = {"model": asset_digest(model_dir), "text": asset_digest(text_dir)}
    prunable, tokenizer = load_prunable(experiment, model_name, model_dir), load_tokenizer(model_dir)
    windows = api.Windows(**fitted_windows(experiment, model_name, prunable, tokenizer, text_dir))
    with CostMeter() as cost:
        calibration = api.calibrate(prunable, windows, batch_tokens=config.batch_tokens)
        cost.n_tokens = sum(ids.numel() for _, ids in windows.items())
    settings = step_settings(experiment, "calibrate", Cell.dense_of(model_name))
    origin = provenance(inputs, device=str(prunable.model.device), settings=settings)
    write_calibration(files, calibration, origin)
    schemas.CostFile(**cost.as_dict(), provenance=origin).write(files.cost)


def collect_grams(experiment: Experiment, model_name: str, model_dir: Path, calibration_dir: Path, out: Path) -> None:
    """Collects the Gram matrices of a calibrated model on the windows of that calibration.

    It is a step of its own, so that a grid which gets its first method that needs them is not calibrated again.
    """
    config, files, model_dir = experiment.models[model_name], CalibrationFiles(out), stage(model_dir)
    inputs = {"model": asset_digest(model_dir), **calibration_digests(experiment, model_name, calibration_dir)}
    prunable = load_prunable(experiment, model_name, model_dir)
    windows = read_calibration(prunable, calibration_dir).windows.calibration
    with CostMeter() as cost:
        grams = gram_matrices(prunable, windows, batch_tokens=config.batch_tokens)
        cost.n_tokens = windows.numel()
    settings = step_settings(experiment, "grams", Cell.dense_of(model_name))
    origin = provenance(inputs, device=str(prunable.model.device), settings=settings)
    schemas.GRAMS.write(files.grams, grams, schemas.Origin(provenance=origin))
    schemas.CostFile(**cost.as_dict(), provenance=origin).write(files.grams_cost)


def allocate(
    experiment: Experiment, cell: Cell, model_dir: Path, calibration_dir: Path, out: Path, init_dir: Path | None = None
) -> None:
    """Runs the cell's method, a heuristic on the host, and writes the files of an allocation.

    A search keeps a journal in `out` while it runs: killed and started again, it goes on where it was.

    Args:
        experiment: The grid.
        cell: One of its cells.
        model_dir: The fetched model.
        calibration_dir: Its calibration.
        out: Folder of the cell.
        init_dir: Folder of the cell whose policy the search starts from, where the grid names one.
    """
    config, search, files = experiment.models[cell.model], experiment.grid.search, CellFiles(out)
    method = experiment.create(cell.method)
    weights, on_host = reads_weights(type(method)), not is_search(type(method))
    model_dir = stage(model_dir) if weights else model_dir
    inputs = _fitted_inputs(experiment, cell, model_dir, calibration_dir)
    policy: api.Policy = {}
    if init_dir is not None:
        policy, _ = schemas.POLICY.read(CellFiles(init_dir).policy)
        inputs["init"] = sha256(CellFiles(init_dir).policy)
    prunable = load_prunable(experiment, cell, model_dir, weights=weights, on_host=on_host)
    settings = step_settings(experiment, "allocate", cell)
    journal = FileJournal(files.journal, [settings, cell.path, config.batch_tokens, *inputs.values()])
    calibration = read_calibration(prunable, calibration_dir, grams=_needs_grams(experiment, cell))
    result = api.allocate(
        prunable, calibration, method,
        sparsity=float(cell.sparsity), granularity=cell.granularity, cut=cut_of(experiment, cell),
        budget=search.budget(), seed=cell.seed, fitness=experiment.fitness(cell.method),
        checkpoints=search.checkpoints, batch_tokens=config.batch_tokens, journal=journal, initial_policy=policy,
    )  # fmt: skip
    device = "cpu" if on_host else str(prunable.model.device)
    origin = provenance(inputs, seed=cell.seed, device=device)
    _write_allocation(files, cell, result, settings, origin)
    journal.remove()


def reuse_allocation(
    experiment: Experiment, cell: Cell, model_dir: Path, calibration_dir: Path, done: Path, out: Path
) -> None:
    """Takes the allocation of another cell whose search is this cell's too, instead of searching again.

    Args:
        experiment: The grid.
        cell: One of its cells.
        model_dir: The fetched model.
        calibration_dir: Its calibration.
        done: Folder of the other cell.
        out: Folder of the cell.

    Raises:
        ArtifactError: The other cell's search was another one, or one of its files was changed.
    """
    source, target = CellFiles(done), CellFiles(out)
    found = schemas.AllocationFile.read(source.allocation)
    inputs = _fitted_inputs(experiment, cell, model_dir, calibration_dir)
    same = {**found.cell.model_dump(), "method": cell.method} == cell.as_dict() and is_of(found.provenance, inputs)
    if not same or found.settings != step_settings(experiment, "allocate", cell):
        raise ArtifactError(f"{source.allocation} is not the search of {cell.path}. Allocate without --reuse.")
    if changed := [name for name, expected in found.files.items() if sha256(source.folder / name) != expected]:
        raise ArtifactError(f"{source.folder / changed[0]} was changed since its search. Allocate without --reuse.")
    for name in (*found.files, source.search_cost.name):
        with whole(target.folder / name) as partial:
            shutil.copyfile(source.folder / name, partial)
    found.model_copy(update={"cell": type(found.cell)(**cell.as_dict())}).write(target.allocation)


def apply(
    experiment: Experiment, cell: Cell, model_dir: Path, calibration_dir: Path, allocation_file: Path, out: Path
) -> None:
    """Turns an allocation into what stays of the model, and writes masks and updates into the cell's folder."""
    config, files, cut = experiment.models[cell.model], CellFiles(out), cut_of(experiment, cell)
    model_dir = stage(model_dir)
    inputs = _fitted_inputs(experiment, cell, model_dir, calibration_dir)
    prunable = load_prunable(experiment, cell, model_dir)
    found, allocation = read_allocation(allocation_file, prunable)
    check_cell(cell, found, allocation_file)
    settings = step_settings(experiment, "apply", cell)
    origin = provenance({**inputs, "allocation": sha256(allocation_file)}, settings=settings)
    calibration = read_calibration(prunable, calibration_dir, grams=_needs_grams(experiment, cell))
    masks = api.make_masks(
        prunable, calibration, found.pruning_problem, allocation, cut, batch_tokens=config.batch_tokens
    )
    schemas.UPDATES.write(files.updates, masks.updates, schemas.Origin(provenance=origin))
    meta = schemas.MasksOrigin(provenance=origin, problem_id=found.pruning_problem.problem_id)
    schemas.MASKS.write(files.masks, masks.kept, meta)


def evaluate(
    experiment: Experiment, cell: Cell, model_dir: Path, text_dirs: Sequence[Path], tasks_dir: Path | None,
    cut_dir: Path | None, out: Path,
) -> None:  # fmt: skip
    """Scores a cell's model and writes scores.json: perplexity on every test text, and lm-eval tasks.

    Where the cell is trained, its perplexity before that is measured too, on the first test text.

    Args:
        experiment: The grid.
        cell: One of its cells.
        model_dir: The fetched model.
        text_dirs: The fetched test texts, in the grid's order.
        tasks_dir: The fetched tasks; None for a grid without tasks.
        cut_dir: Folder of masks, updates and recovered weights; None for the dense model.
        out: scores.json.
    """
    inputs = score_digests(experiment, cell, tasks_dir, cut_dir)
    config, settings, model_dir = experiment.models[cell.model], experiment.grid.evaluation, stage(model_dir)
    inputs |= {"model": asset_digest(model_dir), **test_digests(experiment, text_dirs)}
    prunable, tokenizer = load_prunable(experiment, cell, model_dir), load_tokenizer(model_dir)
    removed, before = prune_by_files(prunable, experiment, cell, cut_dir), None
    with CostMeter() as cost:
        bos = place_bos(tokenizer, config.bos)
        measure = functools.partial(_perplexity, experiment, cell, prunable.model, bos)
        texts = read_test_texts(experiment, prunable, tokenizer, text_dirs, bos=bos)
        check_context(prunable.config, {"evaluation.context": settings.context})
        if experiment.recover(cell).wanted:
            before = measure(texts[0])
            load_recovered(prunable, experiment, cell, cut_dir)
        ppl, *further = map(measure, texts)
        tasks: dict[str, Any] = {}
        if experiment.tasks is not None and tasks_dir is not None:
            tasks = score_tasks(
                prunable.model, tokenizer, experiment.tasks, tasks_dir,
                **settings.of_tasks(), batch_tokens=config.batch_tokens, bos=bos,
            )  # fmt: skip
        cost.n_tokens = sum(found["n_tokens"] for found in (ppl, *further, before) if found)
    schemas.ScoresFile(
        cell=cell.as_dict(),
        **removed,
        ppl=ppl,
        ppl_further={found["text"]: found for found in further},
        ppl_before=before,
        tasks=tasks,
        cost=cost.as_dict(),
        settings=step_settings(experiment, "evaluate", cell),
        provenance=provenance(inputs, device=str(prunable.model.device)),
    ).write(out)


def _perplexity(experiment: Experiment, cell: Cell, model: Any, bos: str, text: ScoredText) -> dict[str, Any]:
    """Returns the entry of scores.json for one test text."""
    batch_tokens = experiment.models[cell.model].batch_tokens
    found = api.evaluate(model, text.windows, batch_tokens=batch_tokens, n_bytes=text.n_bytes)
    log.info("evaluate %s on %s: perplexity %.3f, stderr %s", cell.path, text.name, found["value"], found["stderr"])
    return {**found, "bos": bos, "text": text.name}


def cut_of(experiment: Experiment, cell: Cell) -> Cut:
    """Returns the cut that a cell's granularity and settings ask for."""
    name = cell.method
    return make_cut(
        cell.granularity,
        score=experiment.score(name),
        compensation=experiment.compensation(name),
        pruner=experiment.pruner(name),
        compensated_search=experiment.compensated_search(name),
    )


def _needs_grams(experiment: Experiment, cell: Cell) -> bool:
    return cell.granularity == "structured" and experiment.needs_grams(cell.method)


def _fitted_inputs(experiment: Experiment, cell: Cell, model_dir: Path, calibration_dir: Path) -> Digests:
    """The digests of what a cell is fitted to: its model, the calibration, and Gram matrices where it reads them."""
    model = asset_digest(model_dir)
    found = calibration_digests(experiment, cell.model, calibration_dir, grams=_needs_grams(experiment, cell))
    return {"model": model, **found}


def load_prunable(
    experiment: Experiment, of: str | Cell, folder: Path, *, weights: bool = True, on_host: bool = False
) -> PrunableModel:
    """Loads a model of the grid as its YAML, and the variant of a cell, say.

    Args:
        experiment: The grid.
        of: The model's name, or one of its cells.
        folder: Where it was fetched to.
        weights: False for the sizes alone.
        on_host: Load it on the CPU, whatever its YAML says.
    """
    config = experiment.model(of)
    if on_host:
        config = config.model_copy(update={"device": "cpu", "offload": False})
    model = load_model(folder, config) if weights else load_skeleton(folder)
    return PrunableModel(model, **config.units)


def write_calibration(files: CalibrationFiles, calibration: api.Calibration, origin: schemas.Provenance) -> None:
    """Writes the windows and statistics of a calibration."""
    arrays: dict[str, Any] = {name: ids.numpy().astype(np.int32) for name, ids in calibration.windows.items()}
    arrays |= {f"{name}{schemas.DENSE_LOSS}": loss for name, loss in calibration.dense_loss.items()}
    schemas.TOKENS.write(files.tokens, arrays, schemas.Origin(provenance=origin))
    meta = schemas.StatsOrigin(provenance=origin, n_tokens=calibration.statistics.n_tokens)
    if calibration.statistics.grams:
        schemas.GRAMS.write(files.grams, calibration.statistics.grams, schemas.Origin(provenance=origin))
    schemas.STATS.write(files.stats, calibration.statistics.to_arrays(), meta)


def read_calibration(prunable: PrunableModel, folder: Path, *, grams: bool = False) -> api.Calibration:
    """Reads a calibration folder, with its Gram matrices if asked for.

    Raises:
        ArtifactError: It is of another model, its Gram matrices are of another calibration, or a file is damaged.
    """
    files = CalibrationFiles(folder)
    arrays, meta = schemas.STATS.read(files.stats)
    tokens, _ = schemas.TOKENS.read(files.tokens)
    names = [name for name in tokens if not name.endswith(schemas.DENSE_LOSS)]
    windows = {name: torch.from_numpy(tokens[name].astype(np.int64)) for name in names}
    losses = {name: tokens[f"{name}{schemas.DENSE_LOSS}"] for name in names if name != "calibration"}
    if grams:
        check_grams(folder)
    pairs = schemas.GRAMS.read(files.grams)[0] if grams else None
    statistics = ModelStatistics.from_arrays(prunable, arrays, meta.n_tokens, source=files.stats, grams=pairs)
    return api.Calibration(api.Windows(**windows), losses, statistics)


def read_allocation(path: Path, prunable: PrunableModel) -> tuple[schemas.AllocationFile, Allocation]:
    """Reads an allocation, with the units beside it if the method chose them.

    Raises:
        ArtifactError: It, or the units, are damaged or of another model or search.
        BudgetError: It does not answer its problem.
    """
    found = schemas.AllocationFile.read(path)
    problem = found.pruning_problem
    if problem.decisions != prunable.problem(problem.target, problem.granularity).decisions:
        raise ArtifactError(
            f"{path} was made for another model, or with another min_keep, keep_blocks, align or attention_units. "
            "Allocate for this model."
        )
    allocation, units = found.allocation, CellFiles(path.parent).units
    if units.name in found.files:
        if not units.exists() or sha256(units) != found.files[units.name]:
            raise ArtifactError(f"{units} is not what the search beside it wrote. Allocate again.")
        allocation = dataclasses.replace(allocation, units=schemas.UNITS.read(units)[0])
    allocation.check(problem)
    return found, allocation


def prune_by_files(
    prunable: PrunableModel, experiment: Experiment, cell: Cell, cut_dir: Path | None, *, dense_shape: bool = False,
    recovered: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Prunes a dense model in place by a cell's masks and updates, and by its recovered weights where asked for.

    Returns:
        What was removed, as scores.json has it: nothing where cut_dir is None.
    """
    dense = prunable.model_params()
    summary = api.PruningSummary(0.0, dense, dense)
    if cut_dir is not None and not cell.is_dense:
        files, problem = CellFiles(cut_dir), prunable.problem(float(cell.sparsity), cell.granularity)
        updates, _ = schemas.UPDATES.read(files.updates)
        if recovered and experiment.recover(cell).wanted:
            updates |= schemas.UPDATES.read(files.recovered)[0]
        kept, origin = schemas.MASKS.read(files.masks)
        if origin.problem_id != problem.problem_id:
            raise ArtifactError(f"{files.masks} was made for other units, or another sparsity. Apply again.")
        masks = api.Masks(kept, updates)
        cut = cut_of(experiment, cell)
        summary = api.install(prunable, problem, masks, cut, dense_shape=dense_shape, source=files.masks)
    return summary.as_dict()


def load_recovered(prunable: PrunableModel, experiment: Experiment, cell: Cell, cut_dir: Path | None) -> None:
    """Puts a cell's recovered weights into its pruned model.

    Raises:
        ConfigError: The folder that holds them is not given.
        ArtifactError: They are missing, damaged or of another cut.
    """
    if cut_dir is None:
        raise ConfigError(f"{cell.path} is recovered in {experiment.file}: give --cut with the folder of its weights.")
    files = CellFiles(cut_dir)
    load_updates(prunable, schemas.UPDATES.read(files.recovered)[0], source=files.recovered)


def _write_allocation(
    files: CellFiles, cell: Cell, result: api.AllocationResult, settings: dict[str, Any], origin: schemas.Provenance
) -> None:
    """Writes the files of an allocation; allocation.json last, since its existence says that the cell is allocated."""
    written = [files.trace, files.answers]
    if result.policy:
        schemas.POLICY.write(files.policy, result.policy, schemas.Origin(provenance=origin))
        written.append(files.policy)
    if result.allocation.units is not None:
        schemas.UNITS.write(files.units, result.allocation.units, schemas.Origin(provenance=origin))
        written.append(files.units)
    schemas.TRACE.write(files.trace, result.trace)
    schemas.AnswersFile(points=tuple(result.answers), provenance=origin).write(files.answers)
    schemas.CostFile(**result.cost.as_dict(), provenance=origin).write(files.search_cost)
    problem = result.problem
    schemas.AllocationFile(
        cell=cell.as_dict(),
        problem={"granularity": problem.granularity, "target": problem.target, "decisions": problem.decisions},
        problem_id=problem.problem_id,
        keep=result.allocation.keep,
        block_sparsity=problem.sparsity_of(result.allocation.keep),
        files={path.name: sha256(path) for path in written},
        settings=settings,
        provenance=origin,
    ).write(files.allocation)
