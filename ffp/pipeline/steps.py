"""The steps of the pipeline, from files to files: calibrate, allocate, apply, evaluate. One rule, one function."""

from __future__ import annotations

import dataclasses
import logging
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffp.allocators import registry
from ffp.allocators.base import Learner, SearchResult
from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError, ConfigError
from ffp.core.problem import Allocation, Decision, PruningProblem
from ffp.measure.calibration import BlockInfluence, collect
from ffp.measure.cost import CostMeter
from ffp.measure.journal import Journal
from ffp.measure.loss import window_losses
from ffp.measure.perplexity import perplexity
from ffp.measure.reward import SlicedReward, Text
from ffp.measure.tasks import score_tasks
from ffp.measure.windows import read_documents, token_windows
from ffp.models.card import model_card
from ffp.models.checkpoint import load_model, load_skeleton, load_tokenizer, save_pruned, save_stock
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import SlicedModel
from ffp.pruning.cuts import cut_of
from ffp.pruning.masked import MaskedModel
from ffp.pruning.statistics import Calibration, from_arrays, to_arrays
from ffp.store.files import (
    crc32,
    digest,
    read_json,
    read_tensors,
    sha256,
    whole_folder,
    write_json,
    write_table,
    write_tensors,
)
from ffp.store.provenance import provenance

log = logging.getLogger("ffp")
ASSET, TOKENS, STATS, COST = "ffp/asset/1", "ffp/tokens/1", "ffp/stats/1", "ffp/cost/1"
ALLOCATION, POLICY, SCORES = "ffp/allocation/2", "ffp/policy/1", "ffp/scores/1"
MASKS, UPDATES, EXPORT = "ffp/masks/1", "ffp/updates/1", "ffp/export/1"
INFLUENCE = "block_influence"  # beside the moments, in stats.safetensors
TRACE_COLUMNS = ["evaluation", "tokens", "stage", "sparsity", "windows", "reward", "best", "keep"]


def calibrate(project: Experiment, model_name: str, model_dir: Path, text_dir: Path, out: Path) -> None:
    """Tokenise the calibration, search and selection texts, collect input moments, measure the dense model's losses.

    Writes tokens.safetensors, stats.safetensors and calibrate.cost.json into `out`: once per model, for every cell.
    """
    config, grid = project.models[model_name], project.grid
    inputs: dict[str, Any] = {"model": _asset_digest(model_dir), "text": _asset_digest(text_dir)}
    model, tokenizer = load_model(model_dir, config), load_tokenizer(model_dir)
    prunable = PrunableModel(model, min_keep=config.min_keep, align=config.align)
    sizes = {
        "calibration": (grid.calibration.context, grid.calibration.windows),
        "search": (grid.search.context, grid.search.windows),
        "selection": (grid.search.context, grid.search.selection_windows),
    }
    with CostMeter() as cost:
        windows = {
            name: token_windows(
                tokenizer, read_documents(text_dir / f"{name}.jsonl"), context=context, windows=n, name=f"{name} text"
            )
            for name, (context, n) in sizes.items()
        }
        with BlockInfluence(prunable) as influence:
            moments = collect(prunable, windows["calibration"], batch_tokens=config.batch_tokens)
        arrays = {name: ids.numpy().astype(np.int32) for name, ids in windows.items()}
        for name in ("search", "selection"):
            log.info("calibrate: dense loss of the %s text", name)
            arrays[f"{name}.dense_loss"] = _dense_losses(model, windows[name], config.batch_tokens)
        cost.n_tokens = sum(ids.numel() for ids in windows.values())
    origin = provenance(
        device=str(model.device),
        **inputs,
        settings=project.settings("calibrate", Cell(model_name, "structured", "0.00", "dense", 0)),
    )
    write_tensors(out / "tokens.safetensors", TOKENS, arrays, origin)
    write_tensors(
        out / "stats.safetensors",
        STATS,
        {**to_arrays(moments), INFLUENCE: influence.value()},
        {**origin, "n_tokens": cost.n_tokens},
    )
    write_json(out / "calibrate.cost.json", COST, {**cost.as_dict(), "provenance": origin})


def allocate(
    project: Experiment, cell: Cell, model_dir: Path, calibration_dir: Path, out: Path, init_dir: Path | None = None
) -> None:
    """Run the cell's method and write allocation.json, trace.parquet, search.cost.json (and policy.safetensors).

    init_dir: folder of the cell whose policy the search starts from, where the grid names one. A search keeps a journal
    in `out` while it runs: killed and started again, it goes on where it was.
    """
    config = project.models[cell.model]
    method = registry.find(project.method(cell.method).name)
    allocator = registry.create(method.name, project.parameters(cell.method))
    inputs: dict[str, Any] = {"model": _asset_digest(model_dir), "calibration": _calibration_digest(calibration_dir)}
    if init_dir is not None and isinstance(allocator, Learner):
        allocator = allocator.started_from(read_tensors(init_dir / "policy.safetensors", POLICY)[0])
        inputs["init"] = sha256(init_dir / "policy.safetensors")
    load = load_model if method.needs else load_skeleton
    prunable = PrunableModel(load(model_dir, config), min_keep=config.min_keep, align=config.align)
    problem = prunable.problem(float(cell.sparsity), cell.granularity)
    settings = project.settings("allocate", cell)
    origin = provenance(
        seed=cell.seed,
        device=str(prunable.model.device) if method.is_search else "cpu",
        **inputs,
    )
    stats = open_calibration(prunable, calibration_dir, cell.granularity) if method.needs else None
    journal, reward = out / "journal.txt", None
    if method.is_search and stats is not None:
        identity = [settings, cell.path, problem.problem_id, *inputs.values()]
        candidates = cut_of(project, cell).candidates(stats)
        reward = open_reward(
            candidates, calibration_dir, config.batch_tokens, Journal(journal, identity),
            fitness=project.fitness(cell.method),
        )  # fmt: skip
    with CostMeter() as cost:
        result = allocator.allocate(
            problem, stats=stats, reward=reward, budget=project.grid.search.budget(), seed=cell.seed
        )
        if reward is not None:
            cost.evaluations, cost.selection_tokens = reward.evaluations, reward.selection_tokens
            cost.n_tokens, cost.earlier_s = reward.spent_tokens + reward.selection_tokens, reward.earlier_s
    result.allocation.check(problem)
    _write_search(out, cell, problem, result, cost, settings, origin)
    journal.unlink(missing_ok=True)


def apply(
    project: Experiment, cell: Cell, model_dir: Path, calibration_dir: Path, allocation_file: Path, out: Path
) -> None:
    """Turn an allocation into what stays of the model, and compensate or update it where the cell asks for that.

    Writes masks.safetensors and updates.safetensors into the cell's folder `out`; ffp/cuts.py says what is in them.
    """
    config = project.models[cell.model]
    inputs: dict[str, Any] = {"model": _asset_digest(model_dir), "calibration": _calibration_digest(calibration_dir)}
    prunable = PrunableModel(load_model(model_dir, config), min_keep=config.min_keep, align=config.align)
    problem, allocation = read_allocation(allocation_file, prunable)
    stats = open_calibration(prunable, calibration_dir, cell.granularity)
    origin = provenance(
        **inputs,
        allocation=sha256(allocation_file),
        settings=project.settings("apply", cell),
    )
    windows = read_windows(calibration_dir, "calibration")
    masks, updates = cut_of(project, cell).make(problem, allocation, stats, windows, config.batch_tokens)
    write_tensors(out / "updates.safetensors", UPDATES, updates, {"provenance": origin})
    meta = {"problem_id": problem.problem_id, "provenance": origin}
    write_tensors(out / "masks.safetensors", MASKS, masks, meta)


def evaluate(
    project: Experiment,
    cell: Cell,
    model_dir: Path,
    text_dir: Path,
    tasks_dir: Path | None,
    cut_dir: Path | None,
    out: Path,
) -> None:
    """Score a cell's model in memory, physically cut, and write scores.json: perplexity on test text, lm-eval tasks.

    cut_dir: folder of masks.safetensors and updates.safetensors; None for the dense model.
    """
    config, settings = project.models[cell.model], project.grid.evaluation
    inputs: dict[str, Any] = {
        "model": _asset_digest(model_dir),
        "text": _asset_digest(text_dir),
        "tasks": _asset_digest(tasks_dir) if tasks_dir else None,
    }
    model, tokenizer = load_model(model_dir, config), load_tokenizer(model_dir)
    prunable = PrunableModel(model, min_keep=config.min_keep, align=config.align)
    facts = cut_model(prunable, project, cell, cut_dir)
    with CostMeter() as cost:
        documents = read_documents(text_dir / "test.jsonl")
        windows = token_windows(
            tokenizer, documents, context=settings.context, windows=settings.windows, name="test text"
        )
        ppl = perplexity(model, windows, batch_tokens=config.batch_tokens)
        log.info("evaluate %s: perplexity %.3f, stderr %s", cell.path, ppl["value"], ppl["stderr"])
        tasks: dict[str, Any] = {}
        if project.tasks is not None and tasks_dir is not None:
            tasks = score_tasks(
                model, tokenizer, project.tasks, tasks_dir,
                documents=settings.documents, seed=settings.seed, batch_tokens=config.batch_tokens,
            )  # fmt: skip
        cost.n_tokens = ppl["n_tokens"]
    body = {
        "status": "done",
        "reason": None,
        "cell": _cell_body(cell),
        **facts,
        "ppl": ppl,
        "tasks": tasks,
        "cost": cost.as_dict(),
        "settings": project.settings("evaluate", cell),
        "provenance": provenance(
            device=str(model.device),
            **inputs,
            masks=sha256(cut_dir / "masks.safetensors") if cut_dir else None,
            updates=sha256(cut_dir / "updates.safetensors") if cut_dir else None,
        ),
    }
    write_json(out, SCORES, body)


def export(
    project: Experiment, cell: Cell, model_dir: Path, cut_dir: Path, out: Path, *, dense_shape: bool = False
) -> None:
    """Write a cell's model as a checkpoint folder `out`, whole or not at all: weights, tokenizer, model card.

    cut_dir: folder of the cell's masks and updates; scores.json there, and of the dense cell, go into the card.
    dense_shape: zeros in the parent's shapes instead of smaller weights, which single weights have in any case. Works
    on the CPU, in the model's dtype.
    """
    config = project.models[cell.model].model_copy(update={"device": "cpu", "offload": False})
    if cell.method == "dense":
        raise ConfigError(f"cell {cell.path} is the model itself: nothing was removed. Give a pruned cell.")
    dense_shape |= cell.granularity != "structured"
    prunable = PrunableModel(load_model(model_dir, config), min_keep=config.min_keep, align=config.align)
    with whole_folder(out) as folder:
        facts = cut_model(prunable, project, cell, cut_dir, dense_shape=dense_shape)
        if dense_shape:
            save_stock(prunable.model, folder)
        else:
            save_pruned(prunable, folder)
        load_tokenizer(model_dir).save_pretrained(folder)
        origin = provenance(
            model=_asset_digest(model_dir),
            masks=sha256(cut_dir / "masks.safetensors"),
            updates=sha256(cut_dir / "updates.safetensors"),
        )
        facts["provenance"] = origin
        dense_dir = Path(project.grid.results, "cells", cell.model, cell.granularity, "s0.00/dense/seed0")
        files = {"dense": dense_dir / "scores.json", "pruned": cut_dir / "scores.json"}
        scores = {name: read_json(file, SCORES) if file.exists() else None for name, file in files.items()}
        card = model_card(project, cell, dense_shape=dense_shape, facts=facts, scores=scores)
        (folder / "README.md").write_text(card)
        write_json(folder / "ffp.json", EXPORT, {"cell": _cell_body(cell), **facts})


def cut_model(
    prunable: PrunableModel, project: Experiment, cell: Cell, cut_dir: Path | None, *, dense_shape: bool = False
) -> dict[str, Any]:
    """Prune a dense model in place by a cell's masks and updates, and say how much that removed.

    cut_dir: None leaves the model dense. dense_shape: zeros instead of smaller weights. Returns block_sparsity (of the
    units' parameters), model_sparsity, and params {dense, kept}, the added biases of a compensation included; removed
    single weights are not kept.
    """
    dense = kept_params = prunable.model_params()
    sparsity = 0.0
    if cut_dir is not None:
        problem = prunable.problem(float(cell.sparsity), cell.granularity)
        masks, _ = read_tensors(cut_dir / "masks.safetensors", MASKS)
        updates, _ = read_tensors(cut_dir / "updates.safetensors", UPDATES)
        sparsity, kept_params = cut_of(project, cell).install(
            prunable, problem, masks, updates, cut_dir / "masks.safetensors", dense_shape=dense_shape
        )
    return {
        "block_sparsity": sparsity,
        "model_sparsity": 1 - kept_params / dense,
        "params": {"dense": dense, "kept": kept_params},
    }


def read_allocation(path: Path, prunable: PrunableModel) -> tuple[PruningProblem, Allocation]:
    """An allocation.json and its problem; ArtifactError or BudgetError unless it is whole and of this model."""
    body = read_json(path, ALLOCATION)
    try:
        facts = body["problem"]
        units = tuple(Decision(**each) for each in facts["decisions"])
        problem = PruningProblem(units, facts["target"], facts["granularity"])
        allocation = Allocation(body["problem_id"], tuple(operator.index(keep) for keep in body["keep"]))
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} lacks or misshapes {error}. Delete it and allocate again.") from error
    if units != prunable.problem(problem.target, problem.granularity).units:
        raise ArtifactError(f"{path} is of another model or min_keep than the one given. Allocate for this model.")
    allocation.check(problem)
    return problem, allocation


def _write_search(
    out: Path,
    cell: Cell,
    problem: PruningProblem,
    result: SearchResult,
    cost: CostMeter,
    settings: dict[str, Any],
    origin: dict[str, Any],
) -> None:
    """The files of an allocation; allocation.json last, since its existence says that the cell is allocated."""
    if result.policy:
        write_tensors(out / "policy.safetensors", POLICY, result.policy, origin)
    write_table(out / "trace.parquet", list(result.trace), TRACE_COLUMNS)
    write_json(out / "search.cost.json", COST, {**cost.as_dict(), "provenance": origin})
    decisions = [dataclasses.asdict(each) for each in problem.decisions]
    files = ["trace.parquet", *(["policy.safetensors"] if result.policy else [])]
    body = {
        "status": "done",
        "reason": None,
        "cell": _cell_body(cell),
        "problem": {"granularity": problem.granularity, "target": problem.target, "decisions": decisions},
        "problem_id": problem.problem_id,
        "keep": list(result.allocation.keep),
        "block_sparsity": problem.sparsity_of(result.allocation.keep),
        "files": {name: sha256(out / name) for name in files},
        "settings": settings,
        "provenance": origin,
    }
    write_json(out / "allocation.json", ALLOCATION, body)


def _cell_body(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model,
        "granularity": cell.granularity,
        "sparsity": float(cell.sparsity),
        "method": cell.method,
        "seed": cell.seed,
    }


def open_calibration(prunable: PrunableModel, folder: Path, granularity: str = "structured") -> Calibration:
    """The statistics of a calibration folder, checked against the model."""
    arrays, meta = read_tensors(folder / "stats.safetensors", STATS)
    moments = from_arrays(prunable, arrays, folder / "stats.safetensors")
    influence = arrays.get(INFLUENCE)
    return Calibration(prunable, moments, meta["n_tokens"], granularity=granularity, influence=influence)


def open_reward(
    candidates: SlicedModel | MaskedModel, folder: Path, batch_tokens: int, journal: Journal, *, fitness: str = "ppl"
) -> SlicedReward:
    """The evaluator over a calibration folder's search and selection texts."""
    arrays, _ = read_tensors(folder / "tokens.safetensors", TOKENS)
    search, selection = (
        Text(name, read_windows(folder, name), arrays[f"{name}.dense_loss"]) for name in ("search", "selection")
    )
    return SlicedReward(candidates, search, selection, batch_tokens=batch_tokens, journal=journal, fitness=fitness)


def read_windows(folder: Path, name: str) -> torch.Tensor:
    """A text's token windows, (n, context) int64."""
    arrays, _ = read_tensors(folder / "tokens.safetensors", TOKENS)
    return torch.from_numpy(arrays[name].astype(np.int64))


@torch.no_grad()
def _dense_losses(model: Any, windows: torch.Tensor, batch_tokens: int) -> Any:
    """Mean loss of the dense model on each window, nats per predicted token, (n,) float64."""
    batch = max(1, batch_tokens // windows.shape[1])
    parts = [
        window_losses(model, windows[i : i + batch].to(model.device)).cpu().numpy()
        for i in range(0, len(windows), batch)
    ]
    return np.concatenate(parts)


def _asset_digest(folder: Path) -> str:
    """The digest of a fetched model, text or set of tasks; ArtifactError if one of its files was harmed since."""
    facts = read_json(folder / "asset.json", ASSET)
    for name, crc in facts.get("crc32", {}).items():
        if not (folder / name).is_file() or crc32(folder / name) != crc:
            raise ArtifactError(
                f"{folder / name} is missing, damaged or was edited since it was fetched. Delete "
                f"{folder / 'asset.json'} and run again: it is fetched anew."
            )
    return str(facts["digest"])


def _calibration_digest(folder: Path) -> str:
    return digest([sha256(folder / name) for name in ("tokens.safetensors", "stats.safetensors")])
