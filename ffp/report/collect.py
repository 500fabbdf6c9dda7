"""Reads a record for each cell of a grid from the files of the cell: finished, skipped, failed or missing."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ffp.config import Cell, Experiment
from ffp.config.recover import TUNED
from ffp.core.errors import ArtifactError
from ffp.report.stale import Staleness
from ffp.store.layout import CellFiles, Layout
from ffp.store.schemas import AllocationFile, AnswersFile, CostFile, Perplexity, ScoresFile
from ffp.store.task_scores import Metric, TaskScores, is_share, scored_tasks

LEADING = (
    "model", "granularity", "sparsity", "method", "seed", "status", "block_sparsity", "model_sparsity", "ppl",
    "ppl_stderr", "search_evaluations", "search_tokens", "search_s",
)  # fmt: skip
TRAILING = (
    "mean_acc", "mean_acc_stderr", "ppl_windows", "ppl_context", "ppl_bos", "params_kept", "params_dense",
    "search_selection_tokens", "evaluation_s", "evaluation_peak_mem_bytes", "reason",
)  # fmt: skip
RECOVERY = ("ppl_before", "ppl_before_stderr", "recover_tokens", "recover_s", "recover_peak_mem_bytes")
STEPS = ("allocate", "apply", "recover", "evaluate")
LOG_CHARACTERS = 4000
Block = tuple[str, str, str]  # model, granularity and sparsity: what is of the same block may be compared


@dataclass
class Record:
    """A cell and what its folder holds; a file that is not there is None."""

    cell: Cell
    row: dict[str, Any]  # figures by column of the tables; a figure that is not known is absent
    allocation: AllocationFile | None = None
    answers: AnswersFile | None = None
    cost: CostFile | None = None
    recovery: CostFile | None = None
    scores: ScoresFile | None = None
    notes: list[str] = field(default_factory=list)  # warnings for a reader of the page
    logs: dict[str, str] = field(default_factory=dict)  # the end of each step's log, by step
    first_text: str | None = None  # whose perplexity is "ppl"; None: that of scores.json
    shares: frozenset[str] = frozenset()  # the columns of tasks that are shares of 1; see find_shares

    @property
    def done(self) -> bool:
        """Whether the cell is finished."""
        return bool(self.row["status"] == "done")

    @property
    def perplexities(self) -> dict[str, Perplexity]:
        """Perplexities by their column; see ScoresFile.by_column."""
        return self.scores.by_column(self.first_text) if self.scores and self.scores.status == "done" else {}

    def windows_of(self, key: str) -> tuple[Any, ...] | None:
        """Returns what perplexities of the same windows share; None for other figures. See ScoresFile.windows_of."""
        return self.scores.windows_of(key, self.first_text) if self.scores else None

    @property
    def tasks(self) -> dict[str, TaskScores]:
        """Task scores by the task's name; a tag, which has none, gives way to its tasks."""
        return scored_tasks(self.scores.tasks) if self.scores else {}

    @property
    def block(self) -> Block:
        """Model, granularity and sparsity."""
        return self.cell.model, self.cell.granularity, self.cell.sparsity


def collect(experiment: Experiment) -> list[Record]:
    """Returns every cell in the order of the grid; methods that do not serve a granularity are skipped cells."""
    layout, grid = Layout.from_grid(experiment.grid), experiment.grid
    records, staleness = list(_unserved(experiment)), Staleness(experiment)
    for cell in experiment.cells():
        record = read_grid_cell(experiment, cell)
        record.notes += _stale(staleness, record, layout.cell(cell))
        records.append(record)
    find_shares(records)
    for record in records:
        add_mean_accuracy(record, list(experiment.tasks.tasks) if experiment.tasks else [])
    models, granularities, methods = map(list, (grid.models, grid.granularities, ("dense", TUNED, *grid.methods)))
    return sorted(
        records,
        key=lambda r: (models.index(r.cell.model), granularities.index(r.cell.granularity), float(r.cell.sparsity),
                       methods.index(r.cell.method), r.cell.seed),
    )  # fmt: skip


def _unserved(experiment: Experiment) -> Iterator[Record]:
    grid = experiment.grid
    for model, granularity, name in itertools.product(grid.models, grid.granularities, grid.methods):
        if reason := experiment.refusal(name, granularity):
            for sparsity in grid.sparsities_of(granularity):
                cell = Cell(model, granularity, f"{sparsity:.2f}", name, grid.seeds[0])
                yield Record(cell, {**cell.as_dict(), "status": "skipped", "reason": reason})


def columns(records: Iterable[Record]) -> list[str]:
    """Returns the columns of comparison.csv: the leading ones are a contract, then peak memory, tasks and the rest."""
    records = list(records)
    middle = ["search_peak_mem_bytes"]
    middle += [name for name in RECOVERY if any("recover_s" in record.row for record in records)]
    measured = dict.fromkeys(key for record in records for key in record.perplexities if key != "ppl_before")
    further = [key for key in measured if key != "ppl"]
    bits = [key for key in map(bits_column, measured) if any(key in record.row for record in records)]
    middle += [column for key in (*further, *bits) for column in (key, f"{key}_stderr")]
    for task, results in by_task(records).items():
        for metric in dict.fromkeys(metric for result in results for metric in result.metrics):
            middle += [f"{task}_{metric}", f"{task}_{metric}_stderr"]
        middle.append(f"{task}_n")
    return [*LEADING, *middle, *TRAILING]


def bits_column(key: str) -> str:
    """Returns the column of bits per byte beside that of a perplexity: "bits_per_byte_on_c4" for "ppl_on_c4"."""
    return key.replace("ppl", "bits_per_byte", 1)


def by_task(records: Iterable[Record]) -> dict[str, list[TaskScores]]:
    """Returns the scores of each task that was scored, in the order of the records."""
    found = defaultdict[str, list[TaskScores]](list)
    for record in records:
        for task, result in record.tasks.items():
            found[task].append(result)
    return found


def read_grid_cell(experiment: Experiment, cell: Cell) -> Record:
    """Reads the record of a cell of a grid, by whose first test text its main perplexity is.

    A cell without that perplexity, as after the texts of the grid were changed, is missing.
    """
    files, first = Layout.from_grid(experiment.grid).cell(cell), experiment.grid.test_texts[0]
    logs = read_logs(Layout.from_grid(experiment.as_written), cell)
    record = read_cell(cell, files, logs=logs, first_text=first)
    if record.done and "ppl" not in record.perplexities:
        record.row.update(status="missing", reason=f"scores.json has no perplexity on {first} yet")
    return record


def read_cell(
    cell: Cell, files: CellFiles, *, logs: dict[str, str] | None = None, first_text: str | None = None
) -> Record:
    """Reads the record of a cell.

    A damaged file makes the cell failed and an absent one makes it missing; neither stops the report. The ends of the
    logs tell a failed cell from one that has not run yet.

    Args:
        cell: The cell.
        files: Its files.
        logs: The ends of its logs, by step.
        first_text: The text whose perplexity is the main one; None for that of scores.json.
    """
    row = {**cell.as_dict(), "status": "missing", "reason": None}
    record = Record(cell, row, logs=logs or {}, first_text=first_text)
    try:
        if not cell.is_dense:
            record.allocation = AllocationFile.read_if_there(files.allocation)
            record.answers = AnswersFile.read_if_there(files.answers)
            record.cost = CostFile.read_if_there(files.search_cost)
        record.recovery = CostFile.read_if_there(files.recover_cost)
        record.scores = ScoresFile.read_if_there(files.scores)
        if record.allocation:
            _check_keep(record.allocation, files)
    except ArtifactError as error:
        record.row.update(status="failed", reason=str(error))
        return record
    _add_figures(record)
    record.row["status"], record.row["reason"] = _status(record)
    return record


def _check_keep(allocation: AllocationFile, files: CellFiles) -> None:
    decisions, keep = allocation.problem.decisions, allocation.keep
    pairs = zip(decisions, keep, strict=False)
    faults = [f"{d.name} keeps {k} of {d.n_units} units" for d, k in pairs if not 0 <= k <= d.n_units]
    if len(keep) != len(decisions):
        faults.append(f"keep has {len(keep)} entries for {len(decisions)} decisions")
    if faults:
        raise ArtifactError(f"{files.allocation}: {faults[0]}. Delete it and run the rule again.")


def _add_figures(record: Record) -> None:
    row, cost, scores = record.row, record.cost, record.scores
    if record.allocation:
        row["block_sparsity"] = record.allocation.block_sparsity
    if cost:
        row.update(search_evaluations=cost.evaluations, search_tokens=cost.n_tokens)
        row.update(search_selection_tokens=cost.selection_tokens, search_s=cost.wall_s)
        row["search_peak_mem_bytes"] = cost.peak_mem_bytes
    if record.recovery:
        row.update(recover_tokens=record.recovery.n_tokens, recover_s=record.recovery.wall_s)
        row["recover_peak_mem_bytes"] = record.recovery.peak_mem_bytes
    for key, ppl in record.perplexities.items():
        row |= {key: ppl.value, f"{key}_stderr": ppl.stderr}
        if ppl.bits_per_byte is not None and ppl.n_bytes is not None:
            # of the mean loss, which the windows sample; the bytes are counted
            error = ppl.stderr and ppl.stderr / ppl.value * ppl.n_tokens / math.log(2) / ppl.n_bytes
            row |= {bits_column(key): ppl.bits_per_byte, f"{bits_column(key)}_stderr": error}
    if scores and scores.status == "done":
        row.update(block_sparsity=scores.block_sparsity, model_sparsity=scores.model_sparsity)
        main = record.perplexities.get("ppl", scores.ppl)
        row.update(ppl_windows=main.n_windows, ppl_context=main.context, ppl_bos=main.bos)
        row.update(params_kept=scores.params.kept, params_dense=scores.params.dense)
        row.update(evaluation_s=scores.cost.wall_s, evaluation_peak_mem_bytes=scores.cost.peak_mem_bytes)
        for task, result in record.tasks.items():
            for metric, figure in result.metrics.items():
                row |= {f"{task}_{metric}": figure.value, f"{task}_{metric}_stderr": figure.stderr}
            row[f"{task}_n"] = result.n


def _status(record: Record) -> tuple[str, str | None]:
    for body in (record.allocation, record.scores):
        if body and body.status != "done":
            return body.status, body.reason
    allocated = record.cell.is_dense or record.allocation is not None
    if allocated and record.scores is not None:
        return "done", None
    if fault := next(filter(None, map(_fault, reversed(record.logs.values()))), None):
        return "failed", fault
    return "missing", f"{'scores.json' if allocated else 'allocation.json'} is not there yet"


def read_logs(layout: Layout, cell: Cell) -> dict[str, str]:
    """Returns the last LOG_CHARACTERS of each log of a cell, by step; of a progress bar only its last state."""
    found = {}
    for step in STEPS:
        path = layout.log(step, cell.path)
        if path.is_file():
            text = path.read_bytes()[-4 * LOG_CHARACTERS :].decode(errors="replace")
            lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
            found[step] = "\n".join(lines)[-LOG_CHARACTERS:].strip()
    return found


def _fault(log: str) -> str | None:
    """The error that a log ends with: ffp's own line or the last line of a traceback."""
    last = log.rpartition("\n")[2]
    if re.match(r"ffp \w+: ", last) and "interrupted" not in last:
        return last
    return last if "Traceback (most recent call last)" in log and re.match(r"[\w.]+(Error|Exception)\b", last) else None


def find_shares(records: Iterable[Record]) -> None:
    """Notes in records that are shown together which columns of their tasks are shares of 1: the same in each of them.

    Decided cell by cell, a metric that ends at 100 would enter the means of those cells alone where it is below 1.
    """
    records, figures = list(records), defaultdict[tuple[str, str], list[Metric]](list)
    for task, results in by_task(records).items():
        for metric, figure in (pair for result in results for pair in result.metrics.items()):
            figures[task, metric].append(figure)
    shares = frozenset(f"{task}_{metric}" for (task, metric), found in figures.items() if is_share(metric, found))
    for record in records:
        record.shares = shares


def add_mean_accuracy(record: Record, tasks: list[str]) -> None:
    """Adds the mean accuracy over `tasks` to a record if all of them were scored; errors add in quadrature.

    tasks: names of the configuration. Metrics that are no share of 1 do not count, see find_shares.
    """
    scored = record.scores.tasks if record.scores else {}
    if not record.done or not set(tasks) <= set(scored):
        return
    results = scored_tasks({name: scored[name] for name in tasks})
    chosen = [r.metrics[r.main_metric] for name, r in results.items() if f"{name}_{r.main_metric}" in record.shares]
    if not chosen:
        return
    record.row["mean_acc"] = sum(figure.value for figure in chosen) / len(chosen)
    errors = [figure.stderr for figure in chosen if figure.stderr is not None]
    if len(errors) == len(chosen):
        record.row["mean_acc_stderr"] = math.sqrt(sum(error**2 for error in errors)) / len(chosen)


def _stale(staleness: Staleness, record: Record, files: CellFiles) -> list[str]:
    try:
        return list(staleness.notes(record.cell, files, record.allocation, record.scores))
    except ArtifactError as error:
        return [str(error)]
