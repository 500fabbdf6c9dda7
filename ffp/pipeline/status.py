"""Shows how far a grid is, from its files alone: from another shell, or after a crash."""

import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ffp.config import Experiment
from ffp.core.plain import duration
from ffp.pipeline import locks
from ffp.report.collect import Record, read_grid_cell
from ffp.report.tables import text_headings
from ffp.store.journal import measurements
from ffp.store.layout import Layout

FRESH_S = 60.0  # a search that measured nothing for so long, and for ten of its evaluations, is quiet
TO_SCORE = "to score again"
ORDER = ("searching", "quiet", "failed", "skipped", TO_SCORE, "missing")


@dataclass(frozen=True)
class Progress:
    """A search that has a journal and no allocation yet."""

    evaluations: int  # on the search text
    tokens: int  # of the search text, forwarded so far
    total: int  # tokens that the search may forward
    rate: float  # tokens a second, of the measurements alone
    age_s: float  # since the last measurement
    quiet: bool  # whether that is long ago: it stopped, or its node's clock is behind
    best: str  # the best reward that its log names; empty without one

    def __str__(self) -> str:
        share, left = self.tokens / self.total, max(0, self.total - self.tokens) / max(self.rate, 1e-9)
        text = f"{self.evaluations} evaluations, {self.tokens:,} of {self.total:,} tokens ({share:.0%})"
        text += f", best {self.best}" if self.best else ""
        text += f", {self.rate:,.0f} tokens/s, {duration(left)} left"
        if self.quiet:
            return f"{text}, no measurement for {duration(self.age_s)}; if it no longer runs, a run goes on from there"
        return f"{text}, measured {duration(self.age_s)} ago"


def lines(experiment: Experiment) -> Iterator[str]:
    """Yields the totals, a line for each search under way and each failed cell, and the work that is left."""
    records = [read_grid_cell(experiment, cell) for cell in experiment.cells()]
    states, details = Counter[str](), []
    for record in records:
        state = record.row["status"]
        waiting = state == "missing" and record.allocation is None
        search = read_progress(experiment, record) if waiting else None
        if search:
            state = "quiet" if search.quiet else "searching"
        if search or state in ("failed", "skipped"):
            details.append(f"{state:9}  {record.cell.path}  {search or record.row['reason']}")
        states[TO_SCORE if state == "missing" and record.perplexities else state] += 1
    others = [f"{states[state]} {'not begun' if state == 'missing' else state}" for state in ORDER if states[state]]
    holder = locks.holder()
    run = f"a run is at work here (process {holder})" if holder else "no run of the workflow is at work here"
    done = f"{states['done']} of {len(records)} cells done ({states['done'] / len(records):.0%})"
    yield f"{', '.join([done, *others])}; {run}."
    yield from details
    yield from _texts_left(experiment, records)
    yield from _work_left(records)


def read_progress(experiment: Experiment, record: Record) -> Progress | None:
    """Returns the progress of a search from its journal; None if it has none."""
    journal, grid = Layout.from_grid(experiment.grid).cell(record.cell).journal, experiment.grid
    if not journal.is_file():
        return None
    age_s = max(0.0, time.time() - journal.stat().st_mtime)
    # The selection text is no part of the budget. A journal of an older version does not say its tokens.
    found = [line for line in measurements(journal) if not line["key"].startswith("selection:")]
    tokens, seconds = sum(line.get("tokens", 0) for line in found), [line["s"] for line in found]
    total, rate = grid.search.budget().tokens(grid.search.context), tokens / max(sum(seconds), 1e-9)
    quiet = age_s > max(FRESH_S, 10 * max(seconds, default=0.0))
    best = re.findall(r"\bbest (\d\S*?),", record.logs.get("allocate", ""))
    return Progress(len(found), tokens, total, rate, age_s, quiet, best[-1] if best else "")


def _texts_left(experiment: Experiment, records: list[Record]) -> Iterator[str]:
    """Yields a line for each test text that scored cells lack, as after it was added to the grid."""
    for name, key in zip(experiment.grid.test_texts, text_headings(experiment), strict=True):
        if lacking := sum(key not in record.perplexities for record in records if record.perplexities):
            yield f"{lacking} scored cells have no perplexity on {name} yet; the next run evaluates them again."


def _work_left(records: list[Record]) -> Iterator[str]:
    """Yields the seconds that finished cells of the same method took for the steps that missing cells lack."""
    took = defaultdict[str, list[Record]](list)
    for record in records:
        if record.done:
            took[record.cell.method].append(record)
    waiting = [record for record in records if record.row["status"] == "missing"]
    known = [_seconds_left(record, took[record.cell.method]) for record in waiting if record.cell.method in took]
    if known:
        text = f"left: about {duration(sum(known))} of work for {len(known)} cells, without model loading"
        others = len(waiting) - len(known)
        yield f"{text}; {others} more use methods without a finished cell." if others else f"{text}."


def _seconds_left(record: Record, done: list[Record]) -> float:
    """The mean seconds that other cells took for what a missing one lacks: its evaluation in any case."""
    steps = ["evaluation_s", *(name for name in ("search_s", "recover_s") if name not in record.row)]
    return sum(statistics.fmean(other.row.get(name, 0.0) for other in done) for name in steps)
