"""The report's entry point, and its page: one HTML file that opens offline and asks nothing of any server."""

from __future__ import annotations

import base64
import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ffp import artifacts
from ffp.config import Project
from ffp.report import captions, plots, tables
from ffp.report.collect import Record, collect

TITLES = {
    "quality_cost": "Quality against search cost",
    "anytime": "Progress of the searches",
    "allocation": "Where the parameters were kept",
}


def build(project: Project, out: Path) -> Path:
    """Write tables, plots, metrics.json and index.html for a grid, finished or not; return the page's path.

    The same artifacts and configuration give the same bytes. A damaged artifact becomes a failed row.
    """
    out = Path(out)
    records = collect(project)
    table = tables.write(project, records, captions.table(project, records), out)
    svgs = plots.draw(project, records, out)
    with artifacts.whole(out / "metrics.json") as partial:
        partial.write_text(json.dumps(metrics(records), indent=1, allow_nan=False) + "\n")
    page = out / "index.html"
    with artifacts.whole(page) as partial:
        partial.write_text(render(project, records, table, svgs), encoding="utf-8")
    return page


def metrics(records: list[Record]) -> dict[str, float]:
    """Flat figures of the finished cells, for `dvc metrics`: "<cell>/ppl" and so on, and the number of cells done."""
    found: dict[str, float] = {"cells_done": sum(record.done for record in records), "cells": len(records)}
    for record in records:
        for name in ("ppl", "mean_acc", "model_sparsity", "search_tokens"):
            if record.done and record.row.get(name) is not None:
                found[f"{record.cell.path}/{name}"] = record.row[name]
    return found


def render(project: Project, records: list[Record], table: tables.Table, svgs: dict[str, bytes]) -> str:
    """The page; every label is escaped by the template engine."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = resources.files("ffp.report").joinpath("template.html").read_text(encoding="utf-8")
    template = environment.from_string(source)
    figures = [
        {"name": name, "title": TITLES[name], "caption": _figure_caption(project, name), "alt": _alt(name, records),
         "data": base64.b64encode(svg).decode()}
        for name, svg in svgs.items()
    ]  # fmt: skip
    return template.render(
        title=project.grid.title,
        counts=captions.counts(records),
        table=table,
        caption=list(captions.reading(project, records)),
        uncontrolled=captions.uncontrolled(project, records),
        figures=figures,
        cells=[_cell(project, record) for record in records],
        command=_command("report", {"config": project.file, "out": f"{project.grid.results}/report"}),
    )


def _figure_caption(project: Project, name: str) -> str:
    seeds = len(project.grid.seeds)
    drawn = "one seed" if seeds == 1 else f"{seeds} seeds, each drawn"
    budget = project.grid.search
    return {
        "quality_cost": f"Error bars: standard error over windows; {drawn}. Points of equal cost stand side by side. "
                        "Dotted: methods that forward no search text. Dashed: the dense model.",
        "anytime": f"Reward on the search text, not on the test text; {drawn}. Budget, the same for every method: "
                   f"{budget.evaluations} evaluations of {budget.windows_per_evaluation} x {budget.context} tokens.",
        "allocation": f"Share of KV groups (attention) and channels (FFN) kept in each block; {drawn}.",
    }[name]  # fmt: skip


def _alt(name: str, records: list[Record]) -> str:
    """A figure in words: what it shows, and the figures of the finished cells."""
    if name != "quality_cost":
        shown = [r for r in records if (r.trace is not None and len(r.trace) if name == "anytime" else r.allocation)]
        methods = ", ".join(dict.fromkeys(record.cell.method for record in shown))
        what = "Best reward so far against tokens forwarded" if name == "anytime" else "Kept share of each block"
        return f"{what}, for {methods or 'no method yet'}."
    parts = [f"{r.cell.method} at {float(r.cell.sparsity):.0%}: PPL {r.row['ppl']:.2f}" for r in records if r.done]
    return f"Perplexity against tokens forwarded. {'; '.join(parts) or 'No cell is finished yet'}."


def _cell(project: Project, record: Record) -> dict[str, Any]:
    """What the page tells of one cell: where its figures come from, and how to make them again."""
    body = record.allocation or {}
    provenance = {
        "search": (record.cost or {}).get("provenance") or body.get("provenance"),
        "evaluation": (record.scores or {}).get("provenance"),
    }
    facts = {
        "figures": {key: value for key, value in record.row.items() if value is not None},
        "settings of the search": body.get("settings"),
        "settings of the evaluation": (record.scores or {}).get("settings"),
        "tasks": {k: {"version": t["version"], "hash": t["hash"], "n": t["n"]} for k, t in record.tasks.items()},
        "search cost": {k: v for k, v in (record.cost or {}).items() if k not in ("schema", "provenance")},
        **{f"provenance of the {step}": facts for step, facts in provenance.items()},
    }
    return {
        "path": record.cell.path,
        "status": record.row["status"],
        "reason": record.row.get("reason"),
        "notes": record.notes,
        "facts": {name: _flat(value) for name, value in facts.items() if value},
        "commands": [] if record.row["status"] == "skipped" else commands(project, record),
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


def commands(project: Project, record: Record) -> list[str]:
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
        lines.append(_command("allocate", {**common, **calibration, "out": folder}))
        apply = {**common, **calibration, "allocation": folder / "allocation.json", "out": folder}
        lines.append(_command("apply", apply))
        evaluate["cut"] = folder
    return [*lines, _command("evaluate", {**evaluate, "out": folder / "scores.json"})]


def _command(step: str, options: dict[str, Any]) -> str:
    return " ".join(["ffp", step, *(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())])
