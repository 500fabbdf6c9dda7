"""What `ffp verify` says of the scores and documents of tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ffp.assets import fetch_tasks
from ffp.assets.splits import normalised, shingles
from ffp.config import TasksConfig
from ffp.pipeline.leaks import task_leaks
from ffp.pipeline.verify_tasks import task_faults
from ffp.store.layout import AssetFiles
from ffp.store.task_scores import TaskScores

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def task(value: float, n: int = 8, **more: Any) -> dict[str, Any]:
    stderr = math.sqrt(value * (1 - value) / (n - 1))
    figure = {"value": value, "stderr": stderr, **more}
    return {"version": 1, "hash": "h", "n": n, "n_total": 9, "metrics": {"exact_match,strict-match": figure}}


def group(value: float, **tasks: dict[str, Any]) -> TaskScores:
    figure = {"value": value, "stderr": 0.1, "counts": False}
    total = {"n": sum(t["n"] for t in tasks.values()), "n_total": 99}
    body = {"version": 1, "hash": "h", **total, "metrics": {"exact_match,strict-match": figure}, "subtasks": tasks}
    return TaskScores.model_validate(body)


def faults(scores: TaskScores | dict[str, Any]) -> list[str]:
    return list(task_faults("here", TaskScores.model_validate(scores)))


def test_shares_of_documents_agree_with_their_number_by_every_filter() -> None:
    assert faults(task(0.25)) == []
    assert "here.exact_match,strict-match" in faults(task(0.3))[0]
    assert faults(task(0.3, counts=False)) == [], "no share of whole documents"
    assert "outside 1..9" in faults(task(0.25, n=12))[0]


def test_a_group_is_the_mean_of_its_tasks_by_document_or_by_task() -> None:
    assert faults(group((2 + 1) / 12, a=task(0.25, 8), b=task(0.25, 4))) == []
    assert faults(group(0.25 * 8 / 12 + 0.5 * 4 / 12, a=task(0.25, 8), b=task(0.5, 4))) == []
    assert faults(group(0.375, a=task(0.25, 8), b=task(0.5, 4))) == []
    assert "here.exact_match,strict-match is 0.4" in faults(group(0.4, a=task(0.25, 8), b=task(0.5, 4)))[0]
    assert "here.b.exact_match" in faults(group(0.25, a=task(0.25), b=task(0.3)))[0]
    lost = group(0.25, a=task(0.25)).model_copy(update={"n": 9})
    assert "here.n is 9, expected 8" in faults(lost.model_dump())[0]


@pytest.mark.parametrize(("split", "leaks"), [("test", True), ("train", False)])
def test_scored_documents_of_a_data_set_are_compared_with_the_texts(split: str, leaks: bool, tmp_path: Path) -> None:
    for name in ("train", "test"):
        text = WORDS if name == split else "nothing of the kind"
        rows = [{"question": text if i == 2 else f"{name} {i}", "answer": f"#### {i}"} for i in range(6)]
        (tmp_path / "gsm" / "main").mkdir(parents=True, exist_ok=True)
        (tmp_path / "gsm" / "main" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "local", "path": str(tmp_path / "gsm")}
    config = {"gsm8k": {"stock": "gsm8k", "source": source, "reader": "dataset"}}
    tasks = TasksConfig.model_validate({"title": "t", "version": "1", "tasks": config})
    files = AssetFiles(tmp_path / "data" / "tasks" / "t")
    fetch_tasks(tasks, files.folder)
    found = list(task_leaks(tasks, files, set(shingles(normalised(WORDS)))))
    assert len(found) == leaks
    assert not leaks or "--test.arrow: 1 documents, the first in line 3, share a run of 13 words" in found[0]
