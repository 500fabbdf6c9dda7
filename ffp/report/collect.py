"""One record for each cell of a grid, read from the cell's artifacts: finished, skipped, failed or missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError
from ffp.store.files import read_json, read_table

LEADING = (
    "model", "granularity", "sparsity", "method", "seed", "status", "block_sparsity", "model_sparsity", "ppl",
    "ppl_stderr", "search_evaluations", "search_tokens", "search_s",
)  # fmt: skip
TRAILING = (
    "mean_acc", "mean_acc_stderr", "ppl_windows", "ppl_context", "params_kept", "params_dense",
    "search_selection_tokens", "evaluation_s", "evaluation_peak_mem_bytes", "reason",
)  # fmt: skip
METRICS = ("acc_norm", "acc")
LOGS = Path("logs")  # where the rules write, below the folder that Snakemake runs in
STEPS = ("allocate", "apply", "evaluate")
LOG_CHARACTERS = 4000


@dataclass
class Record:
    """A cell and what its folder holds. row: the table's figures by column, absent where there is none.

    logs: the end of each step's log, by step.
    """

    cell: Cell
    row: dict[str, Any]
    allocation: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None
    trace: Any = None
    notes: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return bool(self.row["status"] == "done")

    @property
    def tasks(self) -> dict[str, Any]:
        return dict((self.scores or {}).get("tasks") or {})

    @property
    def block(self) -> tuple[str, str, str]:
        """The rows that may be compared with this one: same model, granularity and target."""
        return self.cell.model, self.cell.granularity, self.cell.sparsity


def collect(project: Experiment) -> list[Record]:
    """Every cell of the grid in its order, then the methods that do not serve a granularity, as skipped."""
    root = Path(project.grid.results) / "cells"
    records = []
    for cell in project.cells():
        records.append(read_cell(cell, root / cell.path, logs=read_logs(cell)))
        records[-1].notes += _stale(project, records[-1])
    records += [_unserved(project, cell) for cell in unserved(project)]
    for record in records:
        mean_accuracy(record, list(project.tasks.tasks) if project.tasks else [])
    order = {name: index for index, name in enumerate(["dense", *project.grid.methods])}
    models = {name: index for index, name in enumerate(project.grid.models)}
    granularities: dict[str, int] = {name: index for index, name in enumerate(project.grid.granularities)}
    return sorted(
        records,
        key=lambda r: (models[r.cell.model], granularities[r.cell.granularity], float(r.cell.sparsity),
                       order[r.cell.method], r.cell.seed),
    )  # fmt: skip


def unserved(project: Experiment) -> Iterable[Cell]:
    """Cells that the grid asks for by name but whose method cannot serve the granularity."""
    grid = project.grid
    for model in grid.models:
        for granularity in grid.granularities:
            for sparsity in grid.sparsities_of(granularity):
                for name in grid.methods:
                    if project.refusal(name, granularity):
                        yield Cell(model, granularity, f"{sparsity:.2f}", name, grid.seeds[0])


def columns(records: Iterable[Record]) -> list[str]:
    """The table's columns: the leading ones are a contract, then peak memory, tasks, means and costs."""
    tasks: dict[str, dict[str, None]] = {}
    for record in records:
        for task, result in record.tasks.items():
            tasks.setdefault(task, {}).update(dict.fromkeys(result["metrics"]))
    middle = ["search_peak_mem_bytes"]
    for task, metrics in tasks.items():
        for metric in metrics:
            middle += [f"{task}_{metric}", f"{task}_{metric}_stderr"]
        middle.append(f"{task}_n")
    return [*LEADING, *middle, *TRAILING]


def task_metric(result: Mapping[str, Any]) -> str:
    """The metric that stands for a task in the mean: acc_norm where the stock task has it, otherwise acc."""
    return next((name for name in METRICS if name in result["metrics"]), next(iter(result["metrics"])))


def _unserved(project: Experiment, cell: Cell) -> Record:
    reason = project.refusal(cell.method, cell.granularity)
    return Record(cell, {**_identity(cell), "status": "skipped", "reason": reason})


def _identity(cell: Cell) -> dict[str, Any]:
    return {"model": cell.model, "granularity": cell.granularity, "sparsity": float(cell.sparsity),
            "method": cell.method, "seed": cell.seed}  # fmt: skip


def read_cell(cell: Cell, folder: Path, *, logs: Mapping[str, str] | None = None, trace: bool = True) -> Record:
    """A cell's record. A damaged artifact makes it failed, an absent one missing; neither stops the report.

    logs: the ends of its steps' logs, which tell a failure from a cell that has not run yet. trace: whether to read it.
    """
    record = Record(cell, {**_identity(cell), "status": "missing", "reason": None}, logs=dict(logs or {}))
    row = record.row
    try:
        if cell.method != "dense":
            record.allocation = _optional(folder / "allocation.json", "ffp/allocation/2")
            record.cost = _optional(folder / "search.cost.json", "ffp/cost/1")
            table = folder / "trace.parquet"
            record.trace = read_table(table) if trace and table.is_file() else None
        record.scores = _optional(folder / "scores.json", "ffp/scores/1")
        row.update(_allocation_figures(record.allocation), **_cost_figures(record.cost))
        row.update(_score_figures(record.scores))
        _check_shapes(record)
    except ArtifactError as error:
        row.update(status="failed", reason=str(error))
        return record
    except (KeyError, TypeError, ValueError) as error:
        row.update(status="failed", reason=f"an artifact in {folder} lacks what its schema promises: {error!r}")
        return record
    row["status"], row["reason"] = _status(record)
    return record


def _check_shapes(record: Record) -> None:
    """Raise KeyError, TypeError or ValueError unless the figures can be drawn."""
    if record.allocation and record.allocation["status"] == "done":
        decisions = record.allocation["problem"]["decisions"]
        for decision, keep in zip(decisions, record.allocation["keep"], strict=True):
            name, n_units = decision["name"], decision["n_units"]
            if not 0 <= keep <= n_units:
                raise ValueError(f"{name} keeps {keep} of {n_units} units")
    if record.trace is not None:
        _ = record.trace[["tokens", "best"]]


def _optional(path: Path, schema: str) -> dict[str, Any] | None:
    return read_json(path, schema) if path.exists() else None


def _status(record: Record) -> tuple[str, str | None]:
    for body in (record.allocation, record.scores):
        if body and body.get("status", "done") != "done":
            return body["status"], body.get("reason")
    absent = "allocation.json" if record.cell.method != "dense" and record.allocation is None else "scores.json"
    if absent == "scores.json" and record.scores is not None:
        return "done", None
    if fault := next(filter(None, map(_fault, reversed(record.logs.values()))), None):
        return "failed", fault
    return "missing", f"{absent} is not there yet"


def read_logs(cell: Cell) -> dict[str, str]:
    """The last LOG_CHARACTERS of each log that the cell's steps left, by step; progress bars shown as they ended."""
    found = {}
    for step in STEPS:
        path = LOGS / step / f"{cell.path}.log"
        if path.is_file():
            text = path.read_bytes()[-4 * LOG_CHARACTERS :].decode(errors="replace")
            lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
            found[step] = "\n".join(lines)[-LOG_CHARACTERS:].strip()
    return found


def _fault(log: str) -> str | None:
    """The error that a log ends with: ffp's own line, or the last line of a traceback; None if it ends otherwise."""
    last = log.rpartition("\n")[2]
    if re.match(r"ffp \w+: ", last) and "interrupted" not in last:
        return last
    return last if "Traceback (most recent call last)" in log and re.match(r"[\w.]+(Error|Exception)\b", last) else None


def _allocation_figures(allocation: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"block_sparsity": allocation.get("block_sparsity")} if allocation else {}


def _cost_figures(cost: Mapping[str, Any] | None) -> dict[str, Any]:
    if not cost:
        return {}
    return {
        "search_evaluations": cost["evaluations"],
        "search_tokens": cost["n_tokens"],
        "search_selection_tokens": cost["selection_tokens"],
        "search_s": cost["wall_s"],
        "search_peak_mem_bytes": cost["peak_mem_bytes"],
    }


def _score_figures(scores: Mapping[str, Any] | None) -> dict[str, Any]:
    if not scores or scores.get("status", "done") != "done":
        return {}
    ppl, params, cost = scores["ppl"], scores["params"], scores["cost"]
    figures = {
        "block_sparsity": scores["block_sparsity"],
        "model_sparsity": scores["model_sparsity"],
        "ppl": ppl["value"],
        "ppl_stderr": ppl["stderr"],
        "ppl_windows": ppl["n_windows"],
        "ppl_context": ppl["context"],
        "params_kept": params["kept"],
        "params_dense": params["dense"],
        "evaluation_s": cost.get("wall_s"),
        "evaluation_peak_mem_bytes": cost.get("peak_mem_bytes"),
    }
    for task, result in (scores.get("tasks") or {}).items():
        for metric, figure in result["metrics"].items():
            figures[f"{task}_{metric}"] = figure["value"]
            figures[f"{task}_{metric}_stderr"] = figure["stderr"]
        figures[f"{task}_n"] = result["n"]
    return figures


def mean_accuracy(record: Record, names: list[str]) -> None:
    """Add the mean over the grid's tasks, only where all of them were scored; errors add in quadrature."""
    results = [record.tasks[name] for name in names if name in record.tasks]
    if not record.done or not names or len(results) < len(names):
        return
    chosen = [result["metrics"][task_metric(result)] for result in results]
    record.row["mean_acc"] = sum(figure["value"] for figure in chosen) / len(chosen)
    if all(figure["stderr"] is not None for figure in chosen):
        record.row["mean_acc_stderr"] = math.sqrt(sum(figure["stderr"] ** 2 for figure in chosen)) / len(chosen)


def _stale(project: Experiment, record: Record) -> Iterable[str]:
    """Notes about artifacts made under other settings than the configuration names now."""
    parts = (("allocate", "allocation.json", record.allocation), ("evaluate", "scores.json", record.scores))
    for step, name, body in parts:
        if body:
            now = json.loads(json.dumps(project.settings(step, record.cell)))
            then = body.get("settings")
            if isinstance(then, dict) and set(then) == set(now) and then != now:
                changed = ", ".join(key for key in now if then[key] != now[key])
                yield f"{name} was made with other settings than the configuration has now ({changed}): run it again"
