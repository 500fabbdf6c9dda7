"""What the experiments' plots share: matplotlib without a display, and SVG files that come out the same each time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffp.store.files import whole


def pyplot() -> Any:
    """Returns matplotlib.pyplot, set up for files; loaded only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ffp"
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Lays a figure out and writes it as SVG."""
    figure.tight_layout()
    with whole(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})


def draw_curves(
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], look: Mapping[str, Any], ylabel: str, path: Path,
    *, log: bool = False,
) -> None:  # fmt: skip
    """Draws median and range over seeds against tokens, a panel for each sparsity.

    Args:
        panels: By sparsity, method and tokens: a value for each seed.
        look: How each method is drawn, of ffp.report.plots.looks.
        ylabel: What the values are.
        path: The SVG file.
        log: Draw the values on a logarithmic axis.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot().subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, (sparsity, methods) in zip(axes[0], panels.items(), strict=True):
        for method, points in methods.items():
            low, high = [min(values) for values in points.values()], [max(values) for values in points.values()]
            tokens, colour = list(points), look[method].colour
            style = {"marker": look[method].marker, "linestyle": look[method].line}
            medians = [statistics.median(values) for values in points.values()]
            axis.plot(tokens, medians, **style, ms=5, label=method, color=colour)
            axis.fill_between(tokens, low, high, alpha=0.15, color=colour)
            axis.vlines(tokens[:1], low[:1], high[:1], color=colour, alpha=0.4)
        axis.set(title=f"{float(sparsity):.0%} sparsity", xlabel="tokens forwarded (a backward counts as two)")
        axis.set(xscale="log", yscale="log" if log else "linear")
        ticks = sorted({tokens for points in methods.values() for tokens in points})[::2]
        axis.set_xticks(ticks, [f"{count / 1000:.3g} k" for count in ticks])
        axis.minorticks_off()
        if log:
            axis.yaxis.set_major_locator(MaxNLocator(6))
            axis.yaxis.set_major_formatter("{x:.2f}")
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)
