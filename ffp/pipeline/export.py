"""Writes pruned models: a folder in one of the formats, with model card and ffp.json, whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ffp
from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError, ConfigError
from ffp.models.card import model_card, remake_commands, run_command
from ffp.models.checkpoint import load_tokenizer
from ffp.models.empty_blocks import without_empty_blocks
from ffp.models.formats import DenseShape, Format, Saved
from ffp.models.prunable import PrunableModel
from ffp.pipeline.steps import load_prunable, prune_by_files
from ffp.store import schemas
from ffp.store.digests import asset_digest, cut_digests, recovered_digest
from ffp.store.files import check_new_folder, whole_folder
from ffp.store.layout import AssetFiles, CellFiles, ExportFiles, Layout
from ffp.store.provenance import provenance

log = logging.getLogger("ffp")


def export(
    experiment: Experiment, cell: Cell, model_dir: Path, cut_dir: Path, out: Path, *, format: Format
) -> Saved:  # fmt: skip
    """Writes a cell's model. Works on the CPU, in the model's dtype.

    Args:
        experiment: The grid.
        cell: One of its pruned cells.
        model_dir: The fetched model.
        cut_dir: Folder of the cell's masks, updates and recovered weights; scores there, and of the dense cell, go
            into the card.
        out: Folder to make.
        format: How to write it; single weights are zeros in any of them.

    Returns:
        What was written.

    Raises:
        ConfigError: The cell is the dense model, or the format cannot hold this model.
        ArtifactError: The model was not fetched, or the cell was not run.
    """
    if cell.is_dense:
        raise ConfigError(f"cell {cell.path} is the model itself: nothing was removed. Give a pruned cell.")
    check_new_folder(out, overwrite=False)
    _check_run(experiment, cell, model_dir, CellFiles(cut_dir))
    inputs = {**cut_digests(experiment, cell, cut_dir), **recovered_digest(experiment, cell, cut_dir)}
    single = cell.granularity != "structured"
    format = fitting(format, zeros=single)
    tokenizer = load_tokenizer(model_dir)
    format.check(load_prunable(experiment, cell, model_dir, weights=False), tokenizer)
    prunable = load_prunable(experiment, cell, model_dir, on_host=True)
    zeros = format.zeros or single
    removed = prune_by_files(prunable, experiment, cell, cut_dir, dense_shape=zeros, recovered=True)
    origin = provenance({"model": asset_digest(model_dir), **inputs})
    manifest = schemas.ExportFile(cell=cell.as_dict(), **removed, provenance=origin)

    def card(saved: Saved) -> str:
        return _card(experiment, cell, CellFiles(cut_dir), prunable, removed, origin, format, saved)

    return write_export(prunable, tokenizer, format, out, card=card, manifest=manifest, parent=model_dir)


def _check_run(experiment: Experiment, cell: Cell, model_dir: Path, files: CellFiles) -> None:
    """Raises ArtifactError where a file that the export reads was never made."""
    missing = next((file for file in (AssetFiles(model_dir).manifest, *files.cut) if not file.exists()), None)
    if missing:
        command = run_command(str(experiment.file), str(Layout.from_grid(experiment.grid).cell(cell).scores))
        raise ArtifactError(f"cell {cell.path} was not run: there is no {missing}. Run `{command}` first.")


def write_export(
    prunable: PrunableModel, tokenizer: Any, format: Format, out: Path, *, card: Callable[[Saved], str],
    manifest: schemas.ExportFile, parent: Path | None, overwrite: bool = False,
) -> Saved:  # fmt: skip
    """Writes a pruned model with its card and ffp.json, whole or not at all.

    Args:
        prunable: The model, pruned in place.
        tokenizer: Its tokenizer.
        format: How to write it.
        out: Folder to make.
        card: Makes the model card.
        manifest: What ffp.json holds.
        parent: Folder of the dense model; None if there is none.
        overwrite: Replace a folder that ffp wrote.
    """
    with whole_folder(out, overwrite=overwrite) as folder:
        files = ExportFiles(folder)
        with without_empty_blocks(prunable):
            saved = format.save(prunable, tokenizer, folder, parent=parent)
        files.card.write_text(card(saved), encoding="utf-8")
        manifest.write(files.manifest)
    return saved


def fitting(format: Format, *, zeros: bool) -> Format:
    """Returns the format for a model; with zeros in the dense shapes, `transformers` is `dense-shape`."""
    return DenseShape() if zeros and format.name == "transformers" else format


def _card(
    experiment: Experiment, cell: Cell, files: CellFiles, prunable: PrunableModel, removed: Mapping[str, Any],
    origin: schemas.Provenance, format: Format, saved: Saved,
) -> str:  # fmt: skip
    """The model card, with the scores that are there."""
    grid, structured = experiment.grid, cell.granularity == "structured"
    layout, dense = Layout.from_grid(grid), Cell(cell.model, cell.granularity, "0.00", "dense", 0)
    scores = {"dense": layout.cell(dense).scores, "pruned": files.scores}
    found = {name: schemas.ScoresFile.read_if_there(path) for name, path in scores.items()}
    inputs = ("masks", "updates", "recovered", "model")
    if (body := found["pruned"]) and any(body.provenance.get(key) != origin.get(key) for key in inputs):
        log.warning(
            "%s is of other masks or weights: the model card has no scores. Evaluate the cell again.", files.scores
        )
        found["pruned"] = None
    if all(found.values()) and len({body.windows_of("ppl") for body in found.values() if body}) > 1:
        log.warning(
            "%s is of another text than %s: the model card has no scores of the parent.", *map(scores.get, scores)
        )
        found["dense"] = None
    calibration, asked, pruned = grid.calibration, experiment.recover(cell), found["pruned"]
    return model_card(
        experiment.model(cell),
        cell,
        method=experiment.method(cell.method),
        units=prunable.describe_units(),
        ranking=experiment.score(cell.method) if structured else experiment.pruner(cell.method),
        compensation=experiment.compensation(cell.method),
        recovery=asked.describe() if asked.wanted else "none",
        before=pruned.ppl_before.model_dump() if pruned and pruned.ppl_before else None,
        calibration=f"{calibration.windows} windows of {calibration.context} tokens; text: {experiment.text.title}",
        removed=removed,
        scores={name: body.model_dump() if body else None for name, body in found.items()},
        commands=remake_commands(
            grid_file=str(experiment.file), cell_path=cell.path, scores_file=str(layout.cell(cell).scores),
            format=format.words(), commit=origin.commit, dirty=origin.dirty,
        ),
        version=ffp.__version__,
        saved=saved,
    )  # fmt: skip
