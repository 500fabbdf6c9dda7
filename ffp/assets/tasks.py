"""Makes the documents of stock lm-eval tasks, with the stock columns, from local data."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from ffp.assets.build import build
from ffp.assets.fetch import identity_of, local_files
from ffp.assets.rows import Row, rows_of
from ffp.assets.stock import check_tasks
from ffp.assets.task_data import Recorder, answered_by, build_stock, leaves, look_at, stock_objects
from ffp.config import LocalSource, TaskConfig, TasksConfig
from ffp.core.errors import AssetError
from ffp.store.documents import json_lines
from ffp.store.files import visible_files
from ffp.store.layout import AssetFiles, downloads_of, expanded
from ffp.store.schemas import DatasetsFile

LOG = logging.getLogger("ffp")
CONVERSION = "1"
LABELS = "ABCDEFGHIJ"
# Stock tasks that are read from the requests of oe-eval, with the column of their question.
QUESTIONS = {"arc_easy": "question", "arc_challenge": "question", "openbookqa": "question_stem"}


def fetch_tasks(config: TasksConfig, out: Path) -> None:
    """Makes `out` a folder with the documents of tasks.

    A task of files has {task}.jsonl, each line with the columns of the stock lm-eval task, in the order of its source,
    and {task}.fewshot.jsonl where it has a source of examples. The data sets of other tasks are Arrow files, which
    datasets.json names. See build() for what is kept and what is made again.

    Raises:
        AssetError: A source cannot be fetched, or has no documents of that task.
        ConfigError: lm-eval is not installed, or ships no such task.
    """
    check_tasks(config)
    downloads = downloads_of(out)

    def files_of(source: LocalSource) -> list[Path]:
        return _tree(source) if source in config.data_sets else local_files(source)

    def make(into: Path) -> None:
        scratch, files = into / ".source", AssetFiles(into)
        scratch.mkdir()
        for name, task in config.tasks.items():
            if task.has_files:
                _write_rows(name, task, task.source, files.documents(name), scratch, downloads)
            if task.fewshot:
                _write_rows(name, task, task.fewshot, files.examples(name), scratch, downloads)
                _check_apart(name, files)
        _fetch_datasets(config, files, scratch, downloads)
        shutil.rmtree(scratch, ignore_errors=True)

    build(out, kind="tasks", source=identity_of(config, config.sources, CONVERSION, files_of), make=make)


def _write_rows(name: str, task: TaskConfig, source: Any, path: Path, scratch: Path, downloads: Path) -> None:
    """Writes the documents of a source as JSON lines."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for row in rows_of(source, task.reader, scratch=scratch, downloads=downloads):
            stream.write(json.dumps(_stock_row(task, row), ensure_ascii=False) + "\n")
            count += 1
    if not count:
        raise AssetError(f"task {name!r} has no document. Correct its source in the tasks file.")
    LOG.info("task %s: %d documents", name, count)


def _fetch_datasets(config: TasksConfig, files: AssetFiles, scratch: Path, downloads: Path) -> None:
    """Builds the tasks that ask for data sets, and keeps what they look at."""
    asking = {name: task for name, task in config.tasks.items() if not task.has_files}
    if not asking:
        return
    manager, found = build_stock(config, scratch), {}
    for name, task in asking.items():
        recorder = Recorder(task, downloads)
        with answered_by(recorder):
            built = leaves(stock_objects(manager, name, task))
            for one in built:
                look_at(one)
        found[name] = recorder.save(files, built)
        if task.revision and len(recorder.commits) > 1:
            raise AssetError(f"task {name!r} has several data sets, so that no one revision fits. Leave it out.")
    DatasetsFile(tasks=found).write(files.datasets)


def _tree(source: LocalSource) -> list[Path]:
    """The files of a local data set, those of its configurations too."""
    path = expanded(source.path)
    found = visible_files(path, nested=True) if path.is_dir() else []
    return found or local_files(source)


def _check_apart(name: str, files: AssetFiles) -> None:
    """Raises AssetError where a solved example is a document that is scored."""
    shared = len(set(json_lines(files.documents(name))) & set(json_lines(files.examples(name))))
    if shared:
        raise AssetError(f"task {name!r}: {shared} of its examples are scored documents. Give fewshot other documents.")


def _stock_row(task: TaskConfig, row: Row) -> Row:
    """A source's row with the columns of the stock task."""
    if task.reader == "olmo-requests":
        if task.stock not in QUESTIONS:
            raise AssetError(
                f"stock task {task.stock!r} cannot be read from olmo-requests: only {', '.join(QUESTIONS)} can. "
                "Use its arrow, jsonl or parquet files."
            )
        return _from_request(row, QUESTIONS[task.stock])
    if task.stock == "boolq" and "label" not in row:
        return {**row, "label": int(bool(_column(row, "answer")))}
    return row


def _column(row: Row, name: str) -> object:
    if name not in row:
        raise AssetError(f"a document has no column {name!r}, only {', '.join(sorted(row))}. Correct stock or source.")
    return row[name]


def _from_request(row: Row, question: str) -> Row:
    r"""The document behind an oe-eval request: the question out of "Question: ...\nAnswer:", and lettered choices.

    Original letters (some documents number theirs) are not kept: the stock tasks use them only to find the answer.
    """
    query, gold = str(_column(row, "query")), _column(row, "gold")
    choices = list(row.get("choices") or ())
    head, tail = "Question: ", "\nAnswer:"
    if not (query.startswith(head) and query.endswith(tail)):
        raise AssetError(f"document {row.get('id')!r} has a query of unknown form: {query[:60]!r}. Correct the source.")
    if not (isinstance(gold, int) and 0 <= gold < len(choices) <= len(LABELS)):
        raise AssetError(f"document {row.get('id')!r} has gold {gold!r} of {len(choices)} choices. Correct the source.")
    return {
        "id": str(_column(row, "id")),
        question: query.removeprefix(head).removesuffix(tail),
        "choices": {"text": choices, "label": list(LABELS[: len(choices)])},
        "answerKey": LABELS[gold],
    }
