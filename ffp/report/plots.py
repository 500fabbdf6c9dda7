"""The figures: quality against cost, progress of the searches, and where the parameters were kept.

One panel for each model, granularity and sparsity; one colour and marker per method in all of them. Seeds of a method
are drawn as their mean with their spread.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from ffp.allocators import registry
from ffp.config import Experiment
from ffp.report.collect import Record
from ffp.report.groups import Block, Group, by_block
from ffp.store.files import whole

# Okabe and Ito's colours, which stay apart for colour-blind readers; the markers keep them apart in grey.
PALETTE = ("#7F7F7F", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8A800")
MARKERS = ("s", "^", "o", "D", "v", "P", "X", "*")
TITLE_WIDTH = 46  # characters over a panel
LEGEND_LINE = 0.21  # inches
SPACING, ROOM = 11.0, 50.0  # between markers of equal cost, and for all of them, in typographic points
DASHES = (0, (5, 3))
LINES = ("-", (0, (4, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
# The colours of text and grid: no method has them, so that the page can put those of its theme in their place.
INK, GRID, PAPER = "#1B1B1B", "#DDDDDD", "#FEFEFE"
STYLE: Any = {
    "svg.hashsalt": "ffp",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.usetex": False,
    "text.parse_math": False,
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": 160},
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn everywhere. line: a matplotlib line style."""

    colour: str
    marker: str
    line: Any


def looks(project: Experiment) -> dict[str, Look]:
    """Look by method of the grid: a registered method keeps its colour unless another one of the grid has taken it."""
    names = [name for name in registry.METHODS if name in project.grid.methods]
    names += [name for name in project.grid.methods if name not in registry.METHODS]
    places = {name: place for place, name in enumerate(registry.METHODS)}
    taken: dict[str, int] = {}
    for name in names:
        wanted = places.get(name, len(places) + len(taken))
        used = Counter(taken.values())
        taken[name] = min(((wanted + step) % len(PALETTE) for step in range(len(PALETTE))), key=lambda p: used[p])
    turns = {name: list(taken.values())[:i].count(taken[name]) for i, name in enumerate(names)}
    return {
        name: Look(PALETTE[place], MARKERS[(place + turns[name]) % len(MARKERS)], LINES[turns[name] % len(LINES)])
        for name, place in taken.items()
    }


def draw(project: Experiment, groups: list[Group], out: Path) -> None:
    """Write each figure as SVG, PDF and PNG, the same bytes for the same cells."""
    for name, make in FIGURES.items():
        with _style({"svg.fonttype": "path"}):
            figure = make(project, groups)
            for kind, options in KINDS.items():
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, **options)
                with whole(out / f"{name}.{kind}") as partial:
                    partial.write_bytes(buffer.getvalue())


def inline(project: Experiment, groups: list[Group], name: str, identifier: str) -> str:
    """A figure of these groups as an SVG element for a page, in the colours of the page's theme.

    identifier: what all ids in it begin with, so that several fit in one page. Points link to "#<cell's path>".
    """
    with _style({"svg.fonttype": "none"}):
        buffer = io.BytesIO()
        FIGURES[name](project, groups).savefig(buffer, format="svg", transparent=True, **KINDS["svg"])
    svg = buffer.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg ") :], flags=re.DOTALL)
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    svg = re.sub(r'(\bid="|url\(#|href="#)([^")]+)', lambda m: m[1] + (f"{identifier}-" * (m[2] in ids)) + m[2], svg)
    for colour, variable in ((INK, "--fg"), (GRID, "--line"), (PAPER, "--bg")):
        svg = svg.replace(colour.lower(), f"var({variable})")
    return svg


@contextmanager
def _style(extra: Any) -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, **extra})
        yield


def quality_cost(project: Experiment, groups: list[Group]) -> Figure:
    """Perplexity against search tokens; methods that forward nothing stand at zero, their level drawn across."""
    return _quality(project, groups, "search_tokens", "search cost (tokens forwarded)")


def quality_time(project: Experiment, groups: list[Group]) -> Figure:
    """Perplexity against the seconds of the search, without loading and calibration."""
    return _quality(project, groups, "search_s", "search cost (seconds)")


def _quality(project: Experiment, groups: list[Group], cost: str, label: str) -> Figure:
    blocks = by_block(g for g in groups if g.done and g.method != "dense")
    if not blocks:
        return _empty("No cell is finished yet.")
    figure, axes = _panels(project, blocks)
    style = looks(project)
    for block, axis in zip(blocks, axes, strict=True):
        dense = next((g for g in groups if g.done and g.method == "dense" and g.block[:2] == block[:2]), None)
        _quality_panel(figure, axis, blocks[block], style, cost, dense.row["ppl"] if dense else None)
        axis.set_xlabel(label)
        axis.set_ylabel("test perplexity (lower is better)")
    extra = [Line2D([], [], color=INK, linewidth=1, label="Pareto front"),
             Line2D([], [], color=INK, linestyle=DASHES, label="dense model")]  # fmt: skip
    _legend(figure, style, [g for members in blocks.values() for g in members], extra, lines=False)
    return figure


def _quality_panel(
    figure: Figure, axis: Axes, groups: list[Group], style: Mapping[str, Look], cost: str, dense: float | None
) -> None:
    """Points that would hide each other stand side by side; the front and the levels are exact."""
    points = [(_cost(group.row, cost), float(group.row["ppl"])) for group in groups]
    errors = [float(group.row.get("ppl_sd", group.row.get("ppl_stderr") or 0.0)) for group in groups]
    for group, (x, ppl), error, shift in zip(groups, points, errors, shifts(points), strict=True):
        look = style[group.method]
        beside = offset_copy(axis.transData, fig=figure, x=shift, units="points")
        drawn = axis.errorbar(x, ppl, yerr=error, color=look.colour, marker=look.marker, markersize=8, capsize=3,
                              linestyle="none", markeredgecolor=PAPER, markeredgewidth=0.8, zorder=4,
                              transform=beside)  # fmt: skip
        drawn.lines[0].set_url(f"#{group.done[0].cell.path}")
        if len(group.done) > 1:
            cells = [(_cost(record.row, cost), float(record.row["ppl"])) for record in group.done]
            axis.plot(*zip(*cells, strict=True), color=look.colour, marker=look.marker, markersize=3, alpha=0.6,
                      linestyle="none", zorder=3, transform=beside)  # fmt: skip
        if not x:
            axis.axhline(ppl, color=look.colour, linewidth=1, linestyle=":", zorder=2)
    front = pareto(points)
    axis.step([x for x, _ in front], [y for _, y in front], where="post", color=INK, linewidth=1, zorder=3)
    if dense is not None:
        axis.axhline(dense, color=INK, linestyle=DASHES, linewidth=1.2, zorder=2)
    _cost_axis(axis, sorted({x for x, _ in points}))
    seeds = [float(record.row["ppl"]) for group in groups for record in group.done]
    low = min([max(ppl - error, ppl / 2) for (_, ppl), error in zip(points, errors, strict=True)] + seeds)
    high = max([ppl + error for (_, ppl), error in zip(points, errors, strict=True)] + seeds)
    _ppl_axis(axis, min(low, dense or low), max(high, dense or high))


def _cost(row: Mapping[str, Any], key: str) -> float:
    """A search's cost; zero for methods that forward nothing, whose seconds are no search."""
    return float(row.get(key) or 0) if row.get("search_tokens") else 0.0


def shifts(points: list[tuple[float, float]]) -> list[float]:
    """Horizontal offsets in typographic points, for markers that would hide each other.

    Neighbours within 2 % of the largest cost and 7 % of the range of log perplexity stand SPACING points apart, or
    closer where the axis has no room for so many.
    """
    reach = 0.02 * max(cost for cost, _ in points)
    logs = [math.log(ppl) for _, ppl in points]
    close = 0.07 * (max(logs) - min(logs))
    offsets = [0.0] * len(points)
    chain: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (round(points[i][0] / (reach or 1)), logs[i])):
        last = chain[-1] if chain else index
        if abs(points[index][0] - points[last][0]) > reach or logs[index] - logs[last] > close:
            chain = []
        chain.append(index)
        step = min(SPACING, ROOM / max(1, len(chain) - 1))
        for place, member in enumerate(sorted(chain)):
            offsets[member] = step * (place - (len(chain) - 1) / 2)
    return offsets


def _cost_axis(axis: Axes, costs: list[float]) -> None:
    """From zero to the dearest search; logarithmic above zero where costs span more than a factor of twenty."""
    searched = [tokens for tokens in costs if tokens]
    if not searched:
        axis.set_xlim(-1, 1)
        axis.set_xticks([0])
    elif searched[-1] > 20 * searched[0]:
        axis.set_xscale("symlog", linthresh=searched[0] / 2)
        axis.set_xlim(-searched[0] / 5, searched[-1] * 2)
    else:
        axis.set_xlim(-0.15 * searched[-1], 1.15 * searched[-1])
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(_metric_prefix))


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, loss) points that no other point beats in both, by ascending cost."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _ppl_axis(axis: Axes, low: float, high: float) -> None:
    """Logarithmic where the panel spans more than a factor of four, with plain numbers either way."""
    if high > 4 * low > 0:
        axis.set_yscale("log")
        axis.set_ylim(low / 1.15, high * 1.15)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 300 * low else (1,)))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.08 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def anytime(project: Experiment, groups: list[Group]) -> Figure:
    """Best reward at the target so far against tokens forwarded: mean over seeds, and the band that holds all seeds."""
    blocks = by_block(g for g in groups if any(_traced(record) for record in g.records))
    if not blocks:
        return _empty("No search has been traced yet.")
    figure, axes = _panels(project, blocks)
    style = looks(project)
    for block, axis in zip(blocks, axes, strict=True):
        for group in blocks[block]:
            look = style[group.method]
            tokens, curves = progress([record for record in group.records if _traced(record)])
            axis.step(tokens, curves.mean(0), where="post", color=look.colour, linewidth=1.6, linestyle=look.line,
                      marker=look.marker, markevery=[-1], markersize=7, markeredgecolor=PAPER)  # fmt: skip
            if len(curves) > 1:
                axis.fill_between(tokens, curves.min(0), curves.max(0), step="post", color=look.colour, alpha=0.2,
                                  linewidth=0)  # fmt: skip
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(FuncFormatter(_metric_prefix))
        axis.set_xlabel("search cost (tokens forwarded)")
        axis.set_ylabel("best reward so far\n(dense PPL / pruned PPL)")
    _legend(figure, style, [g for members in blocks.values() for g in members], [])
    return figure


def _traced(record: Record) -> bool:
    return record.trace is not None and bool(record.trace["best"].notna().any())


def progress(records: list[Record]) -> tuple[Any, Any]:
    """(tokens, (n_seeds, n_tokens) best rewards): where any seed improves, from where all have a reward to the end."""
    traces = []
    for record in records:
        known = record.trace[record.trace["best"].notna()]
        tokens, best = known["tokens"].to_numpy(float), known["best"].to_numpy(float)
        steps = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)
        traces.append((tokens[steps], best[steps], tokens[-1]))
    start, end = max(trace[0][0] for trace in traces), max(trace[2] for trace in traces)
    inside = np.unique(np.concatenate([trace[0] for trace in traces]))
    grid = np.unique(np.array([start, *inside[(inside > start) & (inside < end)], end]))
    return grid, np.array([best[np.searchsorted(tokens, grid, side="right") - 1] for tokens, best, _ in traces])


def allocation(project: Experiment, groups: list[Group]) -> Figure:
    """Share kept by each block, mean over seeds: a line of tiles per method, a row of panels per block of the grid."""
    allocated = [group for group in groups if any(_allocated(record) for record in group.records)]
    blocks = by_block(allocated)
    if not blocks:
        return _empty("No allocation is finished yet.")
    kinds = {block: list(mean_shares(members[0])) for block, members in blocks.items()}
    panels = [(block, kind) for block in blocks for kind in kinds[block]]
    tallest, columns = (max(map(len, parts.values())) for parts in (blocks, kinds))
    longest = max(len(group.method) for group in allocated)
    shape: dict[str, Any] = {"columns": columns, "width": 3.8 + 0.09 * longest, "height": 1.3 + 0.24 * tallest}
    figure, axes = _panels(project, [block for block, _ in panels], **shape)
    style = looks(project)
    for (block, kind), axis in zip(panels, axes, strict=True):
        tiles: Any = _tiles(axis, blocks[block], kind, style)
        axis.set_title(f"{axis.get_title()}, {_kind_title(kind)}", fontsize=10)
    pad = 0.2 / figure.get_figheight()
    figure.colorbar(tiles, ax=axes, location="top", label="kept (% of units)", shrink=0.6, aspect=45, pad=pad)
    return figure


def _allocated(record: Record) -> bool:
    return bool(record.allocation and record.allocation.get("status") == "done" and record.row["status"] != "failed")


def _tiles(axis: Axes, groups: list[Group], kind: str, style: Mapping[str, Look]) -> Any:
    """A panel: methods down, blocks across; a block that a method lacks stays empty."""
    shares = [mean_shares(group).get(kind, {}) for group in groups]
    count = 1 + max((max(share, default=0) for share in shares), default=0)
    values = [[100 * share.get(block, math.nan) for block in range(count)] for share in shares]
    tiles = axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto", interpolation="none")
    axis.set_yticks(range(len(groups)), [group.method for group in groups])
    for label, group in zip(axis.get_yticklabels(), groups, strict=True):
        label.set_color(style[group.method].colour)
        label.set_fontweight("bold")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=False)
    axis.set_yticks([row - 0.5 for row in range(1, len(groups))], minor=True)
    axis.grid(visible=True, which="minor", axis="y", color=PAPER, linewidth=2)
    axis.tick_params(which="both", length=0)
    axis.set_xlabel("block")
    return tiles


def mean_shares(group: Group) -> dict[str, dict[int, float]]:
    """kept_shares, mean over the seeds that have an allocation."""
    shares = [kept_shares(record) for record in group.records if _allocated(record)]
    return {
        kind: {block: float(np.mean([share[kind][block] for share in shares])) for block in shares[0][kind]}
        for kind in shares[0]
    }


def kept_shares(record: Record) -> dict[str, dict[int, float]]:
    """Kept units / units by kind of module ("ffn") and block number, from names such as "block03.ffn".

    Several decisions of one kind in one block (single matrices) count by their parameters.
    """
    body = record.allocation or {}
    sums: dict[str, dict[int, tuple[float, float]]] = {}
    for decision, keep in zip(body["problem"]["decisions"], body["keep"], strict=True):
        name, n_units, params_per_unit = (decision[k] for k in ("name", "n_units", "params_per_unit"))
        number, _, kind = str(name).partition(".")
        digits = re.search(r"\d+", number)
        if digits:
            by_number = sums.setdefault(kind.partition(".")[0], {})
            kept, whole = by_number.get(int(digits[0]), (0.0, 0.0))
            by_number[int(digits[0])] = (kept + keep * params_per_unit, whole + n_units * params_per_unit)
    return {kind: {block: kept / whole for block, (kept, whole) in part.items()} for kind, part in sums.items()}


def _kind_title(kind: str) -> str:
    return {"": "whole blocks", "attn": "attention", "ffn": "FFN", "mlp": "FFN"}.get(kind, kind)


def _panels(
    project: Experiment, blocks: Iterable[Block], *, columns: int = 0, width: float = 4.6, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    """A figure with a titled panel for each of `blocks`; by default the sparsities of a model stand side by side."""
    blocks = list(blocks)
    columns = columns or max(1, min(3, len({block[2] for block in blocks})))
    rows = -(-len(blocks) // columns)
    figure = Figure(figsize=(max(6.4, width * columns), height * rows + 0.7), layout="constrained")
    several = len({block[1] for block in blocks}) > 1
    axes = []
    for index, (model, granularity, sparsity) in enumerate(blocks):
        axes.append(figure.add_subplot(rows, columns, index + 1))
        kind = f", {granularity}" if several else ""
        name = textwrap.fill(f"{project.models[model].title}{kind}", TITLE_WIDTH)
        axes[-1].set_title(f"{name}\n{float(sparsity):.0%} sparsity", fontsize=10)
    return figure, axes


def _legend(
    figure: Figure, style: Mapping[str, Look], groups: list[Group], extra: list[Line2D], *, lines: bool = True
) -> None:
    """One legend above the panels, with the methods that were drawn: as many columns as the figure is wide, and the
    figure as much taller as its lines ask for.
    """
    drawn = {group.method for group in groups}
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=7, markeredgecolor=PAPER, label=name,
               linestyle=look.line if lines else "none")
        for name, look in style.items() if name in drawn
    ]  # fmt: skip
    handles += extra
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), max(1, int(figure.get_figwidth() * 72 / (6 * longest + 50))))
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (-(-len(handles) // columns) - 1))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def _empty(text: str) -> Figure:
    figure = Figure(figsize=(6.4, 1.6))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _metric_prefix(value: float, _: Any) -> str:
    """A number with a metric prefix: 250k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


FIGURES: Mapping[str, Callable[[Experiment, list[Group]], Figure]] = {
    "quality_cost": quality_cost,
    "quality_time": quality_time,
    "anytime": anytime,
    "allocation": allocation,
}
