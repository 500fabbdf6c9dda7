"""The whole grid at a glance: what each method loses at every sparsity, on every model, and what its search took."""

from collections.abc import Iterable

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffp.config import Experiment
from ffp.report.groups import Group
from ffp.report.plots.style import INK, PAPER, empty, handle, loss_axis, losses_of, marker_of, short, short_number

ROOM = 0.6  # of a row, for the markers of its models
SHADES = (0.2, 0.88)  # of the colour map: its ends are hard to see on black or white


def overview(experiment: Experiment, groups: list[Group]) -> Figure:
    """Draws a row for each method: loss over the dense model, colours for sparsities, markers for models."""
    losses = losses_of(groups)
    done = [group for group in groups if group.path in losses]
    if not done:
        return empty("No cell is finished yet.")
    kinds = list(dict.fromkeys(g.block[1] for g in done))
    shown = {kind: _rows([g for g in done if g.block[1] == kind], losses) for kind in kinds}
    height = 1.5 + sum(0.3 * len(rows) + 0.5 for rows in shown.values())
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=[len(rows) + 1 for rows in shown.values()])
    for axis, (kind, rows) in zip(axes[:, 0], shown.items(), strict=True):
        _draw_rows(axis, experiment, rows, losses)
        if len(kinds) > 1:
            axis.set_title(kind, fontsize=10)
    sparsities = sorted({g.block[2] for g in done})
    handles = [handle(f"{float(s):.0%}", "s", _shade(sparsities, s)) for s in sparsities]
    models = [name for name in experiment.grid.models if any(g.block[0] == name for g in done)]
    if len(models) > 1:
        handles += [handle(short(experiment.models[name].title), marker_of(experiment, name), INK) for name in models]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _rows(groups: list[Group], losses: dict[str, float]) -> dict[str, list[Group]]:
    """The groups of each method; those with the most settings first, then by their mean loss."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.method, []).append(group)

    def place(method: str) -> tuple[int, float]:
        mine = [losses[group.path] for group in found[method]]
        return -len(mine), sum(mine) / len(mine)

    return {method: found[method] for method in sorted(found, key=place)}


def _draw_rows(axis: Axes, experiment: Experiment, rows: dict[str, list[Group]], losses: dict[str, float]) -> None:
    sparsities = sorted({group.block[2] for members in rows.values() for group in members})
    models = list(experiment.grid.models)
    for row, members in enumerate(rows.values()):
        for group in members:
            beside = ROOM * (models.index(group.block[0]) - (len(models) - 1) / 2) / len(models)
            colour = _shade(sparsities, group.block[2])
            error = float(group.row.get("ppl_stderr") or 0.0) / float(group.row["ppl"])
            drawn = axis.errorbar(
                losses[group.path], row + beside, xerr=error, color=colour, markersize=7, markeredgecolor=PAPER,
                marker=marker_of(experiment, group.block[0]), markeredgewidth=0.8, capsize=2, linestyle="none",
            )  # fmt: skip
            drawn.lines[0].set_url(f"#{group.done[0].cell.path}")
    labels = [f"{method}\n{_tokens(members)}" for method, members in rows.items()]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    loss_axis(axis, [losses[group.path] for members in rows.values() for group in members])


def _tokens(groups: Iterable[Group]) -> str:
    """What the searches of a method forwarded, at most."""
    most = max(float(group.row.get("search_tokens") or 0) for group in groups)
    return f"{short_number(most)} search tokens" if most else "no search"


def _shade(sparsities: list[str], sparsity: str) -> tuple[float, ...]:
    place = sparsities.index(sparsity) / max(1, len(sparsities) - 1)
    return tuple(colormaps["viridis"](SHADES[0] + (SHADES[1] - SHADES[0]) * place))
