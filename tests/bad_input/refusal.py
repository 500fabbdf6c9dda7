"""How a bad input has to be refused: exit code 2 or 3, one line with the cause and the remedy, nothing written."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffp.cli import main

USER, ARTIFACT = 2, 3


@dataclass(frozen=True)
class Case:
    """One bad input. damage: makes it, in a folder that was sound; message: a pattern that the one line matches."""

    name: str
    damage: Callable[[Path], object]
    message: str
    code: int = USER
    command: tuple[str, ...] = ()


def ids(cases: Sequence[Case]) -> list[str]:
    return [case.name for case in cases]


def edit(file: str, **changes: Any) -> Callable[[Path], object]:
    """Set keys of a YAML file; "a__b" is key b of section a; None removes a key."""

    def damage(folder: Path) -> None:
        body = yaml.safe_load((folder / file).read_text())
        for name, value in changes.items():
            *sections, key = name.split("__")
            part = body
            for section in sections:
                part = part.setdefault(section, {})
            part.pop(key, None) if value is None else part.update({key: value})
        (folder / file).write_text(yaml.safe_dump(body))

    return damage


def write(file: str, content: str | bytes) -> Callable[[Path], object]:
    """Replace a file."""

    def damage(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change; empty lock files are no output."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def refused(case: Case, command: Sequence[str], folder: Path, patch: pytest.MonkeyPatch, capture: Any) -> str:
    """Damage the folder, run `ffp` there in this process, check how it refuses, and return the line that it prints."""
    case.damage(folder)
    patch.chdir(folder)
    patch.setattr(logging, "basicConfig", lambda **_: None)  # pytest's own handlers stay
    before = tree(folder)
    capture.readouterr()
    code = main([*(case.command or command)])
    printed = capture.readouterr()
    assert code == case.code, f"exit {code}: {printed.err}"
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("ffp") and len(lines[0]) < 500, lines[0]
    assert re.search(case.message, lines[0]), lines[0]
    assert not printed.out
    assert tree(folder) == before, "something was written"
    return lines[0]
