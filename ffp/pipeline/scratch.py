"""Copies of fetched models on a disk of the node, so that the jobs of a node read the shared disk once.

Snakemake's storage plug-ins copy the files that a rule names. Rules name a model by its asset.json, which stands for
the whole folder, so that they would copy that file alone.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ffp.assets.build import check_space, locked
from ffp.assets.fetch import safe_name
from ffp.core.errors import AssetError, ConfigError
from ffp.store.files import crc32, swap_folder
from ffp.store.layout import AssetFiles, named_folder
from ffp.store.schemas import AssetFile

LOG = logging.getLogger("ffp")
VARIABLE = "FFP_SCRATCH"


def stage(model_dir: Path) -> Path:
    """Returns the folder to read a fetched model from: a copy below $FFP_SCRATCH, or the folder itself.

    The first job of a node makes the copy, whole or not at all, and others wait for it. Copies have the digest of the
    asset in their name; no copy is ever removed here. Where none can be made, one warning says why.

    Args:
        model_dir: The fetched model, which asset.json describes.

    Raises:
        ArtifactError: The model has no asset.json, or a damaged one.
    """
    try:
        if (named := named_folder(VARIABLE)) is None:
            return model_dir
    except ConfigError as error:
        LOG.warning("no copy of %s: %s Reading the shared folder.", model_dir, error)
        return model_dir
    manifest = AssetFile.read(AssetFiles(model_dir).manifest)
    folder = named / f"ffp-{os.getuid()}" / "models"
    copy = folder / f"{Path(model_dir).absolute().name}-{manifest.digest}"
    try:
        _make_private(folder.parent)
        with locked(folder / f".{copy.name}.lock"):
            if not AssetFiles(copy).manifest.is_file():
                _copy(model_dir, manifest, copy)
        return copy
    except (OSError, AssetError) as error:
        reason = str(error.strerror or error) if isinstance(error, OSError) else str(error)
        LOG.warning("no copy of %s in %s: %s. Reading the shared folder.", model_dir, folder, reason.rstrip("."))
        return model_dir


def _make_private(folder: Path) -> None:
    """Makes a folder for this user alone; AssetError if somebody else made it, who could put other weights there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise AssetError(f"{folder} is not this user's alone. Remove it, or name another {VARIABLE}.")


def _copy(model_dir: Path, manifest: AssetFile, copy: Path) -> None:
    """Copies a model and checks the copy. What a killed process left of the same copy is removed first."""
    partial = copy.with_name(f".{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    check_space(copy.parent, sum((model_dir / name).stat().st_size for name in manifest.crc32), str(model_dir))
    LOG.info("copying %s to %s", model_dir, copy)
    try:
        partial.mkdir()
        for name, expected in manifest.crc32.items():
            safe_name(name)
            shutil.copyfile(model_dir / name, partial / name)
            if crc32(partial / name) != expected:
                raise AssetError(f"{model_dir / name} or its copy is damaged")
        shutil.copyfile(AssetFiles(model_dir).manifest, AssetFiles(partial).manifest)
        swap_folder(partial, copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if others := [path.name for path in copy.parent.glob(f"{copy.name.rpartition('-')[0]}-*") if path != copy]:
        LOG.info("%s also holds %s, of other versions, which nobody removes for you", copy.parent, ", ".join(others))
