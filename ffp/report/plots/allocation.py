"""Where the parameters were kept: the kept share of each block, a line of tiles per method."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ffp.config import Experiment
from ffp.core.problem import FloatArray
from ffp.report.groups import Group, by_block
from ffp.report.plots.style import PAPER, Look, empty, looks, panels
from ffp.store.schemas import AllocationFile

Shares = dict[str, dict[int, float]]
KIND_TITLES = {"": "whole blocks", "ffn": "FFN"}


def allocation(experiment: Experiment, groups: list[Group]) -> Figure:
    """Draws the kept shares, mean over seeds: a row of panels per block of the grid, a panel per kind of module."""
    allocated = [group for group in groups if allocations(group)]
    blocks = by_block(allocated)
    if not blocks:
        return empty("No allocation is finished yet.")
    kinds = {block: list(mean_shares(members[0])) for block, members in blocks.items()}
    parts = [(block, kind) for block in blocks for kind in kinds[block]]
    tallest, columns = max(map(len, blocks.values())), max(map(len, kinds.values()))
    width, height = 3.8 + 0.09 * max(len(group.method) for group in allocated), 1.3 + 0.24 * tallest
    figure, axes = panels(experiment, [block for block, _ in parts], columns=columns, width=width, height=height)
    style = looks(experiment)
    for (block, kind), axis in zip(parts, axes, strict=True):
        tiles: Any = _tiles(axis, blocks[block], kind, style)
        axis.set_title(f"{axis.get_title()}, {KIND_TITLES.get(kind, kind)}", fontsize=10)
    pad = 0.2 / figure.get_figheight()
    figure.colorbar(tiles, ax=axes, location="top", label="kept (% of units)", shrink=0.6, aspect=45, pad=pad)
    return figure


def allocations(group: Group) -> list[AllocationFile]:
    """Returns the finished allocations of a group's cells."""
    found = [record.allocation for record in group.records if record.row["status"] != "failed"]
    return [body for body in found if body and body.status == "done"]


def mean_shares(group: Group) -> Shares:
    """Returns kept_shares, mean over the seeds that have an allocation."""
    shares = [kept_shares(body) for body in allocations(group)]
    return {
        kind: {block: float(np.mean([share[kind][block] for share in shares])) for block in part}
        for kind, part in shares[0].items()
    }


def kept_shares(body: AllocationFile) -> Shares:
    """Returns kept units / units by kind of module ("ffn") and number of the block.

    Several decisions of one kind in one block (single matrices) count by their parameters.
    """
    sums = defaultdict[str, dict[int, FloatArray]](lambda: defaultdict(lambda: np.zeros(2)))
    for decision, keep in zip(body.problem.decisions, body.keep, strict=True):
        if number := re.search(r"\d+", decision.block):
            sums[decision.module][int(number[0])] += decision.params_per_unit * np.array([keep, decision.n_units])
    return {kind: {block: kept / total for block, (kept, total) in part.items()} for kind, part in sums.items()}


def _tiles(axis: Axes, groups: list[Group], kind: str, style: Mapping[str, Look]) -> Any:
    """Draws a panel: methods down, blocks across; a block that a method lacks stays empty."""
    shares = [mean_shares(group).get(kind, {}) for group in groups]
    count = 1 + max((max(share, default=0) for share in shares), default=0)
    values = [[100 * share.get(block, math.nan) for block in range(count)] for share in shares]
    tiles = axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto", interpolation="none")
    axis.set_yticks(range(len(groups)), [group.method for group in groups])
    for label, group in zip(axis.get_yticklabels(), groups, strict=True):
        label.set(color=style[group.method].colour, fontweight="bold")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=False)
    axis.set_yticks([row - 0.5 for row in range(1, len(groups))], minor=True)
    axis.grid(visible=True, which="minor", axis="y", color=PAPER, linewidth=2)
    axis.tick_params(which="both", length=0)
    axis.set_xlabel("block")
    return tiles
