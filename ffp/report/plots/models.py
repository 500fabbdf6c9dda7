"""Models side by side: what each method loses on each model, at one sparsity."""

from matplotlib.figure import Figure

from ffp.config import Experiment
from ffp.report.groups import Group
from ffp.report.plots.style import INK, PALETTE, PAPER, empty, handle, loss_axis, losses_of, marker_of, short


def models(experiment: Experiment, groups: list[Group]) -> Figure:
    """Draws a panel for each granularity and sparsity: loss over the dense model by method, a marker for each model."""
    losses = losses_of(groups)
    done = [group for group in groups if group.path in losses]
    if not done:
        return empty("No cell is finished yet.")
    shown = list(dict.fromkeys(g.block[1:] for g in done))
    methods = [name for name in experiment.grid.methods if any(g.method == name for g in done)]
    figure = Figure(figsize=(max(6.4, 4.2 * len(shown)), 1.4 + 0.26 * len(methods)), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, (granularity, sparsity) in zip(axes, shown, strict=True):
        for place, name in enumerate(experiment.grid.models):
            mine = [g for g in done if g.block == (name, granularity, sparsity)]
            for group in mine:
                x, y = losses[group.path], methods.index(group.method)
                drawn = axis.plot(x, y, marker_of(experiment, name), color=_colour(place), markeredgecolor=PAPER)
                drawn[0].set_url(f"#{group.done[0].cell.path}")
        several = len({g.block[1] for g in done}) > 1
        axis.set_title(f"{granularity + ', ' if several else ''}{float(sparsity):.0%} sparsity", fontsize=10)
        loss_axis(axis, losses.values())
        axis.set(yticks=range(len(methods)), yticklabels=methods)
        axis.set_ylim(len(methods) - 0.5, -0.5)
    handles = [
        handle(short(experiment.models[name].title), marker_of(experiment, name), _colour(place))
        for place, name in enumerate(experiment.grid.models)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _colour(place: int) -> str:
    return PALETTE[1:][place % (len(PALETTE) - 1)] if place else INK
