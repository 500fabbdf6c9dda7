"""Does what holds on one model hold on another? Every allocation with and without ridge, on all models of a grid.

    make demo GRID=config/grids/two-models.yaml && python -m experiments.models

Reads the grid's cells. `cells` lists every score, `missing` the cells without one. With `--keep`, a model's sparsities
of which this folder has no cell stay as they are in the JSON, such as those that another machine has run; `kept` says
from which commit they come.

- `marks.test_ppl`, by model and sparsity: perplexity of the test text by row, at the mean loss over seeds.
- `marks.minus_reference`, by the same: the difference of the loss, its mean over seeds, from that of
  `fastforward-guided-ridge` on the same windows in nats per token, and its standard error over windows. Below 0 the row
  is better.
- `marks.seed_spread`, by the same: the largest difference of loss between two seeds of a row; searches only.
- `marks.ranks`: the mean rank of every row over models and sparsities, among the rows of all of them;
  `marks.rank_stderr`: its standard error over these.
- `marks.agreement`: Spearman's correlation of the rows' losses on two models, by sparsity and pair of models.

The plot beside the JSON shows the first of them, models side by side.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.drawing import pyplot, save
from experiments.reading import CellResult, by_seed, mean_and_stderr, read_marks
from ffp.core.problem import FloatArray

SCHEMA = "ffp/experiment/models/1"
REFERENCE = "fastforward-guided-ridge"
RIDGE = "-ridge"
Panel = tuple[str, str]  # model and sparsity
Losses = dict[Panel, dict[str, dict[int, FloatArray]]]  # by row and seed: (windows,), nats per token


def main() -> None:
    """Reads the grid, and writes the JSON and the plot."""
    marks, out = read_marks(
        "experiments.models",
        __doc__,
        grid="two-models",
        schema=SCHEMA,
        summarize=lambda results: summarize(read_losses(results.done)),
        merge=merge,
    )
    _plot(marks["test_ppl"], out.with_suffix(".svg"))


def read_losses(done: list[CellResult]) -> Losses:
    """Returns the losses of the pruned cells."""
    found: Losses = {}
    pruned = [result for result in done if not result.cell.is_dense]
    for (model, sparsity, row), seeds in by_seed(
        pruned, lambda r: (r.cell.model, r.cell.sparsity, r.cell.method)
    ).items():
        found.setdefault((model, sparsity), {})[row] = {seed: result.losses for seed, result in seeds.items()}
    return found


def summarize(losses: Losses) -> dict[str, Any]:
    """Returns the figures that the experiment is about; see the module's text."""
    means = {panel: {row: _mean(seeds) for row, seeds in rows.items()} for panel, rows in losses.items()}
    panels = {
        "test_ppl": {
            _name(panel): {row: float(np.exp(loss.mean())) for row, loss in rows.items()}
            for panel, rows in means.items()
        },
        "minus_reference": {_name(panel): _differences(rows) for panel, rows in means.items()},
        "seed_spread": {_name(panel): _spreads(rows) for panel, rows in losses.items()},
    }
    return panels | _compare(panels["test_ppl"])


def merge(earlier: dict[str, Any], marks: dict[str, Any]) -> dict[str, Any]:
    """Returns the marks with the panels that only the earlier ones have."""
    panels = {
        name: _by_sparsity(earlier[name] | marks[name]) for name in ("test_ppl", "minus_reference", "seed_spread")
    }
    return panels | _compare(panels["test_ppl"])


def _by_sparsity(panels: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(panels.items(), key=lambda item: float(item[0].rpartition(" ")[2].rstrip("%"))))


def _compare(test_ppl: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Returns what all panels say together."""
    table = pd.DataFrame(test_ppl)
    ranks = table.dropna().rank()
    means = ranks.mean(axis=1).sort_values(kind="stable")
    found = {"ranks": means.to_dict(), "agreement": _agreement(table)}
    if len(test_ppl) > 1:
        found["rank_stderr"] = ranks.sem(axis=1)[means.index].to_dict()
    return found


def _name(panel: Panel) -> str:
    return f"{panel[0]} {float(panel[1]):.0%}"


def _mean(seeds: dict[int, FloatArray]) -> FloatArray:
    return np.asarray(np.mean(list(seeds.values()), axis=0))


def _differences(rows: dict[str, FloatArray]) -> dict[str, Any]:
    """Of every row from the reference, [mean, standard error]; nothing while the reference is missing."""
    if REFERENCE not in rows:
        return {}
    return {row: list(mean_and_stderr(loss - rows[REFERENCE])) for row, loss in rows.items()}


def _spreads(rows: dict[str, dict[int, FloatArray]]) -> dict[str, float]:
    means = {row: [float(loss.mean()) for loss in seeds.values()] for row, seeds in rows.items() if len(seeds) > 1}
    return {row: max(values) - min(values) for row, values in means.items()}


def _agreement(table: pd.DataFrame) -> dict[str, float]:
    """Spearman's correlation of the rows that both models have."""
    found = {}
    for one, two in itertools.combinations(table.columns, 2):
        (first, _, sparsity), (second, _, other) = one.rpartition(" "), two.rpartition(" ")
        both = table[[one, two]].dropna()
        if sparsity == other and len(both) > 2:
            found[f"{sparsity} {first} {second}"] = float(both.corr(method="spearman").iloc[0, 1])
    return found


def _plot(table: dict[str, dict[str, float]], path: Path) -> None:
    """A panel for each model and sparsity: perplexity by method, without and with ridge."""
    plt = pyplot()
    sparsities = list(dict.fromkeys(panel.rpartition(" ")[2] for panel in table))
    models = list(dict.fromkeys(panel.rpartition(" ")[0] for panel in table))
    size = (5.2 * len(models), 3.0 * len(sparsities))
    figure, axes = plt.subplots(len(sparsities), len(models), figsize=size, squeeze=False)
    for (i, sparsity), (j, model) in itertools.product(enumerate(sparsities), enumerate(models)):
        ax, rows = axes[i][j], table.get(f"{model} {sparsity}", {})
        if not rows:
            ax.set_axis_off()
            continue
        methods = list(dict.fromkeys(row.removesuffix(RIDGE) for row in rows))
        for step, (suffix, label) in enumerate((("", "no compensation"), (RIDGE, "ridge"))):
            values = [rows.get(method + suffix, np.nan) for method in methods]
            bars = ax.barh(np.arange(len(methods)) + 0.4 * step, values, 0.38, label=label)
            ax.bar_label(bars, fmt=_label, padding=2, fontsize=7)
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter("")
        ax.set_yticks(np.arange(len(methods)) + 0.2, methods)
        ax.set_xlabel("perplexity of the test text")
        ax.set_title(f"{model}, {sparsity}")
        ax.margins(x=0.15)
        ax.invert_yaxis()
    axes[0][0].legend(fontsize=7)
    save(figure, path)
    plt.close(figure)


def _label(perplexity: float) -> str:
    return f"{perplexity:,.0f}" if perplexity >= 1000 else f"{perplexity:.4g}"


if __name__ == "__main__":
    main()
