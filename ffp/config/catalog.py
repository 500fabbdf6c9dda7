"""Models, texts and tasks by name: those of the current folder, then those that the package brings.

The package's entries are the files of `config/` in the repository. `entries`, beside this module, is a link to that
folder, and an installed package has copies of the files in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ffp.config.assets import ModelConfig, TasksConfig, TextConfig

Kind = Literal["models", "texts", "tasks"]
Entry = ModelConfig | TextConfig | TasksConfig
KINDS: Mapping[Kind, type[Entry]] = {"models": ModelConfig, "texts": TextConfig, "tasks": TasksConfig}
PACKAGED = (Path(__file__).parent / "entries").resolve()


def entries(kind: Kind) -> dict[str, Path]:
    """Returns the YAML file of each entry by its name, in alphabetical order.

    An entry of the current folder, `config/KIND/NAME.yaml`, hides the packaged one of the same name.
    """
    files = (file for folder in (PACKAGED, Path("config")) for file in (folder / kind).glob("*.yaml"))
    found = {file.stem: file for file in files}
    return {name: found[name] for name in sorted(found)}


def find_entry(kind: Kind, name: str) -> Path | None:
    """Returns the YAML file of the entry with that name; None if there is none."""
    return entries(kind).get(name)
