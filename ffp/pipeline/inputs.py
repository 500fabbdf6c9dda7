"""What the steps of the workflow read: windows of the fetched texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffp.config import Cell, Experiment
from ffp.measure.spelled import predicted_bytes
from ffp.measure.windows import later_windows, token_windows
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import check_token_ids
from ffp.store.documents import read_documents
from ffp.store.layout import AssetFiles


def text_windows(
    prunable: PrunableModel, tokenizer: Any, text_dir: Path, name: str, context: int, count: int, *, bos: str,
    called: str = "",
) -> torch.Tensor:  # fmt: skip
    """Returns the windows of a split of a text, of tokens that the model knows; called: what an error calls it.

    bos: as token_windows takes it.
    """
    documents, called = read_documents(AssetFiles(text_dir).documents(name)), called or f"{name} text"
    windows = token_windows(tokenizer, documents, context=context, windows=count, name=called, bos=bos)
    check_token_ids({name: windows}, prunable.model)
    return windows


@dataclass(frozen=True)
class ScoredText:
    """A test text as a model reads it.

    Attributes:
        name: Its name in the grid.
        windows: Token ids, (n, context) int64.
        n_bytes: Bytes that the predicted tokens spell; None where the tokenizer does not say it.
    """

    name: str
    windows: torch.Tensor
    n_bytes: int | None


def read_test_texts(
    experiment: Experiment, prunable: PrunableModel, tokenizer: Any, text_dirs: Sequence[Path], *, bos: str
) -> list[ScoredText]:
    """Returns the grid's test texts, all tokenised before the first one costs a forward; text_dirs: their folders."""
    context, found = experiment.grid.evaluation.context, []
    for name, folder in zip(experiment.grid.test_texts, text_dirs, strict=True):
        windows = scored_windows(experiment, prunable, tokenizer, name, folder, bos=bos)
        n_bytes = count_test_bytes(tokenizer, folder, context, len(windows), bos=bos)
        found.append(ScoredText(name, windows, n_bytes))
    return found


def scored_windows(
    experiment: Experiment, prunable: PrunableModel, tokenizer: Any, name: str, text_dir: Path, *, bos: str
) -> torch.Tensor:
    """Returns the windows of a test text.

    Args:
        experiment: The grid.
        prunable: The model.
        tokenizer: Its tokenizer.
        name: One of the grid's test texts.
        text_dir: Where it was fetched to.
        bos: As token_windows takes it.

    Raises:
        FfpError: It has too few windows, or tokens that the model lacks.
    """
    asked = experiment.grid.evaluation
    called = "test text" if len(experiment.grid.test_texts) == 1 else f"test text {name}"
    return text_windows(prunable, tokenizer, text_dir, "test", asked.context, asked.windows, bos=bos, called=called)


def fitted_windows(
    experiment: Experiment, model: str, prunable: PrunableModel, tokenizer: Any, text_dir: Path
) -> dict[str, torch.Tensor]:
    """Returns the windows that methods are fitted to: "calibration", "search" and "selection".

    Args:
        experiment: The grid.
        model: Name of the model.
        prunable: Its modules, with or without weights.
        tokenizer: Its tokenizer.
        text_dir: The fetched calibration text.

    Raises:
        FfpError: A split has too few windows, or tokens that the model lacks.
    """
    calibration, search, bos = experiment.grid.calibration, experiment.grid.search, experiment.models[model].bos
    sizes = {
        "calibration": (calibration.context, calibration.windows),
        "search": (search.context, search.windows),
        "selection": (search.context, search.selection_windows),
    }
    return {name: text_windows(prunable, tokenizer, text_dir, name, *size, bos=bos) for name, size in sizes.items()}


def count_test_bytes(tokenizer: Any, text_dir: Path, context: int, windows: int, *, bos: str) -> int | None:
    """Returns the bytes that the predicted tokens of a fetched test text spell; see predicted_bytes."""
    documents = read_documents(AssetFiles(text_dir).documents("test"))
    return predicted_bytes(tokenizer, documents, context=context, windows=windows, bos=bos)


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
