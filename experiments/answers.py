"""Scores what every search answered after so many tokens, on windows that no search sees.

    make demo GRID=config/grids/race-compensated-long.yaml && python -m experiments.answers

The race draws its curves on the few selection windows by which searches choose their finalists too. This experiment
reads the same answers (answers.json of the grid's cells) and scores each one again, as its search saw it: on further
windows of the selection split, and on the test text. Nothing is chosen by these figures.

- `runs[].points`: tokens of the search, and the losses of its answer by window, nats per token, over the dense model's.
- `marks.tokens_to_match`, by text, sparsity and method, median over seeds: tokens until the mean loss is at or below
  that of the last answer of evolution under the same seed, over the full budget. null: not within the budget.
- `marks.from_evolution`, by the same, for the answers after each share of the budget: mean loss minus that of
  evolution's last answer, over the seeds that both have, and its standard error over windows.

The JSON is written after each search, and what it has is not computed again, but for the methods of --again, whose
version was raised. The plot beside it shows perplexity on the
test text.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import make_parser, open_model, write_marks
from experiments.drawing import draw_curves
from experiments.reading import (
    SearchedCell,
    add_redraw,
    by_tokens,
    check_same_settings,
    mean_and_stderr,
    median_or_none,
    read_grid,
    tokens_to_reach,
)  # fmt: skip
from ffp.allocators import is_search
from ffp.config import Experiment
from ffp.core.problem import FloatArray
from ffp.store.files import read_json
from ffp.store.layout import Layout

SCHEMA = "ffp/experiment/answers/1"
RIVAL = "evolutionary"
FURTHER = 40  # windows of the selection split behind those that searches see
TEXTS = ("further", "test")
Run = dict[str, Any]


def main() -> None:
    """Scores the answers that the JSON lacks, and draws the plot."""
    options = _options()
    experiment = Experiment(options.config)
    body = read_json(options.out, (SCHEMA,))[1] if options.out.exists() else {}
    runs: list[Run] = [run for run in body.get("runs", []) if run["method"] not in options.again]
    if not options.redraw:
        if runs:
            check_same_settings(body, _settings(experiment))
        _score(experiment, options, runs)
    elif not runs:
        raise SystemExit(f"{options.out} has no runs. Leave --redraw out.")
    _plot(experiment, runs, read_json(options.out, (SCHEMA,))[1]["dense_test_ppl"], options.out.with_suffix(".svg"))


def _options() -> argparse.Namespace:
    parser = make_parser("experiments.answers", __doc__, grid="race-compensated-long")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--again", nargs="+", default=[], metavar="METHOD", help="methods whose runs are replaced")
    add_redraw(parser)
    return parser.parse_args()


def _score(experiment: Experiment, options: argparse.Namespace, runs: list[Run]) -> None:
    """Adds the runs that are missing, and writes the JSON after each."""
    import torch

    torch.set_num_threads(options.threads)
    results = read_grid(experiment)
    known = {(run["method"], run["sparsity"], run["seed"]) for run in runs}
    bench = _Bench(experiment)
    for result in (*results.done, *results.searched):
        cell = result.cell
        if not (result.answers and result.answers.points) or (cell.method, cell.sparsity, cell.seed) in known:
            continue
        runs.append(bench.run(result))
        body = {
            "marks": compute_marks(experiment, runs),
            "command": f"python -m experiments.answers --config {options.config}",
            "dense_test_ppl": bench.dense_test_ppl,
            "runs": runs,
        }
        write_marks(options.out, SCHEMA, body, _settings(experiment))


def _settings(experiment: Experiment) -> dict[str, Any]:
    return {**experiment.grid.model_dump(mode="json"), "further_windows": FURTHER}


class _Bench:
    """The grid's model, its calibration, and the windows to score on."""

    def __init__(self, experiment: Experiment):
        from ffp.measure.loss import window_losses
        from ffp.models.checkpoint import load_tokenizer
        from ffp.pipeline.inputs import scored_windows, text_windows

        (name,) = experiment.grid.models
        self.experiment, self.batch = experiment, experiment.models[name].batch_tokens
        self.prunable, self.calibration = open_model(experiment, name)
        layout, grid, bos = Layout.from_grid(experiment.grid), experiment.grid, experiment.models[name].bos
        tokenizer, search = load_tokenizer(layout.model(name).folder), grid.search
        fitted, (test, *_) = layout.text(grid.calibration_text).folder, grid.test_texts
        count = search.selection_windows + FURTHER
        seen = text_windows(self.prunable, tokenizer, fitted, "selection", search.context, count, bos=bos)
        self.windows = {
            "further": seen[search.selection_windows :],
            "test": scored_windows(experiment, self.prunable, tokenizer, test, layout.text(test).folder, bos=bos),
        }
        self._losses = lambda ids: window_losses(self.prunable.model, ids, batch_tokens=self.batch).numpy()
        self.dense = {text: self._losses(ids) for text, ids in self.windows.items()}
        self.dense_test_ppl = math.exp(self.dense["test"].mean())

    def run(self, result: SearchedCell) -> Run:
        """Scores the answers of a search; those that are equal once."""
        from ffp.pipeline.steps import cut_of

        assert result.answers is not None
        candidates = cut_of(self.experiment, result.cell).candidates(self.calibration.statistics)
        found: dict[tuple[int, ...], dict[str, list[float]]] = {}
        try:
            for point in result.answers.points:
                if (keep := tuple(point.keep)) not in found:
                    candidates.set_keep(keep)
                    found[keep] = {text: self._excess(text) for text in TEXTS}
        finally:
            candidates.restore()
        cell = result.cell
        points = [{"tokens": point.tokens, **found[tuple(point.keep)]} for point in result.answers.points]
        return {"method": cell.method, "sparsity": cell.sparsity, "seed": cell.seed, "points": points}

    def _excess(self, text: str) -> list[float]:
        losses: FloatArray = self._losses(self.windows[text]) - self.dense[text]
        return [round(float(loss), 6) for loss in losses]


def compute_marks(experiment: Experiment, runs: list[Run]) -> dict[str, Any]:
    """Returns the figures that the module's text names."""
    found: dict[str, Any] = {"tokens_to_match": {}, "from_evolution": {}}
    total = max(point["tokens"] for run in runs for point in run["points"])
    for text in TEXTS:
        for sparsity in dict.fromkeys(run["sparsity"] for run in runs):
            mine = [run for run in runs if run["sparsity"] == sparsity]
            goals = {run["seed"]: np.array(run["points"][-1][text]) for run in mine if run["method"] == RIVAL}
            shares, ahead = {}, {}
            for method in (name for name in experiment.grid.methods if any(run["method"] == name for run in mine)):
                own = [run for run in mine if run["method"] == method and run["seed"] in goals]
                if own:
                    shares[method] = _share_to_match(own, goals, text, total)
                    ahead[method] = _differences(own, goals, text, total)
            found["tokens_to_match"].setdefault(text, {})[sparsity] = shares
            found["from_evolution"].setdefault(text, {})[sparsity] = ahead
    return found


def _share_to_match(runs: list[Run], goals: dict[int, FloatArray], text: str, total: int) -> float | None:
    """Median over seeds of the share of the budget until the goal is reached; None where it is not."""
    return median_or_none(
        tokens_to_reach(
            ((tokens, float(losses.mean())) for tokens, losses in _curve(run, text)), goals[run["seed"]].mean()
        )
        / total
        for run in runs
    )


def _differences(runs: list[Run], goals: dict[int, FloatArray], text: str, total: int) -> dict[str, list[float]]:
    """(mean, standard error over windows) of the loss over the goal's, by share of the budget that all seeds have."""
    gaps = by_tokens([[(n, losses - goals[run["seed"]]) for n, losses in _curve(run, text)] for run in runs])
    return {f"{n / total:g}": list(mean_and_stderr(np.mean(each, axis=0))) for n, each in gaps.items()}


def _curve(run: Run, text: str) -> list[tuple[int, FloatArray]]:
    """(tokens, losses by window) of each answer on a text."""
    return [(point["tokens"], np.array(point[text])) for point in run["points"]]


def _plot(experiment: Experiment, runs: list[Run], dense_ppl: float, path: Path) -> None:
    """Median and range over seeds of test perplexity against tokens, a panel for each sparsity."""
    from ffp.report.plots import looks

    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for sparsity in sorted({run["sparsity"] for run in runs}):
        for method in (name for name in experiment.grid.methods if is_search(experiment.method(name))):
            if own := [run for run in runs if (run["method"], run["sparsity"]) == (method, sparsity)]:
                curves = [[(n, dense_ppl * math.exp(loss.mean())) for n, loss in _curve(run, "test")] for run in own]
                panels.setdefault(sparsity, {})[method] = by_tokens(curves)
    draw_curves(panels, looks(experiment), "test perplexity of the answer", path)


if __name__ == "__main__":
    main()
