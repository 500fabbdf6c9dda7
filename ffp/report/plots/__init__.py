"""The figures: one panel for each model, granularity and sparsity; a method looks the same in all of them."""

import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from ffp.config import Experiment
from ffp.report.groups import Group
from ffp.report.plots.allocation import allocation
from ffp.report.plots.anytime import anytime, progress
from ffp.report.plots.models import models
from ffp.report.plots.overview import overview
from ffp.report.plots.quality import quality_against_cost
from ffp.report.plots.style import GRID, INK, PAPER, STYLE, looks
from ffp.store.files import whole
from ffp.store.layout import ReportFiles

__all__ = ["FIGURES", "draw", "inline", "looks", "progress"]

FIGURES: Mapping[str, Callable[[Experiment, list[Group]], Figure]] = {
    "overview": overview,
    "quality_cost": partial(quality_against_cost, cost="search_tokens", label="search cost (tokens forwarded)"),
    "quality_time": partial(quality_against_cost, cost="search_s", label="search cost (seconds)"),
    "anytime": anytime,
    "allocation": allocation,
    "models": models,
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
        with matplotlib.style.context(STYLE | {"svg.fonttype": "path"}, after_reset=True):
            figure = make(experiment, groups)
            for kind, options in OPTIONS.items():
                with whole(files.file(name, kind)) as partial:
                    figure.savefig(partial, format=kind, **options)


def inline(experiment: Experiment, groups: list[Group], name: str, identifier: str) -> str:
    """Returns a figure as an SVG element in the colours of the page's theme, with links to "#<path of the cell>".

    All ids in it begin with `identifier`, so that several figures fit in one page.
    """
    with matplotlib.style.context(STYLE | {"svg.fonttype": "none"}, after_reset=True):
        buffer = io.BytesIO()
        FIGURES[name](experiment, groups).savefig(buffer, format="svg", transparent=True, **OPTIONS["svg"])
    svg = buffer.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg ") :], flags=re.DOTALL)
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    svg = re.sub(r'(\bid="|url\(#|href="#)([^")]+)', lambda m: m[1] + (f"{identifier}-" * (m[2] in ids)) + m[2], svg)
    for colour, variable in ((INK, "--fg"), (GRID, "--line"), (PAPER, "--bg")):
        svg = svg.replace(colour.lower(), f"var({variable})")
    return svg
