"""Collects what stands behind one cell: figures, settings, digests, versions, logs, and the commands to repeat it."""

import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ffp.config import Experiment
from ffp.core.errors import ArtifactError
from ffp.core.plain import shell_line
from ffp.report.collect import Record
from ffp.store.layout import Layout
from ffp.store.schemas import CostFile


def details(experiment: Experiment, record: Record) -> dict[str, Any]:
    """Returns what the page shows of one cell, as plain data."""
    allocation, cost, recovery, scores = (
        body.model_dump(mode="json", exclude={"problem", "keep", "ppl", "ppl_before"}) if body else {}
        for body in (record.allocation, record.cost, record.recovery, record.scores)
    )
    evidence = {
        "figures": {key: value for key, value in record.row.items() if value is not None},
        "search cost": {key: value for key, value in cost.items() if key != "provenance"},
        "provenance of the search": cost.get("provenance") or allocation.get("provenance"),
        "recovery cost": {key: value for key, value in recovery.items() if key != "provenance"},
        "provenance of the recovery": recovery.get("provenance"),
        "provenance of the evaluation": scores.get("provenance"),
        "evaluation cost": scores.get("cost"),
        "settings of the search": allocation.get("settings"),
        "settings of the evaluation": scores.get("settings"),
        "tasks": {name: {"version": t.version, "hash": t.hash, "n": t.n} for name, t in record.tasks.items()},
    }
    served = record.row["status"] != "skipped"
    return {
        "status": record.row["status"],
        "reason": record.row.get("reason"),
        "notes": record.notes,
        "commands": commands(experiment, record) if served else [],
        "inputs": inputs(experiment, record.cell.model) if served else [],
        "evidence": {name: flat(value) for name, value in evidence.items() if value},
        "logs": record.logs,
    }


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns nested plain data as pairs of a dotted key and a text."""
    pairs = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            pairs += flat(item, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item)))
    return pairs


def commands(experiment: Experiment, record: Record) -> list[str]:
    """Returns the command lines that repeat this cell alone, to be run in the folder of the repository."""
    grid, cell = experiment.as_written, record.cell
    layout = Layout.from_grid(grid)
    files = layout.cell(cell)
    common = {"config": experiment.file, "cell": cell.path, "model-dir": layout.model(cell.model).folder}
    evaluate = {**common, "text-dir": [layout.text(name).folder for name in grid.test_texts]}
    if experiment.tasks_name:
        evaluate["tasks-dir"] = layout.tasks(experiment.tasks_name).folder
    if cell.method == "dense":
        return [command("evaluate", **evaluate, out=files.scores)]
    seen = layout.text(grid.calibration_text).folder
    train = {**common, "text-dir": seen, **({} if cell.is_dense else {"cut": files.folder})}
    recover = [command("recover", **train, out=files.folder)] if experiment.recover(cell).wanted else []
    last = [*recover, command("evaluate", **evaluate, cut=files.folder, out=files.scores)]
    if cell.is_dense:
        return last
    common["calibration"] = layout.calibration(cell.model).folder
    origin = experiment.init_cell(cell)
    init = {"init": layout.cell(origin).folder} if origin else {}
    return [
        command("allocate", **common, **init, out=files.folder),
        command("apply", **common, allocation=files.allocation, out=files.folder),
        *last,
    ]


def inputs(experiment: Experiment, model: str) -> list[str]:
    """Returns the command lines that fetch and calibrate what all cells of a model share."""
    grid, layout = experiment.as_written, Layout.from_grid(experiment.as_written)
    folders = {"model-dir": layout.model(model).folder, "text-dir": layout.text(grid.calibration_text).folder}
    out = layout.calibration(model).folder
    assets = [("model", experiment.entry("models", model), folders["model-dir"])]
    assets += [("text", experiment.entry("texts", name), layout.text(name).folder) for name in grid.all_texts]
    if isinstance(grid.tasks, str):
        assets.append(("tasks", experiment.entry("tasks", grid.tasks), layout.tasks(grid.tasks).folder))
    lines = [command(f"asset {kind}", config=file, out=to) for kind, file, to in assets]
    if experiment.tasks_name and not isinstance(grid.tasks, str):
        tasks = layout.tasks(experiment.tasks_name).folder
        lines.append(command("asset grid-tasks", config=experiment.file, out=tasks))
    lines.append(command("calibrate", config=experiment.file, model=model, **folders, out=out))
    if experiment.keeps_grams:
        given = {"model-dir": folders["model-dir"], "calibration": out}
        lines.append(command("grams", config=experiment.file, model=model, **given, out=out))
    return lines


def shared(experiment: Experiment, model: str) -> dict[str, Any]:
    """Returns what all cells of a model share: the commands that fetch and calibrate, and the cost of calibration."""
    cost = {}
    with suppress(ArtifactError):  # absent or damaged: no table needs it
        file = CostFile.read(Layout.from_grid(experiment.grid).calibration(model).cost)
        cost = file.model_dump(include={"wall_s", "n_tokens", "peak_mem_bytes"})
    return {"title": experiment.models[model].title, "commands": inputs(experiment, model), "cost": cost}


def command(step: str, **options: Any) -> str:
    """Returns an ffp command line, quoted for a shell; an option is given once for each value of a list.

    Paths in the working folder are relative to it, however they were given.
    """
    given = [(name, value if isinstance(value, list) else [value]) for name, value in options.items()]
    words = ((f"--{name}", _short(each)) for name, values in given for each in values)
    return shell_line(["ffp", *step.split(), *itertools.chain.from_iterable(words)])


def _short(value: object) -> object:
    if isinstance(value, Path) and value.is_relative_to(Path.cwd()):
        return value.relative_to(Path.cwd())
    return value
