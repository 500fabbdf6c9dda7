"""Task data: the stock lm-eval columns, whatever format the documents come in."""

import json
from pathlib import Path
from typing import Any

import pytest

from ffp.assets import fetch_tasks
from ffp.config import TasksConfig, TextConfig, WheelSource, read_part
from ffp.core.errors import AssetError


def task_config(stock: str, source: dict[str, Any], reader: str) -> TasksConfig:
    task = {"stock": stock, "source": source, "reader": reader}
    return TasksConfig.model_validate({"title": "t", "version": "1", "tasks": {stock: task}})


def request(**doc: object) -> str:
    """Two requests of one document, as oe-eval has one per choice."""
    return "".join(json.dumps({"doc": doc, "idx": i}) + "\n" for i in range(2))


def task_rows(tmp_path: Path, stock: str, reader: str, body: str) -> list[dict[str, Any]]:
    (tmp_path / "in.jsonl").write_text(body)
    out = tmp_path / "data" / "tasks" / "t"
    fetch_tasks(task_config(stock, {"kind": "local", "path": str(tmp_path / "in.jsonl")}, reader), out)
    return [json.loads(line) for line in (out / f"{stock}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("stock", "column"), [("arc_easy", "question"), ("arc_challenge", "question"), ("openbookqa", "question_stem")]
)
def test_requests_become_the_stock_columns(tmp_path: Path, stock: str, column: str) -> None:
    body = request(id="7", query="Question: Which?\nAnswer:", choices=["one", "two", "three"], gold=1)
    choices = {"text": ["one", "two", "three"], "label": ["A", "B", "C"]}
    expected = {"id": "7", column: "Which?", "choices": choices, "answerKey": "B"}
    assert task_rows(tmp_path, stock, "olmo-requests", body) == [expected]


def test_boolq_answers_become_labels_and_other_tasks_stay(tmp_path: Path) -> None:
    body = '{"question": "q", "passage": "p", "answer": true}\n{"question": "q", "passage": "p", "answer": false}\n'
    assert [row["label"] for row in task_rows(tmp_path, "boolq", "jsonl", body)] == [1, 0]
    assert task_rows(tmp_path, "piqa", "jsonl", '{"goal": "g", "label": 1}\n') == [{"goal": "g", "label": 1}]


def test_arrow_streams_are_read_as_they_are(tmp_path: Path) -> None:
    import pyarrow

    rows = [
        {"goal": "g\u2028", "sol1": "a", "sol2": "b", "label": 1},
        {"goal": "h", "sol1": "c", "sol2": "d", "label": 0},
    ]
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(tmp_path / "in.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    out = tmp_path / "data" / "tasks" / "t"
    fetch_tasks(task_config("piqa", {"kind": "local", "path": str(tmp_path / "in.arrow")}, "arrow"), out)
    lines = (out / "piqa.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line) for line in lines] == rows


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("stock", "body", "message"),
    [
        ("hellaswag", request(id="1"), "'hellaswag' cannot be read from olmo-requests"),
        ("arc_easy", request(id="1", query="What?", choices=["a"], gold=0), "query of unknown form: 'What?'"),
        ("arc_easy", request(id="1", query="Question: x\nAnswer:", choices=["a"], gold=1), "gold 1 of 1 choices"),
        ("arc_easy", request(id="1", choices=["a"], gold=1), "no column 'query'"),
        ("arc_easy", "", "has no document"),
        ("arc_easy", "{", "cannot be read as olmo-requests"),
    ],
)
def test_unfit_tasks_are_refused(tmp_path: Path, stock: str, body: str, message: str) -> None:
    with pytest.raises(AssetError) as fault:
        task_rows(tmp_path, stock, "olmo-requests", body)
    assert message in str(fault.value) and "\n" not in str(fault.value)
    assert list((tmp_path / "data" / "tasks").iterdir()) == []


def test_shipped_configurations_name_members_of_known_wheels() -> None:
    root = Path(__file__).parents[2] / "config"
    for path in (root / "tasks").glob("*.yaml"):
        for task in read_part(TasksConfig, path).tasks.values():
            assert isinstance(task.source, WheelSource) and len(task.source.members) == 1
    for path in (root / "texts").glob("*.yaml"):
        assert read_part(TextConfig, path).sources
