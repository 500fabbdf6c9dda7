"""The ARC data set as the hub has it, with made-up documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hub import Hub

NAMES, SPLITS = ("ARC-Easy", "ARC-Challenge"), ("train", "validation", "test")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def documents(word: str, count: int = 3) -> list[dict[str, Any]]:
    """Documents whose questions begin with a word."""
    choices = {"text": ["one", "two"], "label": ["A", "B"]}
    return [
        {"id": f"{i}", "question": f"{word} {i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(count)
    ]


def push(hub: Hub, folder: Path, word: str, patch: pytest.MonkeyPatch) -> str:
    """Makes the data set a commit of the hub, where the datasets library of this process then looks; its hash."""
    import datasets

    patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)  # it was read when the library was imported
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in NAMES:
        for split in SPLITS:
            write_rows(folder / name / f"{split}.jsonl", documents(f"{word} {name} {split}"))
    splits = "".join(f"  - split: {split}\n    path: NAME/{split}.jsonl\n" for split in SPLITS)
    configs = "".join(f"- config_name: {name}\n  data_files:\n{splits.replace('NAME', name)}" for name in NAMES)
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return hub.push("allenai/ai2_arc", folder)
