"""Grids with the files of finished and unfinished cells, written without running anything."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from ffp.allocators.tracker import TRACE_COLUMNS
from ffp.config import Cell, Experiment
from ffp.core.problem import Decision
from ffp.store import schemas
from ffp.store.identity import step_settings
from ffp.store.layout import CellFiles, Layout
from ffp.store.provenance import provenance

TITLE = "<b>Tiny</b> & 50%_of $x_1$"
SOURCE = {"kind": "local", "path": "nowhere"}
KEEP = (3, 2, 3, 4, 3, 4)


def make_experiment(folder: Path, **changes) -> Experiment:
    """A grid with its models, text and tasks below `folder`; changes: keys of the grid file."""
    corpus = {"name": "a", "source": SOURCE, "reader": "jsonl"}
    shares = dict.fromkeys(("calibration", "search", "selection", "test"), 0.25)
    files = {
        "models/tiny": {"title": TITLE, "source": SOURCE},
        "models/other": {"title": "Other", "source": SOURCE},
        "texts/words": {"title": "Words", "sources": [corpus], "shares": shares},
        "texts/more": {"title": "More", "sources": [corpus], "shares": shares},
        "tasks/two": {
            "title": "Two", "version": "1",
            "tasks": {name: {"stock": name, "source": SOURCE} for name in ("arc_easy", "winogrande")},
        },
        "grid": {
            "title": "A <i>grid</i>", "models": ["tiny"], "text": "words", "tasks": "two", "sparsities": [0.2, 0.3],
            "methods": ["uniform", "owl", "evolutionary", "fastforward"], "results": str(folder / "results"), **changes,
        },
    }  # fmt: skip
    for name, body in files.items():
        path = folder / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body))
    return Experiment(folder / "config" / "grid.yaml")


def files_of(experiment: Experiment, path: str) -> CellFiles:
    """The files of a cell of the grid by its path."""
    return Layout.from_grid(experiment.grid).cell(experiment.cell(path))


def write_cell(experiment, path, losses, *, tokens=0, acc=0.5, scores=True, tasks=True, answers=None):
    """Writes the files of a finished cell.

    losses: nats a token of each window. tokens: what the search forwarded, in evaluations of 100. answers: by tokens,
    the loss over dense on the selection text; by default falling from 0.4, for cells with tokens.
    """
    files, cell = files_of(experiment, path), experiment.cell(path)
    origin = provenance({"model": "cafe"}, seed=cell.seed)
    if cell.method != "dense":
        write_allocation(experiment, cell)
        cost = schemas.Cost(evaluations=tokens // 100, n_tokens=tokens, wall_s=1.5, peak_mem_bytes=1000)
        schemas.CostFile(**cost.model_dump(), provenance=origin).write(files.search_cost)
        best = [math.nan, 0.2, 0.3, 0.4] if tokens else []
        rows = [(i, i * 100, "s", 0.2, 1, 0.1, b, [3] * 6) for i, b in enumerate(best, 1)]
        schemas.TRACE.write(files.trace, [dict(zip(TRACE_COLUMNS, row, strict=True)) for row in rows])
        if answers is None:
            answers = {tokens // 4 * part: 0.4 / part for part in (1, 2, 4)} if tokens else {}
        points = [{"tokens": t, "share": t / max(answers), "keep": KEEP, "loss": loss} for t, loss in answers.items()]
        schemas.AnswersFile(points=points, provenance=origin).write(files.answers)
    if scores:
        body = score_body(losses, acc, tasks)
        body |= {"block_sparsity": float(cell.sparsity), "model_sparsity": 0.9 * float(cell.sparsity)}
        settings = step_settings(experiment, "evaluate", cell)
        scored = schemas.ScoresFile(**body, cell=cell.as_dict(), settings=settings, provenance=provenance())
        scored.write(files.scores)


def write_allocation(experiment: Experiment, cell: Cell, *, decisions=None, keep=KEEP) -> None:
    """Writes the cell's allocation.json, of three blocks with four units each in attention and FFN by default."""
    names = [f"block{block:02d}.{kind}" for block in range(3) for kind in ("attention", "ffn")]
    decisions = decisions or [Decision(name=name, n_units=4, params_per_unit=10) for name in names]
    problem = schemas.Problem(granularity=cell.granularity, target=float(cell.sparsity), decisions=decisions)
    schemas.AllocationFile(
        cell=cell.as_dict(), problem=problem, problem_id="p", keep=keep, block_sparsity=0.2,
        settings=step_settings(experiment, "allocate", cell), provenance=provenance({"model": "cafe"}, seed=cell.seed),
    ).write(Layout.from_grid(experiment.grid).cell(cell).allocation)  # fmt: skip


def score_body(losses, acc, tasks):
    """What is measured, as scores.json holds it."""
    series = pd.Series(losses)
    value = math.exp(series.mean())
    figure = {"value": acc, "stderr": 0.1}
    both = {
        "arc_easy": {"version": 1.0, "hash": "h1", "n": 32, "n_total": 2376,
                     "metrics": {"acc": {"value": 0.1, "stderr": 0.05}, "acc_norm": figure}},
        "winogrande": {"version": 1.0, "hash": "h2", "n": 32, "n_total": 1267, "metrics": {"acc": figure}},
    }  # fmt: skip
    return {
        "params": {"dense": 1000, "kept": 900}, "tasks": both if tasks else {},
        "ppl": {"value": value, "stderr": value * float(series.sem()), "n_windows": len(losses), "context": 64,
                "n_tokens": 63 * len(losses), "loss_by_window": losses},
        "cost": {"wall_s": 2.0, "peak_mem_bytes": 2000},
    }  # fmt: skip


def edit(file: schemas.JsonFile, path: Path, change) -> None:
    """Changes a JSON file in place: `change` is given its content as plain data."""
    body = file.read(path).model_dump(mode="json")
    change(body)
    file.model_validate(body).write(path)


def fill(experiment: Experiment) -> None:
    """Writes cells: sparsity 0.20 finished, 0.30 in every other state."""
    cell = "tiny/structured/"
    write_cell(experiment, cell + "s0.00/dense/seed0", [3.0, 3.5, 2.5])
    write_cell(experiment, cell + "s0.20/uniform/seed0", [3.60, 4.05, 3.20])
    write_cell(experiment, cell + "s0.20/owl/seed0", [3.4, 3.9, 2.9])
    write_cell(experiment, cell + "s0.20/evolutionary/seed0", [3.41, 3.88, 2.92], tokens=400)
    write_cell(experiment, cell + "s0.20/fastforward/seed0", [3.5, 4.0, 3.0], tokens=300)
    write_cell(experiment, cell + "s0.30/uniform/seed0", [4.0, 4.5, 3.5])
    write_cell(experiment, cell + "s0.30/owl/seed0", [1.0], scores=False)
    broken = files_of(experiment, cell + "s0.30/evolutionary/seed0").allocation
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
