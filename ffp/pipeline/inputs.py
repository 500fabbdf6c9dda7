"""What the steps of the workflow read: digests of what they were given, and windows of the fetched text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError
from ffp.measure.windows import later_windows, token_windows
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import check_token_ids
from ffp.store import schemas
from ffp.store.documents import read_documents
from ffp.store.files import crc32, digest, sha256
from ffp.store.layout import AssetFiles, CalibrationFiles, CellFiles


def asset_digest(folder: Path) -> str:
    """Returns the digest of a fetched model, text or set of tasks; ArtifactError if one of its files was changed."""
    files = AssetFiles(folder)
    manifest = schemas.AssetFile.read(files.manifest)
    for name, crc in manifest.crc32.items():
        if not (folder / name).is_file() or crc32(folder / name) != crc:
            raise ArtifactError(
                f"{folder / name} is missing, damaged or was edited since it was fetched. Delete "
                f"{files.manifest} and run again: it is fetched anew."
            )
    return manifest.digest


def calibration_digest(folder: Path) -> str:
    """Returns the digest of a calibration, by which results name it."""
    files = CalibrationFiles(folder)
    return digest([sha256(files.tokens), sha256(files.stats)])


def cut_digests(cell: Cell, folder: Path | None) -> dict[str, str | None]:
    """Returns the digests of a cell's masks and updates; None for those of the dense model."""
    if folder is None or cell.is_dense:
        return {"masks": None, "updates": None}
    return {"masks": sha256(CellFiles(folder).masks), "updates": sha256(CellFiles(folder).updates)}


def recovered_digest(experiment: Experiment, cell: Cell, folder: Path | None) -> dict[str, str]:
    """Returns the digest of a cell's recovered weights; nothing for cells without."""
    if folder is None or not experiment.recover(cell).wanted:
        return {}
    return {"recovered": sha256(CellFiles(folder).recovered)}


def text_windows(
    prunable: PrunableModel, tokenizer: Any, text_dir: Path, name: str, context: int, count: int, *, bos: str
) -> torch.Tensor:
    """Returns the windows of a text, of tokens that the model knows; bos: as token_windows takes it."""
    documents = read_documents(AssetFiles(text_dir).documents(name))
    windows = token_windows(tokenizer, documents, context=context, windows=count, name=f"{name} text", bos=bos)
    check_token_ids({name: windows}, prunable.model)
    return windows


def recovery_windows(
    experiment: Experiment, cell: Cell, prunable: PrunableModel, tokenizer: Any, text_dir: Path
) -> torch.Tensor:
    """Returns the windows that a cell's recovery trains on: of the calibration text, behind what calibration used.

    Raises:
        ConfigError: No document is left.
    """
    used, settings = experiment.grid.calibration, experiment.recover(cell)
    windows = later_windows(
        tokenizer, read_documents(AssetFiles(text_dir).documents("calibration")),
        used_tokens=used.windows * used.context, context=used.context,
        windows=max(1, settings.tokens // used.context), name="calibration text", bos=experiment.models[cell.model].bos,
    )  # fmt: skip
    check_token_ids({"calibration": windows}, prunable.model)
    return windows
