"""Quality against cost: test perplexity over the tokens or seconds that a search took."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from ffp.config import Experiment
from ffp.report.groups import Group, by_block
from ffp.report.plots.style import INK, PAPER, Look, empty, legend, looks, panels, short_number, value_axis

Point = tuple[float, float]
SPACING, ROOM = 11.0, 50.0  # between shifted markers, and for all of them together, in typographic points
DASHES = (0, (5, 3))


def quality_against_cost(experiment: Experiment, groups: list[Group], cost: str, label: str) -> Figure:
    """Draws perplexity against the figure `cost`; a method that forwards no search text stands at zero."""
    blocks = by_block(g for g in groups if g.done and not g.is_dense)
    if not blocks:
        return empty("No cell is finished yet.")
    dense = {g.block[:2]: float(g.row["ppl"]) for g in groups if g.done and g.method == "dense"}
    figure, axes = panels(experiment, blocks)
    style = looks(experiment)
    for (block, members), axis in zip(blocks.items(), axes, strict=True):
        points = [_point(group.row, cost) for group in members]
        for group, (x, _), shift in zip(members, points, shifts(points), strict=True):
            _draw_group(axis, group, style[group.method], cost, x, shift)
        axis.step(*zip(*pareto(points), strict=True), where="post", color=INK, linewidth=1, zorder=3)
        if block[:2] in dense:
            axis.axhline(dense[block[:2]], color=INK, linestyle=DASHES, linewidth=1.2, zorder=2)
        _cost_axis(axis, sorted({x for x, _ in points}))
        value_axis(axis, *_range(members, dense.get(block[:2])))
        axis.set(xlabel=label, ylabel="test perplexity (lower is better)")
    extra = [Line2D([], [], color=INK, linewidth=1, label="Pareto front"),
             Line2D([], [], color=INK, linestyle=DASHES, label="dense model")]  # fmt: skip
    legend(figure, style, {g.method for members in blocks.values() for g in members}, extra, lines=False)
    return figure


def _draw_group(axis: Axes, group: Group, look: Look, cost: str, x: float, shift: float) -> None:
    """Draws a marker with its error, a small one for each of several seeds, and the level of a method without cost."""
    figure: Any = axis.figure
    beside = offset_copy(axis.transData, fig=figure, x=shift, units="points")
    drawn = axis.errorbar(x, group.row["ppl"], yerr=_error(group), color=look.colour, marker=look.marker, markersize=8,
                          capsize=3, linestyle="none", markeredgecolor=PAPER, markeredgewidth=0.8, zorder=4,
                          transform=beside)  # fmt: skip
    drawn.lines[0].set_url(f"#{group.done[0].cell.path}")
    if len(group.done) > 1:
        cells = [_point(record.row, cost) for record in group.done]
        axis.plot(*zip(*cells, strict=True), color=look.colour, marker=look.marker, markersize=3, alpha=0.6,
                  linestyle="none", zorder=3, transform=beside)  # fmt: skip
    if not x:
        axis.axhline(group.row["ppl"], color=look.colour, linewidth=1, linestyle=":", zorder=2)


def _error(group: Group) -> float:
    """The standard error over windows, of the mean seed."""
    return float(group.row.get("ppl_stderr") or 0.0)


def _range(groups: list[Group], dense: float | None) -> tuple[float, float]:
    """The lowest and the highest perplexity that a panel shows; a bar counts down to half of its value."""
    shown = [float(record.row["ppl"]) for group in groups for record in group.done]
    shown += [] if dense is None else [dense]
    bars = [(float(group.row["ppl"]), _error(group)) for group in groups]
    return min(shown + [max(ppl - error, ppl / 2) for ppl, error in bars]), max(shown + [sum(bar) for bar in bars])


def _point(row: Mapping[str, Any], cost: str) -> Point:
    """Cost and perplexity; methods that forward nothing cost zero, since their seconds are no search."""
    return float(row.get(cost) or 0) if row.get("search_tokens") else 0.0, float(row["ppl"])


def shifts(points: list[Point]) -> list[float]:
    """Returns horizontal offsets, in typographic points, for (cost, perplexity) markers that would hide each other.

    Neighbours within 2 % of the largest cost and 7 % of the range of log perplexity stand SPACING points apart, or
    closer if the axis has no room for so many.
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
    """From zero to the dearest search; logarithmic above zero if costs span more than a factor of twenty."""
    searched = [cost for cost in costs if cost]
    if not searched:
        axis.set_xlim(-1, 1)
        axis.set_xticks([0])
    elif searched[-1] > 20 * searched[0]:
        axis.set_xscale("symlog", linthresh=searched[0] / 2)
        axis.set_xlim(-searched[0] / 5, searched[-1] * 2)
    else:
        axis.set_xlim(-0.15 * searched[-1], 1.15 * searched[-1])
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(short_number)


def pareto(points: Iterable[Point]) -> list[Point]:
    """Returns the (cost, loss) points that no other point beats in both, by ascending cost."""
    front: list[Point] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
