"""Makes the documents of stock lm-eval tasks, with the stock columns, from local data."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ffp.assets.build import build
from ffp.assets.fetch import identity_of
from ffp.assets.rows import Row, rows_of
from ffp.config import TaskConfig, TasksConfig
from ffp.core.errors import AssetError
from ffp.store.layout import AssetFiles, downloads_of

LOG = logging.getLogger("ffp")
CONVERSION = "1"
LABELS = "ABCDEFGHIJ"


def fetch_tasks(config: TasksConfig, out: Path) -> None:
    """Makes `out` a folder with one {task}.jsonl per task, each line with the columns of the stock lm-eval task.

    Documents keep the order of their source. See build() for what is kept and what is made again.

    Raises:
        AssetError: A source cannot be fetched, or has no documents of that task.
    """
    downloads = downloads_of(out)

    def make(into: Path) -> None:
        scratch = into / ".source"
        for name, task in config.tasks.items():
            rows = rows_of(task.source, task.reader, scratch=scratch, downloads=downloads)
            count = 0
            with AssetFiles(into).documents(name).open("w", encoding="utf-8") as stream:
                for row in rows:
                    stream.write(json.dumps(_stock_row(task, row), ensure_ascii=False) + "\n")
                    count += 1
            if not count:
                raise AssetError(f"task {name!r} has no document. Correct its source in the tasks file.")
            LOG.info("task %s: %d documents", name, count)
        shutil.rmtree(scratch, ignore_errors=True)

    sources = [task.source for task in config.tasks.values()]
    build(out, kind="tasks", source=identity_of(config, sources, CONVERSION), make=make)


def _stock_row(task: TaskConfig, row: Row) -> Row:
    """A source's row with the columns of the stock task."""
    if task.reader == "olmo-requests":
        if task.stock not in _FROM_REQUESTS:
            raise AssetError(
                f"stock task {task.stock!r} cannot be read from olmo-requests: only {', '.join(_FROM_REQUESTS)} can. "
                "Use its arrow, jsonl or parquet files."
            )
        return _FROM_REQUESTS[task.stock](row)
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


def _arc(row: Row) -> Row:
    return _from_request(row, "question")


def _openbookqa(row: Row) -> Row:
    return _from_request(row, "question_stem")


_FROM_REQUESTS: Mapping[str, Callable[[Row], Row]] = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": _openbookqa,
}
