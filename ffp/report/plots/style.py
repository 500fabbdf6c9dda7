"""What all figures share: colours and markers of methods, panels, legend, and number axes."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ffp.allocators import METHODS
from ffp.config import Experiment
from ffp.report.collect import Block
from ffp.report.groups import Group

# Okabe and Ito's colours, which colour-blind readers can tell apart; the markers tell them apart in grey.
PALETTE = ("#7F7F7F", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8A800")
MARKERS = ("s", "^", "o", "D", "v", "P", "X", "*")
LINES = ("-", (0, (4, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
# The colours of text, grid and background. No method has them, so that the page can replace them by its theme's.
INK, GRID, PAPER = "#1B1B1B", "#DDDDDD", "#FEFEFE"
TITLE_WIDTH = 46  # characters
LEGEND_LINE = 0.21  # inches
LINEAR = 0.5  # a loss axis is linear up to here, and logarithmic above
LOSSES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 2.0, 5.0, 10.0)
STYLE: Any = {
    "svg.hashsalt": "ffp",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "text.usetex", "text.parse_math"), False),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure; `line` is a matplotlib line style."""

    colour: str
    marker: str
    line: Any


def looks(experiment: Experiment) -> dict[str, Look]:
    """Returns the look of each method of the grid, all different.

    A registered method has the same colour in every grid, unless another method of the grid has taken it.
    """
    places = {name: place for place, name in enumerate(METHODS)}
    used, found = Counter[int](), dict[str, Look]()
    for name in sorted(experiment.grid.methods, key=lambda name: places.get(name, len(places))):
        wanted = places.get(name, len(places) + len(found))
        place = min(((wanted + step) % len(PALETTE) for step in range(len(PALETTE))), key=lambda p: used[p])
        turn = used[place]
        found[name] = Look(PALETTE[place], MARKERS[(place + turn) % len(MARKERS)], LINES[turn % len(LINES)])
        used[place] += 1
    return found


def panels(
    experiment: Experiment, blocks: Iterable[Block], *, columns: int = 0, width: float = 4.6, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a titled panel of so many inches for each block; columns: the sparsities of a model."""
    blocks = list(blocks)
    columns = columns or max(1, min(3, len({block[2] for block in blocks})))
    rows = -(-len(blocks) // columns)
    figure = Figure(figsize=(max(6.4, width * columns), height * rows + 0.7), layout="constrained")
    several = len({block[1] for block in blocks}) > 1
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(len(blocks))]
    for axis, (model, granularity, sparsity) in zip(axes, blocks, strict=True):
        kind = f", {granularity}" if several else ""
        name = textwrap.fill(f"{short(experiment.models[model].title)}{kind}", TITLE_WIDTH)
        axis.set_title(f"{name}\n{float(sparsity):.0%} sparsity", fontsize=10)
    return figure, axes


def short(title: str) -> str:
    """Returns a title that a figure has room for: its beginning, where it is longer than two lines."""
    return title if len(title) <= 2 * TITLE_WIDTH else f"{title[: 2 * TITLE_WIDTH]}..."


def legend(
    figure: Figure, style: Mapping[str, Look], drawn: set[str], extra: Iterable[Line2D] = (), *, lines: bool = True
) -> None:
    """Puts one legend above the panels, as wide as the figure, and makes the figure taller for its lines.

    It holds the methods that were drawn, as lines or as markers alone, and `extra` entries.
    """
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


def losses_of(groups: Iterable[Group]) -> dict[str, float]:
    """Returns the loss over the dense model, nats per token, of finished groups by path, where that one is finished."""
    done = [group for group in groups if group.done]
    dense = {group.block[:2]: math.log(group.row["ppl"]) for group in done if group.method == "dense"}
    known = (group for group in done if not group.is_dense and group.block[:2] in dense)
    return {group.path: math.log(group.row["ppl"]) - dense[group.block[:2]] for group in known}


def marker_of(experiment: Experiment, model: str) -> str:
    """Returns the marker of a model of the grid."""
    return MARKERS[experiment.grid.models.index(model) % len(MARKERS)]


def handle(label: str, marker: str, colour: Any) -> Line2D:
    """Returns an entry of a legend for a marker without a line."""
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)


def empty(text: str) -> Figure:
    """Returns a figure that says why there is nothing to draw."""
    figure = Figure(figsize=(6.4, 1.6))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def value_axis(axis: Axes, low: float, high: float) -> None:
    """Scales the y axis for values from low to high: logarithmic beyond a factor of four, with plain numbers."""
    if high > 4 * low > 0:
        axis.set(yscale="log", ylim=(low / 1.15, high * 1.15))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 300 * low else (1,)))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.08 * (high - low) or 0.04 * abs(high) or 1.0
        axis.set_ylim(low - margin, high + margin)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def loss_axis(axis: Axes, losses: Iterable[float]) -> None:
    """Scales the x axis for losses over the dense model; it begins at 0 unless a model became better than that."""
    losses = list(losses)
    axis.set_xscale("symlog", linthresh=LINEAR)
    axis.set_xticks(LOSSES, [f"{tick:g}" for tick in LOSSES], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlim(min(0.0, 1.1 * min(losses)), 1.2 * max(LINEAR, *losses))
    axis.set_xlabel("loss over the dense model (nats a token)")


def short_number(value: float, _position: object = None) -> str:
    """Returns a number with a metric prefix, as an axis shows it: 250k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"
