"""Builds the report. Its page is one HTML file that opens offline and asks nothing of a server."""

import base64
import gzip
import importlib.util
import json
import logging
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from ffp.config import Experiment
from ffp.report import captions, plots, tables
from ffp.report.collect import Block, Record, bits_column, collect
from ffp.report.details import command, details, shared
from ffp.report.groups import Group, by_block, group
from ffp.store.files import write_text
from ffp.store.layout import Layout, ReportFiles

log = logging.getLogger("ffp")
TITLES = {
    "overview": "The grid at a glance",
    "quality_cost": "Quality against search tokens",
    "quality_time": "Quality against search seconds",
    "anytime": "Progress of the searches",
    "allocation": "Where the parameters were kept",
    "models": "Models side by side",
}
CELL_NAMES = ("model", "granularity", "sparsity (%)", "method", "seed", "status")
METRICS = ("mean_acc", "model_sparsity", "search_tokens")


def build(experiment: Experiment, out: Path) -> Path:
    """Writes the report of a grid, finished or not, into the folder `out` and returns the path of its page.

    Its files are store.layout.ReportFiles. The same artifacts and configuration give the same bytes. A damaged
    artifact becomes a failed row.
    """
    files = ReportFiles(Path(out))
    records = collect(experiment)
    said = ", ".join(f"{count} {status}" for status, count in captions.counts(records).items())
    log.info("report: %d cells, %s", len(records), said)
    groups = group(records)
    makers = (tables.winners, tables.comparison, tables.ranking, tables.tasks, tables.ablation)
    texts = {make.__name__: make(experiment, groups) for make in makers}
    tables.write_figures(records, groups, files)
    tables.write_texts(texts, captions.tables(experiment, records), files)
    plots.draw(experiment, groups, files)
    write_text(files.metrics, json.dumps(metrics(records), indent=1, allow_nan=False) + "\n")
    write_text(files.page, render(experiment, records, groups, texts))
    return files.page


def metrics(records: list[Record]) -> dict[str, float]:
    """Returns the figures of finished cells as "<cell>/ppl" and so on, and the number of cells, for `dvc metrics`."""
    found: dict[str, float] = {"cells_done": sum(record.done for record in records), "cells": len(records)}
    for record in (record for record in records if record.done):
        measured = [key for key in record.perplexities if key != "ppl_before"]
        names = [*measured, *map(bits_column, measured), *METRICS]
        known = [name for name in names if record.row.get(name) is not None]
        found |= {f"{record.cell.path}/{name}": record.row[name] for name in known}
    return found


def render(experiment: Experiment, records: list[Record], groups: list[Group], texts: dict[str, tables.Table]) -> str:
    """Returns the page. The template engine escapes every label; a cell's data are shown as text by page.js."""
    here, datatables = resources.files("ffp.report"), _datatables()
    style = datatables.joinpath("dt_bundle.css").read_text("utf-8") + here.joinpath("page.css").read_text("utf-8")
    figures = cell_figures(experiment, records)
    return captions.template("template.html", autoescape=True).render(
        title=experiment.grid.title,
        counts=captions.counts(records),
        filters=filters(experiment),
        tables=texts,
        captions=captions.tables(experiment, records) | {"comparison": captions.reading(experiment, records)},
        uncontrolled=captions.uncontrolled(experiment, records),
        figures=list(_figures(experiment, groups, records)),
        shared=[shared(experiment, model) for model in experiment.grid.models],
        cell_names=CELL_NAMES,
        cell_figures=figures.values(),
        titles=_script_json({name: model.title for name, model in experiment.models.items()}),
        cells=_script_json([_cell_line(record, figures) for record in records]),
        details=_packed({record.cell.path: details(experiment, record) for record in records}),
        command=command("report", config=experiment.file, out=Layout.from_grid(experiment.as_written).report.folder),
        style=Markup(style),
        script=Markup(here.joinpath("page.js").read_text("utf-8")),
        datatables=base64.b64encode(datatables.joinpath("dt_bundle.js").read_bytes()).decode(),
    )


def _datatables() -> Path:
    """The folder of DataTables' files. Importing itables for it would read its settings in the user's home."""
    found = importlib.util.find_spec("itables")
    assert found is not None and found.submodule_search_locations  # a requirement of the package
    return Path(found.submodule_search_locations[0]) / "html"


def filters(experiment: Experiment) -> dict[str, dict[str, str]]:
    """Returns the page's filters: by name, the shown text of each value that a cell of the grid can have."""
    return {
        "model": {name: model.title for name, model in experiment.models.items()},
        "granularity": {name: name for name in experiment.grid.granularities},
        "sparsity": {f"{sparsity:.2f}": f"{sparsity:.0%}" for sparsity in experiment.grid.all_sparsities},
    }


def _figures(experiment: Experiment, groups: list[Group], records: list[Record]) -> Iterator[dict[str, Any]]:
    """Yields each figure with one panel per block of the grid, so that the page can filter them."""
    dense = {members[0].block[:2]: members for members in by_block(g for g in groups if g.method == "dense").values()}
    blocks = by_block(g for g in groups if not g.is_dense and g.row["status"] != "skipped")
    labels = {g.done[0].cell.path: f"{g.path}: PPL {g.row['ppl']:.2f}" for g in groups if g.done}
    for name, title in TITLES.items():
        shown = []
        whole_grid: dict[Block, list[Group]] = {("", "", ""): [g for members in blocks.values() for g in members]}
        chosen = {"models": _side_by_side(blocks), "overview": whole_grid if blocks else {}}.get(name, blocks)
        for index, (block, members) in enumerate(chosen.items()):
            own = [key for key in dense if all(part in ("", of) for part, of in zip(block, key, strict=False))]
            base = [g for key in own for g in dense[key]]
            svg = plots.inline(experiment, [*base, *members], name, f"{name}-{index}")
            shown.append({"block": block, "alt": _alt(name, members), "svg": _linked(svg, labels)})
        if shown or name != "models":
            caption = captions.figure(experiment, name, records)
            yield {"name": name, "title": title, "caption": caption, "panels": shown}


def _side_by_side(blocks: dict[Block, list[Group]]) -> dict[Block, list[Group]]:
    """The groups of all models by granularity and sparsity; none in a grid of one model."""
    found: dict[Block, list[Group]] = {}
    for (_, granularity, sparsity), members in blocks.items():
        found.setdefault(("", granularity, sparsity), []).extend(members)
    return found if len({model for model, *_ in blocks}) > 1 else {}


def _linked(svg: str, labels: dict[str, str]) -> Markup:
    """Names each point that links to a cell, for hovering and for screen readers."""

    def named(match: re.Match[str]) -> str:
        return f'<a href="#{match[1]}"><title>{escape(labels[match[1]])}</title>'

    return Markup(re.sub(r'<a xlink:href="#([^"]+)"[^>]*>', named, svg))


def _alt(name: str, groups: list[Group]) -> str:
    """Describes a panel in words: what it shows, and its figures if they are few."""
    if name == "overview":
        parts = [f"{g.block[0]} {float(g.block[2]):.0%} {g.method} PPL {g.row['ppl']:.2f}" for g in groups if g.done]
        return f"Loss over the dense model of every method: {'; '.join(parts) or 'no cell is finished yet'}."
    model, granularity, sparsity = groups[0].block
    where = f"{model}, {granularity}, {float(sparsity):.0%} sparsity"
    if name == "allocation":
        return f"{where}: kept share of each block, for {', '.join(g.method for g in groups)}."
    if name == "models":
        parts = [f"{g.block[0]} {g.method} PPL {g.row['ppl']:.2f}" for g in groups if g.done]
        return f"All models, {granularity}, {float(sparsity):.0%} sparsity: {'; '.join(parts)}."
    if name == "anytime":
        what = "loss over dense of each search's answer against tokens forwarded, at the end"
        ends = {g.method: plots.progress(g)[1].mean(0) for g in groups if plots.progress(g)[0].size}
        parts = [f"{method} {losses[-1]:.3f}" for method, losses in ends.items()]
        return f"{where}: {what}: {'; '.join(parts) or 'no search has scored its answers yet'}."
    unit = {"quality_cost": "tokens forwarded", "quality_time": "seconds of search"}[name]
    parts = [f"{g.method} PPL {g.row['ppl']:.2f}" for g in groups if g.done]
    return f"{where}: perplexity against {unit}. {'; '.join(parts) or 'No cell is finished yet'}."


def cell_figures(experiment: Experiment, records: list[Record]) -> dict[str, tuple[str, int]]:
    """Returns the figures in the table of all cells: by column, the heading and the digits behind the point."""
    texts = tables.text_headings(experiment)
    known = [key for key in texts if any(bits_column(key) in record.row for record in records)]
    bits = {bits_column(key): (tables.bits_heading(texts[key]), 3) for key in known}
    perplexities = {key: (heading, 2) for key, heading in texts.items()}
    return {**perplexities, **bits, "search_tokens": ("search tokens", 0), "search_s": ("search (s)", 1)}


def _cell_line(record: Record, figures: dict[str, tuple[str, int]]) -> list[Any]:
    """The entries of CELL_NAMES and of the figures for a cell; None for a number that is not known."""
    cell, row = record.cell, record.row
    names = [cell.model, cell.granularity, cell.sparsity, cell.method, cell.seed, tables.status(row)]
    values = [(row.get(key), digits) for key, (_, digits) in figures.items()]
    return [*names, *(value if value is None else round(value, digits) for value, digits in values)]


def _script_json(value: Any) -> Markup:
    """Returns JSON that may stand in a script element."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _packed(value: Any) -> str:
    """Returns JSON, gzipped, in base64: cells repeat each other's provenance, so that 2,000 of them stay small."""
    text = json.dumps(value, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
