"""Runs a reference's algorithm, writes its result, and compares the result with the reference's own file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffp.core.errors import ArtifactError, ConfigError, FfpError
from ffp.models.prunable import PrunableModel
from ffp.pruning.unstructured import pack_masks
from ffp.store.files import whole, write_json
from ffp.store.provenance import provenance
from tests.parity.flap import flap
from tests.parity.settings import Settings
from tests.parity.weights import prune_as_published

SCHEMA = "ffp/parity/1"
TOLERANCE = 1e-4  # share of mask entries that may differ
COMPARED = ("heads_kept", "ffn_kept", "masks")


class ParityError(FfpError):
    """Our result differs from the reference's. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Result:
    """What a reference's algorithm gave.

    Attributes:
        kept: FLAP's kept units, or under "masks" the numbers of kept and of all weights by parameter name.
        bits: Packed keep masks by parameter name; empty for FLAP.
    """

    kept: dict[str, Any]
    bits: Mapping[str, npt.NDArray[np.uint8]]


def run(prunable: PrunableModel, tokens: torch.Tensor, settings: Settings) -> Result:
    """Prunes as the reference does, one window at a time.

    Args:
        prunable: Pruned in place, except by FLAP, which only says which units would stay.
        tokens: Calibration token ids, (windows, context).
        settings: The reference's options.

    Returns:
        What the algorithm keeps.
    """
    if settings.method == "flap":
        return Result(flap(prunable, tokens, settings), {})
    masks = prune_as_published(prunable, tokens, settings)
    counts = {f"{path}.weight": {"kept": int(mask.sum()), "numel": mask.numel()} for path, mask in masks.items()}
    return Result({"masks": counts}, pack_masks(masks))


def write(out: Path, result: Result, settings: Settings, comparison: Mapping[str, Any] | None) -> None:
    """Writes parity.json into `out`, and masks.npz (packed bits by parameter name) where single weights went."""
    if result.bits:
        with whole(out / "masks.npz") as partial, partial.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **dict(result.bits))
    body = {"settings": vars(settings), **result.kept, "comparison": comparison}
    write_json(out / "parity.json", SCHEMA, {**body, "provenance": provenance().model_dump(mode="json")})


def check(result: Result, reference: Path, settings: Settings) -> dict[str, Any]:
    """Compares a result with a reference's file.

    Args:
        result: Ours.
        reference: An .npz of packed keep bits (numpy.packbits of the row-major mask, by parameter name), or a .json
            with kept units or counts: an object, or lists of objects by method, of which the one with these settings
            is taken.
        settings: The options behind `result`.

    Returns:
        What the comparison found.

    Raises:
        ParityError: Counts or units differ, or more mask entries than TOLERANCE allows.
        ArtifactError: The file cannot be read, or belongs to another model.
        ConfigError: The file has no result with these settings.
    """
    if reference.suffix == ".npz":
        return _check_bits(result, reference)
    expected = _entry(reference, settings)
    for key in COMPARED:
        if key in expected and key in result.kept and result.kept[key] != expected[key]:
            raise ParityError(f"{key} differs from {reference}: {_first_difference(result.kept[key], expected[key])}.")
    return {"reference": reference.name, "equal": True}


def _check_bits(result: Result, reference: Path) -> dict[str, Any]:
    try:
        with np.load(reference, allow_pickle=False) as file:
            expected = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{reference} cannot be read: {error}. Give an .npz of packed masks.") from error
    if set(expected) != set(result.bits) or any(expected[k].shape != result.bits[k].shape for k in expected):
        raise ArtifactError(f"{reference} holds masks of other parameters than this model has. Give the same model.")
    differing, total = 0, 0
    for name, bits in result.bits.items():
        ours, theirs = (int(np.unpackbits(b).sum()) for b in (bits, expected[name]))
        if ours != theirs:
            raise ParityError(f"{name} keeps {ours} weights, {reference.name} keeps {theirs}.")
        differing += int(np.unpackbits(bits ^ expected[name]).sum())
        total += result.kept["masks"][name]["numel"]
    if differing > TOLERANCE * total:
        raise ParityError(f"{differing} of {total} mask entries differ from {reference.name}, over {TOLERANCE:g}.")
    return {"reference": reference.name, "equal_counts": True, "differing": differing, "entries": total}


def _entry(reference: Path, settings: Settings) -> dict[str, Any]:
    """The reference's result with these settings; the file may name OWL's options by the paper's letters."""
    try:
        body = json.loads(reference.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{reference} cannot be read: {error}. Give a JSON of kept units.") from error
    entries = body.get(settings.method, body) if isinstance(body, dict) else body
    for entry in entries if isinstance(entries, list) else [entries]:
        named = {**vars(settings), "M": settings.outlier_multiple, "lam": settings.strength}
        if isinstance(entry, dict) and all(entry.get(key, value) == value for key, value in named.items()):
            return entry
    raise ConfigError(f"{reference} has no result of {settings.method} with these settings. Give those of the file.")


def _first_difference(ours: Any, theirs: Any) -> str:
    """Where two nested results differ first, in a few words."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next((k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)), "")
        return f"{key}: {ours.get(key)} here, {theirs.get(key)} there"
    rows = [(i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if len(ours) != len(theirs) or not rows:
        return f"{len(ours)} blocks here, {len(theirs)} there"
    block, a, b = rows[0]
    odd = sorted(set(a) ^ set(b))
    return f"block {block} keeps {len(a)} here, {len(b)} there, {len(odd)} of them in one only"


def read_tokens(path: Path, name: str = "calibration") -> torch.Tensor:
    """Reads token windows, (windows, context) int64, from .npy or from the tensor `name` of a .safetensors file.

    Raises:
        ArtifactError: The file cannot be read, or holds no integers of that shape.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            array = load_file(path)[name]
        else:
            array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Give token ids as .npy or .safetensors.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise ArtifactError(f"{path} holds no integers of shape (windows, context). Give token ids.")
    return torch.from_numpy(array.astype(np.int64))
