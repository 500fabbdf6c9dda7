"""What stands behind one cell: figures, settings, digests, versions, logs, and the commands that make it again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ffp.config import Experiment
from ffp.core.errors import ArtifactError
from ffp.report.collect import Record
from ffp.store.files import read_json


def details(project: Experiment, record: Record) -> dict[str, Any]:
    """Plain data of one cell for the page; see the module."""
    body = record.allocation or {}
    steps = {
        "search": (record.cost or {}).get("provenance") or body.get("provenance"),
        "evaluation": (record.scores or {}).get("provenance"),
    }
    facts = {
        "figures": {key: value for key, value in record.row.items() if value is not None},
        "search cost": {k: v for k, v in (record.cost or {}).items() if k not in ("schema", "provenance")},
        **{f"provenance of the {step}": facts for step, facts in steps.items()},
        "evaluation cost": (record.scores or {}).get("cost"),
        "settings of the search": body.get("settings"),
        "settings of the evaluation": (record.scores or {}).get("settings"),
        "tasks": {k: {"version": t["version"], "hash": t["hash"], "n": t["n"]} for k, t in record.tasks.items()},
    }
    served = record.row["status"] != "skipped"
    return {
        "status": record.row["status"],
        "reason": record.row.get("reason"),
        "notes": record.notes,
        "commands": commands(project, record) if served else [],
        "inputs": inputs(project, record.cell.model) if served else [],
        "facts": {name: _flat(value) for name, value in facts.items() if value},
        "logs": record.logs,
    }


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as (dotted key, value) pairs."""
    pairs = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            pairs += _flat(item, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item)))
    return pairs


def commands(project: Experiment, record: Record) -> list[str]:
    """The command lines that make this cell alone again, from the repository root."""
    grid, cell = project.grid, record.cell
    folder = Path(grid.results) / "cells" / cell.path
    common = {"config": project.file, "cell": cell.path, "model-dir": Path(grid.data) / "models" / cell.model}
    calibration = {"calibration": Path(grid.data) / "calibration" / cell.model}
    evaluate: dict[str, Any] = {**common, "text-dir": Path(grid.data) / "text" / grid.text}
    if grid.tasks:
        evaluate["tasks-dir"] = Path(grid.data) / "tasks" / grid.tasks
    lines = []
    if cell.method != "dense":
        lines.append(command("allocate", **common, **calibration, out=folder))
        lines.append(command("apply", **common, **calibration, allocation=folder / "allocation.json", out=folder))
        evaluate["cut"] = folder
    return [*lines, command("evaluate", **evaluate, out=folder / "scores.json")]


def inputs(project: Experiment, model: str) -> list[str]:
    """The command lines that fetch and calibrate what all cells of a model share."""
    grid, config, data = project.grid, project.root, Path(project.grid.data)
    lines = [
        command("asset model", config=config / f"models/{model}.yaml", out=data / "models" / model),
        command("asset text", config=config / f"texts/{grid.text}.yaml", out=data / "text" / grid.text),
    ]
    if grid.tasks:
        lines.append(
            command("asset tasks", config=config / f"tasks/{grid.tasks}.yaml", out=data / "tasks" / grid.tasks)
        )
    paths = {"model-dir": data / "models" / model, "text-dir": data / "text" / grid.text}
    return [*lines, command("calibrate", config=project.file, model=model, **paths, out=data / "calibration" / model)]


def calibration_cost(project: Experiment, model: str) -> dict[str, Any] | None:
    """calibrate.cost.json of a model, or None where it is not there or damaged: it is no figure of the comparison."""
    path = Path(project.grid.data) / "calibration" / model / "calibrate.cost.json"
    try:
        return read_json(path, "ffp/cost/1")
    except ArtifactError:
        return None


def command(step: str, **options: Any) -> str:
    """An ffp command line, quoted for a shell."""
    return " ".join(["ffp", step, *(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())])
