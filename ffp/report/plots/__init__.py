"""The figures: one panel for each model, granularity and sparsity; a method looks the same in all of them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from ffp.config import Experiment
from ffp.report.groups import Group
from ffp.report.plots.allocation import allocation
from ffp.report.plots.anytime import anytime, progress
from ffp.report.plots.quality import quality_cost, quality_time
from ffp.report.plots.style import GRID, INK, PAPER, looks, style
from ffp.store.files import whole
from ffp.store.layout import ReportFiles

__all__ = ["FIGURES", "draw", "inline", "looks", "progress"]

FIGURES: Mapping[str, Callable[[Experiment, list[Group]], Figure]] = {
    "quality_cost": quality_cost,
    "quality_time": quality_time,
    "anytime": anytime,
    "allocation": allocation,
}
# By kind of file: without dates and versions, so that the same figure gives the same bytes.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": 160},
}


def draw(experiment: Experiment, groups: list[Group], files: ReportFiles) -> None:
    """Writes each figure as SVG, PDF and PNG; the same cells give the same bytes."""
    for name, make in FIGURES.items():
        with style({"svg.fonttype": "path"}):
            figure = make(experiment, groups)
            for kind, options in OPTIONS.items():
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, **options)
                with whole(files.file(name, kind)) as partial:
                    partial.write_bytes(buffer.getvalue())


def inline(experiment: Experiment, groups: list[Group], name: str, identifier: str) -> str:
    """Returns a figure as an SVG element for a page, in the colours of the page's theme.

    Points link to "#<path of the cell>".

    Args:
        experiment: The grid.
        groups: What to draw.
        name: A key of FIGURES.
        identifier: What all ids in it begin with, so that several figures fit in one page.
    """
    with style({"svg.fonttype": "none"}):
        buffer = io.BytesIO()
        FIGURES[name](experiment, groups).savefig(buffer, format="svg", transparent=True, **OPTIONS["svg"])
    svg = buffer.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg ") :], flags=re.DOTALL)
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    svg = re.sub(r'(\bid="|url\(#|href="#)([^")]+)', lambda m: m[1] + (f"{identifier}-" * (m[2] in ids)) + m[2], svg)
    for colour, variable in ((INK, "--fg"), (GRID, "--line"), (PAPER, "--bg")):
        svg = svg.replace(colour.lower(), f"var({variable})")
    return svg
