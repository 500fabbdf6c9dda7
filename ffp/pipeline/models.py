"""The model that `ffp prune` is given: a name of config/models, a folder or .gguf file, or a repository of the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ffp.assets.fetch import resolve_revision
from ffp.assets.model import fetch_model, model_files
from ffp.config import HubSource, LocalSource, ModelConfig, read_part
from ffp.config.catalog import entries, find_entry
from ffp.config.faults import first_fault
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean
from ffp.models.families import family_of
from ffp.store.files import digest, sha256
from ffp.store.layout import AssetFiles, Layout, expanded
from ffp.store.schemas import AssetFile

log = logging.getLogger("ffp")
HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class OpenedModel:
    """A model on this machine.

    Attributes:
        name: What it is called on the command line, at a fixed revision.
        folder: Its files.
        config: Where it came from and how it runs.
        digest: Of its files.
    """

    name: str
    folder: Path
    config: ModelConfig
    digest: str


def open_model(name: str, *, data: Path, changes: Mapping[str, Any]) -> OpenedModel:
    """Returns a model, fetched where it has to be, and checked.

    Args:
        name: A name of config/models, a folder of save_pretrained, a .gguf file, or ORG/NAME[@REVISION] of the hub,
            looked for in this order. A branch, a tag or no revision is resolved to its commit.
        data: Folder to fetch into.
        changes: Fields of ModelConfig that differ from the model's own.

    Raises:
        ConfigError: It is none of these.
        AssetError: It cannot be fetched, or is no complete model.
    """
    if entry := find_entry("models", name):
        config = read_part(ModelConfig, entry)
        return _fetched(name, entry.stem, config, data, changes)
    path, hub = expanded(name), HUB.fullmatch(name)
    if path.suffix == ".gguf" and path.is_file():
        config = ModelConfig(source=LocalSource(kind="local", path=str(path)), title=path.stem)
        return _fetched(name, f"{path.stem}-{digest(str(path.absolute()))}", config, data, changes)
    if path.is_dir() and name.strip():
        config = ModelConfig(source=LocalSource(kind="local", path=str(path)), title=path.absolute().name)
        files = {file: sha256(path / file) for file in model_files(path, check_family=family_of)}
        return OpenedModel(name, path, _changed(config, changes), digest(files))
    if not name.strip() or path.is_absolute() or name.startswith((".", "~")) or path.suffix == ".gguf":
        what = "a file that is no .gguf" if path.is_file() else "no folder and no file"
        raise ConfigError(
            f"model {name!r} is {what}. Give a folder, a .gguf file, ORG/NAME of the hub, or a name of "
            "`ffp list models`."
        )
    if hub is None:
        known = did_you_mean(name, entries("models"))
        raise ConfigError(f"model {name!r} is no folder, no ORG/NAME of the hub, and no known model: {known}")
    commit = resolve_revision(hub["repo"], hub["revision"])
    log.info("%s is at commit %s", hub["repo"], commit)
    source = HubSource(kind="hub", repo=hub["repo"], revision=commit)
    config = ModelConfig(source=source, title=hub["repo"].rpartition("/")[2])
    return _fetched(f"{hub['repo']}@{commit}", f"{hub['repo'].replace('/', '--')}@{commit}", config, data, changes)


def _fetched(name: str, folder: str, config: ModelConfig, data: Path, changes: Mapping[str, Any]) -> OpenedModel:
    """A model in a folder of `data`; changes that are not accepted are refused before it is fetched."""
    files, changed = Layout(data, data).model(folder).folder, _changed(config, changes)
    fetch_model(config, files, check_family=family_of)
    return OpenedModel(name, files, changed, AssetFile.read(AssetFiles(files).manifest).digest)


def _changed(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """The configuration with other values, checked."""
    try:
        return ModelConfig.model_validate({**dict(config), **changes})
    except ValidationError as error:
        raise ConfigError(first_fault(error, ModelConfig)) from error
