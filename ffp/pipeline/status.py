"""How far a grid is, from its files alone: asked from another shell, or after a crash."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ffp.config import Cell, Experiment
from ffp.pipeline import locks
from ffp.report.collect import Record, read_cell, read_logs
from ffp.store.files import sealed_lines

FRESH_S = 60.0  # a search that measured nothing for so long, and for ten of its evaluations, has stopped
ORDER = ("done", "searching", "stopped", "failed", "skipped", "missing")


@dataclass(frozen=True)
class Search:
    """A search that has a journal and no answer yet. tokens, total: forwarded and allowed; age_s: since its last one.

    rate: tokens a second, of the forwards alone; best: the reward of the last progress line in its log, "" without.
    """

    evaluations: int
    tokens: int
    total: int
    rate: float
    age_s: float
    running: bool
    best: str

    def __str__(self) -> str:
        share, left = self.tokens / self.total, max(0, self.total - self.tokens) / max(self.rate, 1e-9)
        text = f"{self.evaluations} evaluations, {self.tokens:,} of {self.total:,} tokens ({share:.0%})"
        text += f", best {self.best}" if self.best else ""
        text += f", {self.rate:,.0f} tokens/s, {duration(left)} left, measured {duration(self.age_s)} ago"
        return text if self.running else f"{text}; goes on from there when started again"


def lines(project: Experiment) -> Iterator[str]:
    """Totals, then a line for each search that has begun and each cell that failed, then what is left."""
    root = Path(project.grid.results) / "cells"
    records = [read_cell(c, root / c.path, logs=read_logs(c), trace=False) for c in project.cells()]
    states, details = Counter[str](), []
    for record in records:
        state = record.row["status"]
        search = read_search(project, record, root) if state == "missing" and record.allocation is None else None
        if search:
            state = "searching" if search.running else "stopped"
        if search or state in ("failed", "skipped"):
            details.append(f"{state:9}  {record.cell.path}  {search or record.row['reason']}")
        states[state] += 1
    others = [f"{states[s]} {'not begun' if s == 'missing' else s}" for s in ORDER if states[s] and s != "done"]
    holder = locks.holder()
    run = f"a run is at work here (process {holder})" if holder else "no run of the workflow is at work here"
    done = f"{states['done']} of {len(records)} cells done ({states['done'] / len(records):.0%})"
    yield f"{', '.join([done, *others])}; {run}."
    yield from details
    yield from _work_left(records)


def read_search(project: Experiment, record: Record, root: Path) -> Search | None:
    """A search's progress from its journal; None where it has none.

    A gradient is taken for one on the budget's number of windows, which is what the methods ask for.
    """
    journal, grid = root / record.cell.path / "journal.txt", project.grid
    if not journal.is_file():
        return None
    age = max(0.0, time.time() - journal.stat().st_mtime)
    budget = grid.search.budget()
    seconds, windows = [0.0], 0
    for line in sealed_lines(journal)[1:]:
        if not line["key"].startswith("selection:"):
            windows += 3 * budget.windows if line["key"].startswith("gates:") else len(line["values"])
            seconds.append(line["s"])
    tokens = windows * grid.search.context
    best = re.findall(r"\bbest (\d\S*?),", record.logs.get("allocate", ""))
    return Search(
        evaluations=len(seconds) - 1,
        tokens=tokens,
        total=budget.tokens(grid.search.context),
        rate=tokens / max(sum(seconds), 1e-9),
        age_s=age,
        running=age <= max(FRESH_S, 10 * max(seconds)),
        best=best[-1] if best else "",
    )


def _work_left(records: list[Record]) -> Iterator[str]:
    """The seconds that cells of the same method took, times those that are missing."""
    took: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.done:
            took[record.cell.method].append(record.row.get("search_s", 0.0) + record.row["evaluation_s"])
    waiting = [record.cell for record in records if record.row["status"] == "missing"]
    known: list[Cell] = [cell for cell in waiting if took[cell.method]]
    if known:
        left = sum(statistics.fmean(took[cell.method]) for cell in known)
        text = f"left: about {duration(left)} of work for {len(known)} cells, model loading not counted"
        others = len(waiting) - len(known)
        yield f"{text}; {others} more are of methods without a finished cell." if others else f"{text}."


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: 42 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
