"""Entries by name: the current folder's, then the package's."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from ffp.config.catalog import KINDS, PACKAGED, Kind, entries, find_entry
from ffp.config.reading import read_part

CONFIG = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_the_repository_is_found_anywhere_and_can_be_read(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = entries(kind)
    assert list(found) == sorted(file.stem for file in (CONFIG / kind).glob("*.yaml"))
    for name, file in found.items():
        assert read_part(KINDS[kind], file) == read_part(KINDS[kind], CONFIG / kind / f"{name}.yaml")


def test_an_entry_of_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("config/models")
    folder.mkdir(parents=True)
    for name in ("mine", "opt-125m"):
        (folder / f"{name}.yaml").write_text("title: Mine\n")
    assert find_entry("models", "mine") == folder / "mine.yaml"
    assert find_entry("models", "opt-125m") == folder / "opt-125m.yaml"
    assert find_entry("models", "opt-1.3b") == PACKAGED / "models/opt-1.3b.yaml"
    assert find_entry("texts", "mine") is None
    assert find_entry("models", "../models/mine") is None


def test_every_kind_has_its_class() -> None:
    assert tuple(KINDS) == get_args(Kind)
