"""Progress of the searches: the loss on the selection text of the answer that each would give after so many tokens.

Rewards are not drawn: each search computes them on windows of its own choice, so that they do not compare.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ffp.config import Experiment
from ffp.core.problem import FloatArray, IntArray
from ffp.report.groups import Group, by_block
from ffp.report.plots.style import PAPER, Look, empty, legend, looks, panels, short_number, value_axis


def anytime(experiment: Experiment, groups: list[Group]) -> Figure:
    """Draws the loss of each search's answer against tokens: mean over seeds, and the band that holds all seeds."""
    blocks = by_block(group for group in groups if progress(group)[0].size)
    if not blocks:
        return empty("No search has scored its answers yet.")
    figure, axes = panels(experiment, blocks)
    style = looks(experiment)
    for members, axis in zip(blocks.values(), axes, strict=True):
        curves = {group.method: progress(group) for group in members}
        for method, (tokens, losses) in curves.items():
            _draw_curve(axis, style[method], tokens, losses)
        shown = np.concatenate([losses.ravel() for _, losses in curves.values()])
        value_axis(axis, shown.min(), shown.max())
        _token_axis(axis, sorted({int(count) for tokens, _ in curves.values() for count in tokens}))
        axis.set(ylabel="loss over dense on the selection text\n(nats per token; lower is better)")
    legend(figure, style, {group.method for members in blocks.values() for group in members})
    return figure


def progress(group: Group) -> tuple[IntArray, FloatArray]:
    """Returns the tokens at which all seeds have a scored answer, (n,), and the losses, (n_seeds, n)."""
    answers = [record.answers.points for record in group.records if record.answers and record.answers.points]
    curves = [{point.tokens: point.loss for point in points} for points in answers]
    tokens = sorted(set.intersection(*map(set, curves))) if curves else []
    return np.array(tokens, dtype=np.int64), np.array([[curve[count] for count in tokens] for curve in curves])


def _draw_curve(axis: Axes, look: Look, tokens: IntArray, losses: FloatArray) -> None:
    axis.plot(tokens, losses.mean(0), color=look.colour, linewidth=1.6, linestyle=look.line, marker=look.marker,
              markersize=6, markeredgecolor=PAPER, markeredgewidth=0.6)  # fmt: skip
    if len(losses) > 1:
        low, high = losses.min(0), losses.max(0)
        axis.fill_between(tokens, low, high, color=look.colour, alpha=0.2, linewidth=0)
        axis.vlines(tokens[:1], low[:1], high[:1], color=look.colour, alpha=0.4)


def _token_axis(axis: Axes, counts: list[int]) -> None:
    """A logarithmic axis with a tick at every other checkpoint of the budget, the last one included."""
    axis.set(xscale="log", xlabel="tokens of the search text forwarded", xlim=(counts[0] / 1.15, counts[-1] * 1.15))
    axis.xaxis.set_major_locator(FixedLocator(counts[(len(counts) - 1) % 2 :: 2]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(short_number)
