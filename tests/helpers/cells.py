"""Grids with the artifacts of finished and unfinished cells, written without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from ffp.config import Experiment
from ffp.store.files import write_json, write_table
from ffp.store.provenance import provenance

TITLE = "<b>Tiny</b> & 50%_of $x_1$"
SOURCE = {"kind": "local", "path": "nowhere"}
TRACE = ["evaluation", "tokens", "stage", "sparsity", "windows", "reward", "best", "keep"]


def make_project(folder: Path, **changes) -> Experiment:
    corpus = {"name": "a", "source": SOURCE, "reader": "jsonl"}
    shares = dict.fromkeys(("calibration", "search", "selection", "test"), 0.25)
    files = {
        "models/tiny": {"title": TITLE, "source": SOURCE},
        "models/other": {"title": "Other", "source": SOURCE},
        "texts/words": {"title": "Words", "sources": [corpus], "shares": shares},
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


def write_cell(project, path, losses, *, tokens=0, acc=0.5, scores=True, tasks=True):
    """The artifacts of a finished cell; losses: nats a token of each window."""
    folder, cell = Path(project.grid.results) / "cells" / path, project.cell(path)
    origin = provenance(seed=cell.seed, model="cafe")
    identity = {
        "model": cell.model,
        "granularity": cell.granularity,
        "sparsity": float(cell.sparsity),
        "method": cell.method,
        "seed": cell.seed,
    }
    if cell.method != "dense":
        sizes = {"n_units": 4, "params_per_unit": 10, "fixed_params": 0, "min_keep": 1, "bundle": 1}
        decisions = [{"name": f"block{b:02d}.{kind}", **sizes} for b in range(3) for kind in ("attention", "ffn")]
        body = {
            "status": "done",
            "reason": None,
            "cell": identity,
            "problem": {"granularity": "structured", "target": float(cell.sparsity), "decisions": decisions},
        }
        body |= {
            "problem_id": "p",
            "keep": [3, 2, 3, 4, 3, 4],
            "block_sparsity": 0.2,
            "settings": project.settings("allocate", cell),
            "provenance": origin,
        }
        write_json(folder / "allocation.json", "ffp/allocation/2", body)
        cost = {
            "evaluations": tokens // 100,
            "n_tokens": tokens,
            "selection_tokens": 0,
            "earlier_s": 0.0,
            "wall_s": 1.5,
            "peak_mem_bytes": 1000,
        }
        write_json(folder / "search.cost.json", "ffp/cost/1", {**cost, "provenance": origin})
        best = [float("nan"), 0.2, 0.3, 0.4] if tokens else []
        rows = [
            {"evaluation": i, "tokens": i * 100, "stage": "s", "sparsity": 0.2, "windows": 1, "reward": 0.1, "best": b,
             "keep": [3] * 6} for i, b in enumerate(best, 1)
        ]  # fmt: skip
        write_table(folder / "trace.parquet", rows, TRACE)
    if scores:
        write_json(folder / "scores.json", "ffp/scores/1", score_body(project, cell, losses, acc, tasks))


def score_body(project, cell, losses, acc, tasks):
    series = pd.Series(losses)
    value = float(2.718281828459045 ** series.mean())
    figure = {"value": acc, "stderr": 0.1}
    both = {
        "arc_easy": {
            "version": 1.0,
            "hash": "h1",
            "n": 32,
            "n_total": 2376,
            "metrics": {"acc": {"value": 0.1, "stderr": 0.05}, "acc_norm": figure},
        },
        "winogrande": {"version": 1.0, "hash": "h2", "n": 32, "n_total": 1267, "metrics": {"acc": figure}},
    }
    return {
        "status": "done", "reason": None,
        "block_sparsity": float(cell.sparsity), "model_sparsity": 0.9 * float(cell.sparsity),
        "params": {"dense": 1000, "kept": 900}, "tasks": both if tasks else {},
        "ppl": {"value": value, "stderr": value * float(series.sem()), "n_windows": len(losses), "context": 64,
                "n_tokens": 63 * len(losses), "loss_by_window": losses},
        "cost": {"wall_s": 2.0, "peak_mem_bytes": 2000},
        "settings": project.settings("evaluate", cell), "provenance": provenance(),
    }  # fmt: skip


def fill(project: Experiment) -> None:
    """Sparsity 0.20 finished, 0.30 in every other state."""
    cell = "tiny/structured/"
    write_cell(project, cell + "s0.00/dense/seed0", [3.0, 3.5, 2.5])
    write_cell(project, cell + "s0.20/uniform/seed0", [3.60, 4.05, 3.20])
    write_cell(project, cell + "s0.20/owl/seed0", [3.4, 3.9, 2.9])
    write_cell(project, cell + "s0.20/evolutionary/seed0", [3.41, 3.88, 2.92], tokens=400)
    write_cell(project, cell + "s0.20/fastforward/seed0", [3.5, 4.0, 3.0], tokens=300)
    write_cell(project, cell + "s0.30/uniform/seed0", [4.0, 4.5, 3.5])
    write_cell(project, cell + "s0.30/owl/seed0", [1.0], scores=False)
    broken = Path(project.grid.results) / "cells" / cell / "s0.30/evolutionary/seed0/allocation.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
