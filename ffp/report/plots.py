"""The figures: quality against cost, progress of the searches, and where the parameters were kept.

One panel for each model, granularity and sparsity; one colour and marker per method in all of them.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from ffp import artifacts, registry
from ffp.config import Project
from ffp.report.collect import Record

# Okabe and Ito's colours, which stay apart for colour-blind readers; the markers keep them apart in grey.
PALETTE = ("#7F7F7F", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8A800")
MARKERS = ("s", "^", "o", "D", "v", "P", "X", "*")
DENSE = "#000000"
DASHES = (0, (5, 3))
STYLE: Any = {
    "svg.hashsalt": "ffp",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "text.usetex": False,
    "text.parse_math": False,
}
Block = tuple[str, str, str]


@dataclass(frozen=True)
class Look:
    """How a method is drawn everywhere."""

    colour: str
    marker: str


def looks(project: Project) -> dict[str, Look]:
    """Colour and marker by method: registered methods always have the same, variants take the free ones in order."""
    names = list(registry.METHODS)
    names += [name for name in project.grid.methods if name not in registry.METHODS]
    pairs = zip(names, itertools.cycle(PALETTE), _markers())
    return {name: Look(colour, marker) for name, colour, marker in pairs}


def _markers() -> Iterable[str]:
    """Markers that shift by one each time the palette starts again, so that no two methods look the same."""
    for turn in itertools.count():
        yield from MARKERS[turn % len(MARKERS) :] + MARKERS[: turn % len(MARKERS)]


def draw(project: Project, records: list[Record], out: Path) -> dict[str, bytes]:
    """Write each figure as SVG and PNG, the same bytes for the same records; return the SVGs by name."""
    figures: dict[str, Callable[[Project, list[Record]], Figure]] = {
        "quality_cost": quality_cost, "anytime": anytime, "allocation": allocation,
    }  # fmt: skip
    svgs = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for name, make in figures.items():
            figure = make(project, records)
            for kind in ("svg", "png"):
                buffer = io.BytesIO()
                metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
                figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
                with artifacts.whole(out / f"{name}.{kind}") as partial:
                    partial.write_bytes(buffer.getvalue())
                if kind == "svg":
                    svgs[name] = buffer.getvalue()
    return svgs


def quality_cost(project: Project, records: list[Record]) -> Figure:
    """Perplexity against search tokens; methods that forward nothing stand at zero, their level drawn across."""
    blocks = _blocks(r for r in records if r.done and r.cell.method != "dense")
    if not blocks:
        return _empty("No cell is finished yet.")
    figure, axes = _panels(project, blocks)
    style = looks(project)
    for block, axis in zip(blocks, axes, strict=True):
        dense = next((r for r in records if r.done and r.cell.method == "dense" and r.block[:2] == block[:2]), None)
        _quality_panel(figure, axis, blocks[block], style, dense.row["ppl"] if dense else None)
        axis.set_xlabel("search cost (tokens forwarded)")
        axis.set_ylabel("test perplexity (lower is better)")
    extra = [Line2D([], [], color="#444444", linewidth=1, label="Pareto front"),
             Line2D([], [], color=DENSE, linestyle=DASHES, label="dense model")]  # fmt: skip
    _legend(figure, style, records, extra, lines=False)
    return figure


def _quality_panel(
    figure: Figure, axis: Axes, records: list[Record], style: Mapping[str, Look], dense: float | None
) -> None:
    """Points of equal cost stand side by side, so that none hides another; the front and the levels are exact."""
    points = [(float(record.row.get("search_tokens") or 0), float(record.row["ppl"])) for record in records]
    for record, (tokens, ppl), shift in zip(records, points, _shifts(points), strict=True):
        look = style[record.cell.method]
        beside = offset_copy(axis.transData, fig=figure, x=shift, units="points")
        axis.errorbar(tokens, ppl, yerr=record.row["ppl_stderr"], color=look.colour, marker=look.marker, markersize=8,
                      capsize=3, linestyle="none", markeredgecolor="white", markeredgewidth=0.8, zorder=4,
                      transform=beside)  # fmt: skip
        if not tokens:
            axis.axhline(ppl, color=look.colour, linewidth=1, linestyle=":", zorder=2)
    front = pareto(points)
    axis.step([x for x, _ in front], [y for _, y in front], where="post", color="#444444", linewidth=1, zorder=3)
    if dense is not None:
        axis.axhline(dense, color=DENSE, linestyle=DASHES, linewidth=1.2, zorder=2)
    _cost_axis(axis, sorted({tokens for tokens, _ in points}))
    errors = [record.row["ppl_stderr"] or 0.0 for record in records]
    low = min([ppl - error for (_, ppl), error in zip(points, errors, strict=True)] + ([dense] if dense else []))
    high = max(ppl + error for (_, ppl), error in zip(points, errors, strict=True))
    _ppl_axis(axis, low, high)


def _shifts(points: list[tuple[float, float]]) -> list[float]:
    """Horizontal offsets in typographic points: neighbours within 2 % of the largest cost stand 11 points apart."""
    reach = 0.02 * max(tokens for tokens, _ in points)
    shifts = []
    for index, (tokens, _) in enumerate(points):
        near = [other for other, (cost, _) in enumerate(points) if abs(cost - tokens) <= reach]
        shifts.append(11.0 * (near.index(index) - (len(near) - 1) / 2))
    return shifts


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
    axis.xaxis.set_major_formatter(FuncFormatter(_tokens))


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
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.08 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def anytime(project: Project, records: list[Record]) -> Figure:
    """Best reward at the target so far against tokens forwarded, one line per search."""
    traced = [r for r in records if r.trace is not None and len(r.trace) and r.trace["best"].notna().any()]
    blocks = _blocks(traced)
    if not blocks:
        return _empty("No search has been traced yet.")
    figure, axes = _panels(project, blocks)
    style = looks(project)
    for block, axis in zip(blocks, axes, strict=True):
        for record in blocks[block]:
            known = record.trace[record.trace["best"].notna()]
            look = style[record.cell.method]
            axis.step(known["tokens"], known["best"], where="post", color=look.colour, linewidth=1.6,
                      marker=look.marker, markevery=[-1], markersize=7, markeredgecolor="white")  # fmt: skip
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(FuncFormatter(_tokens))
        axis.set_xlabel("search cost (tokens forwarded)")
        axis.set_ylabel("best reward so far\n(dense PPL / pruned PPL)")
    _legend(figure, style, traced, [])
    return figure


def allocation(project: Project, records: list[Record]) -> Figure:
    """Share kept by each block: a line of tiles per method, one row of panels per model, granularity and sparsity."""
    allocated = [
        r for r in records if r.allocation and r.allocation.get("status") == "done" and r.row["status"] != "failed"
    ]
    blocks = _blocks(allocated)
    if not blocks:
        return _empty("No allocation is finished yet.")
    kinds = list(dict.fromkeys(kind for record in allocated for kind in kept_shares(record)))
    tallest = max(len(records) for records in blocks.values())
    figure, axes = _panels(project, blocks, repeat=len(kinds), width=5.2, height=1.3 + 0.24 * tallest)
    style = looks(project)
    for (block, kind), axis in zip(itertools.product(blocks, kinds), axes, strict=True):
        tiles: Any = _tiles(axis, blocks[block], kind, style)
        axis.set_title(f"{axis.get_title()}, {_kind_title(kind)}", fontsize=10)
    figure.colorbar(tiles, ax=axes, location="top", label="kept (% of units)", shrink=0.6, aspect=45)
    return figure


def _tiles(axis: Axes, records: list[Record], kind: str, style: Mapping[str, Look]) -> Any:
    """A panel: methods down, blocks across; a block that a record lacks stays empty."""
    shares = [kept_shares(record).get(kind, {}) for record in records]
    count = 1 + max((max(share, default=0) for share in shares), default=0)
    values = [[100 * share.get(block, math.nan) for block in range(count)] for share in shares]
    tiles = axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto", interpolation="none")
    seeds = len({record.cell.seed for record in records}) > 1
    names = [record.cell.method + (f", seed {record.cell.seed}" if seeds else "") for record in records]
    axis.set_yticks(range(len(names)), names)
    for label, record in zip(axis.get_yticklabels(), records, strict=True):
        label.set_color(style[record.cell.method].colour)
        label.set_fontweight("bold")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=False)
    axis.set_yticks([row - 0.5 for row in range(1, len(names))], minor=True)
    axis.grid(visible=True, which="minor", axis="y", color="white", linewidth=2)
    axis.tick_params(which="both", length=0)
    axis.set_xlabel("block")
    return tiles


def kept_shares(record: Record) -> dict[str, dict[int, float]]:
    """Kept units / units by kind of module ("ffn") and block number, from names such as "block03.ffn"."""
    body = record.allocation or {}
    shares: dict[str, dict[int, float]] = {}
    for (name, n_groups, *_), keep in zip(body["problem"]["units"], body["keep"], strict=True):
        number, _, kind = str(name).partition(".")
        digits = re.search(r"\d+", number)
        if digits:
            shares.setdefault(kind, {})[int(digits[0])] = keep / n_groups
    return shares


def _kind_title(kind: str) -> str:
    return {"attn": "attention", "attention": "attention", "ffn": "FFN", "mlp": "FFN"}.get(kind, kind)


def _blocks(records: Iterable[Record]) -> dict[Block, list[Record]]:
    blocks: dict[Block, list[Record]] = {}
    for record in records:
        blocks.setdefault(record.block, []).append(record)
    return blocks


def _panels(
    project: Project, blocks: Mapping[Block, Any], *, repeat: int = 1, width: float = 4.6, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    """A figure with `repeat` titled panels per block; sparsities of one model side by side where repeat is 1."""
    columns = repeat if repeat > 1 else max(1, min(3, len({block[2] for block in blocks})))
    rows = -(-len(blocks) * repeat // columns)
    figure = Figure(figsize=(max(6.4, width * columns), height * rows + 0.7), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(len(blocks) * repeat)]
    several = len({block[1] for block in blocks}) > 1
    for index, axis in enumerate(axes):
        model, granularity, sparsity = list(blocks)[index // repeat]
        kind = f", {granularity}" if several else ""
        axis.set_title(f"{project.models[model].title}{kind}\n{float(sparsity):.0%} sparsity", fontsize=10)
    return figure, axes


def _legend(
    figure: Figure, style: Mapping[str, Look], records: list[Record], extra: list[Line2D], *, lines: bool = True
) -> None:
    """One legend above the panels, with the methods that were drawn."""
    drawn = {
        record.cell.method for record in records if record.cell.method in style and record.row["status"] != "skipped"
    }
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=7, markeredgecolor="white", label=name,
               linestyle="-" if lines else "none")
        for name, look in style.items() if name in drawn
    ]  # fmt: skip
    figure.legend(
        handles=[*handles, *extra], loc="outside upper center", ncols=min(6, len(handles) + len(extra)), frameon=False
    )


def _empty(text: str) -> Figure:
    figure = Figure(figsize=(6.4, 1.6))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _tokens(value: float, _: Any) -> str:
    """Tokens with a metric prefix: 250k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
