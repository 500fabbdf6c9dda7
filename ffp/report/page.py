"""The report's entry point, and its page: one HTML file that opens offline and asks nothing of any server."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ffp.config import Experiment
from ffp.report import captions, plots, tables
from ffp.report.collect import Record, collect
from ffp.report.details import calibration_cost, command, details, inputs
from ffp.report.groups import Group, by_block, group
from ffp.store.files import whole

TITLES = {
    "quality_cost": "Quality against search tokens",
    "quality_time": "Quality against search seconds",
    "anytime": "Progress of the searches",
    "allocation": "Where the parameters were kept",
}
CELL_COLUMNS = (
    "model",
    "granularity",
    "sparsity (%)",
    "method",
    "seed",
    "status",
    "PPL",
    "search tokens",
    "search (s)",
)
CELL_FIGURES = ("ppl", "search_tokens", "search_s")


def build(project: Experiment, out: Path) -> Path:
    """Write tables, plots, metrics.json and index.html for a grid, finished or not; return the page's path.

    The same artifacts and configuration give the same bytes. A damaged artifact becomes a failed row.
    """
    out = Path(out)
    records = collect(project)
    groups = group(records)
    texts = {
        "comparison": tables.comparison(project, groups),
        "tasks": tables.tasks(project, groups),
        "ablation": tables.ablation(project, groups),
    }
    tables.write_figures(records, groups, out)
    tables.write_texts(texts, captions.tables(project, records), out)
    plots.draw(project, groups, out)
    with whole(out / "metrics.json") as partial:
        partial.write_text(json.dumps(metrics(records), indent=1, allow_nan=False) + "\n")
    page = out / "index.html"
    with whole(page) as partial:
        partial.write_text(render(project, records, groups, texts), encoding="utf-8")
    return page


def metrics(records: list[Record]) -> dict[str, float]:
    """Flat figures of the finished cells, for `dvc metrics`: "<cell>/ppl" and so on, and the number of cells done."""
    found: dict[str, float] = {"cells_done": sum(record.done for record in records), "cells": len(records)}
    for record in records:
        for name in ("ppl", "mean_acc", "model_sparsity", "search_tokens"):
            if record.done and record.row.get(name) is not None:
                found[f"{record.cell.path}/{name}"] = record.row[name]
    return found


def render(project: Experiment, records: list[Record], groups: list[Group], texts: dict[str, tables.Table]) -> str:
    """The page; every label is escaped by the template engine, or before it goes into a cell's data."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    here, datatables = resources.files("ffp.report"), resources.files("itables").joinpath("html")
    template = environment.from_string(here.joinpath("template.html").read_text(encoding="utf-8"))
    grid = project.grid
    return template.render(
        title=grid.title,
        counts=captions.counts(records),
        filters={
            "model": {name: model.title for name, model in project.models.items()},
            "granularity": {name: name for name in grid.granularities},
            "sparsity": {f"{sparsity:.2f}": f"{sparsity:.0%}" for sparsity in grid.sparsities},
        },
        tables=texts,
        captions=captions.tables(project, []) | {"comparison": list(captions.reading(project, records))},
        uncontrolled=captions.uncontrolled(project, records),
        figures=_figures(project, groups),
        shared=[_shared(project, model) for model in grid.models],
        cell_columns=CELL_COLUMNS,
        titles=_script_json({name: model.title for name, model in project.models.items()}),
        cells=_script_json([_cell_line(record) for record in records]),
        details=_packed({record.cell.path: details(project, record) for record in records}),
        command=command("report", config=project.file, out=f"{grid.results}/report"),
        style=Markup(
            datatables.joinpath("dt_bundle.css").read_text("utf-8") + here.joinpath("page.css").read_text("utf-8")
        ),
        script=Markup(here.joinpath("page.js").read_text(encoding="utf-8")),
        datatables=base64.b64encode(datatables.joinpath("dt_bundle.js").read_bytes()).decode(),
    )


def _figures(project: Experiment, groups: list[Group]) -> Iterable[dict[str, Any]]:
    """Each figure with one panel a block of the grid, so that the page can show those that a reader asks for."""
    dense = {members[0].block[:2]: members for members in by_block(g for g in groups if g.method == "dense").values()}
    blocks = by_block(g for g in groups if g.method != "dense" and g.row["status"] != "skipped")
    labels = {g.done[0].cell.path: f"{g.path}: PPL {g.row['ppl']:.2f}" for g in groups if g.done}
    for name, title in TITLES.items():
        panels = [
            {"block": block, "alt": _alt(name, members),
             "svg": _linked(plots.inline(project, [*dense.get(block[:2], []), *members], name, f"{name}-{i}"), labels)}
            for i, (block, members) in enumerate(blocks.items())
        ]  # fmt: skip
        yield {"name": name, "title": title, "caption": captions.figure(project, name), "panels": panels}


def _linked(svg: str, labels: dict[str, str]) -> Markup:
    """The SVG with a name on each point that links to a cell, for hovering and for screen readers."""
    named = re.sub(
        r'<a xlink:href="#([^"]+)"[^>]*>',
        lambda match: f'<a href="#{match[1]}"><title>{escape(labels[match[1]])}</title>', svg,
    )  # fmt: skip
    return Markup(named)


def _alt(name: str, groups: list[Group]) -> str:
    """A panel in words: what it shows, and the figures of the finished cells."""
    model, granularity, sparsity = groups[0].block
    where = f"{model}, {granularity}, {float(sparsity):.0%} sparsity"
    if name.startswith("quality"):
        unit = {"quality_cost": "tokens forwarded", "quality_time": "seconds of search"}[name]
        parts = [f"{g.method} PPL {g.row['ppl']:.2f}" for g in groups if g.done]
        return f"{where}: perplexity against {unit}. {'; '.join(parts) or 'No cell is finished yet'}."
    what = "best reward so far against tokens forwarded" if name == "anytime" else "kept share of each block"
    return f"{where}: {what}, for {', '.join(g.method for g in groups)}."


def _shared(project: Experiment, model: str) -> dict[str, Any]:
    """What all cells of a model share: the commands that fetch and calibrate, and what calibration cost."""
    cost = calibration_cost(project, model) or {}
    return {
        "title": project.models[model].title,
        "commands": inputs(project, model),
        "cost": {key: cost[key] for key in ("wall_s", "n_tokens", "peak_mem_bytes") if key in cost},
    }


def _cell_line(record: Record) -> list[Any]:
    """A cell's row in the list of all cells, in the order of CELL_COLUMNS: names and numbers, null where unknown."""
    cell, row = record.cell, record.row
    names = [cell.model, cell.granularity, cell.sparsity, cell.method, cell.seed, tables.status(row)]
    return [*names, *(row.get(key) if row.get(key) is None else round(row[key], 2) for key in CELL_FIGURES)]


def _script_json(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _packed(value: Any) -> str:
    """JSON, gzipped, in base64: cells repeat each other's provenance, so that 2,000 of them take little room."""
    text = json.dumps(value, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
