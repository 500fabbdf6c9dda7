"""The step of the workflow that trains a pruned model: it reads masks and updates and writes new weights."""

from __future__ import annotations

from pathlib import Path

from ffp import api
from ffp.config import Cell, Experiment
from ffp.core.errors import ConfigError
from ffp.models.checkpoint import load_model, load_tokenizer
from ffp.pipeline.checks import check_context, check_not_offloaded
from ffp.pipeline.inputs import recovery_windows
from ffp.pipeline.scratch import stage
from ffp.pipeline.steps import load_prunable, prune_by_files
from ffp.store import schemas
from ffp.store.digests import asset_digest, cut_digests
from ffp.store.identity import step_settings
from ffp.store.layout import CellFiles
from ffp.store.provenance import provenance
from ffp.store.training import FileTraining


def recover(
    experiment: Experiment, cell: Cell, model_dir: Path, text_dir: Path, cut_dir: Path | None, out: Path
) -> None:
    """Trains a cell's model and writes its new weights, the loss of each step and the cost.

    The training is kept in `out` while it runs: killed and started again, it goes on where it was.

    Args:
        experiment: The grid.
        cell: One of its cells, which asks for recovery.
        model_dir: The fetched model.
        text_dir: The fetched text, of which the calibration split is read.
        cut_dir: Folder of masks and updates; None for the dense model.
        out: Folder of the cell.

    Raises:
        ConfigError: The cell asks for no recovery, the model is offloaded, or no document is left to train on.
    """
    config, files, asked = experiment.models[cell.model], CellFiles(out), experiment.recover(cell)
    if not asked.wanted:
        raise ConfigError(
            f"{cell.path} asks for no recovery in {experiment.file}. Give recover: lora, or leave it out."
        )
    check_not_offloaded(config, cell.model)
    model_dir = stage(model_dir)
    inputs = {
        "model": asset_digest(model_dir),
        "text": asset_digest(text_dir),
        **cut_digests(experiment, cell, cut_dir),
    }
    prunable = load_prunable(experiment, cell, model_dir)
    windows = recovery_windows(experiment, cell, prunable, load_tokenizer(model_dir), text_dir)
    check_context(prunable.config, {"calibration.context": windows.shape[1]})
    teacher = load_model(model_dir, config) if asked.loss == "kl" else None
    prune_by_files(prunable, experiment, cell, cut_dir)
    settings = step_settings(experiment, "recover", cell)
    state = FileTraining(files.training, [settings, cell.path, config.batch_tokens, *inputs.values()])
    found = api.recover(
        prunable, windows, asked, seed=cell.seed, batch_tokens=config.batch_tokens, teacher=teacher, state=state
    )
    origin = provenance(inputs, seed=cell.seed, device=str(prunable.model.device), settings=settings)
    schemas.CURVE.write(files.curve, found.curve)
    schemas.CostFile(**found.cost.as_dict(), provenance=origin).write(files.recover_cost)
    schemas.UPDATES.write(files.recovered, found.updates, schemas.Origin(provenance=origin))
    state.remove()
