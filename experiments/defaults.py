"""What `ffp prune` should do by itself: order of units, kind of search, start, and tokens of the calibration.

    make demo && python -m experiments.defaults

Prunes the demo's model as `ffp prune` does, in memory, and scores each result on selection text that its search has not
seen, by which the defaults are chosen, and on the test text, by which they are not. A row that is in the JSON is not
run again. About seven minutes a row on one core.

- `runs[]`: `row`, `sparsity`, `seed` and `calibration_tokens`; perplexity of both texts with its standard error;
  `search_tokens`; CPU seconds of the search and of the whole row without its calibration.
- `calibrations[]`: CPU seconds by number of tokens, with Gram matrices; losses of the other texts included.
- `marks`: by row and calibration tokens, the mean loss over the dense model on the selection text over sparsities that
  all of these have, nats a token.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import make_parser, write_marks
from experiments.reading import check_same_settings
from ffp import api
from ffp.config import Experiment
from ffp.config.pruning import CALIBRATION, SEARCH, PruneSettings, prune_settings
from ffp.models.checkpoint import load_tokenizer
from ffp.models.prunable import PrunableModel
from ffp.pipeline import steps
from ffp.pipeline.texts import SplitText, cut_test_windows, cut_windows, open_text
from ffp.pruning.cuts import make_cut
from ffp.store.layout import Layout

SCHEMA = "ffp/experiment/defaults/1"
UNSEEN = 24  # windows of the selection text behind those of the search
COMPENSATED = {"score": "obs", "search": SEARCH.model_dump() | {"compensated": True}}
# What each row says in place of the defaults.
ROWS: dict[str, dict[str, Any]] = {
    "guided-plain": {"method": "fastforward-guided"},  # order of Wanda, nothing compensated
    "table": {"method": "fisher-table", "score": "pairwise"},
    "guided": {"method": "fastforward-guided", "params": {"start": "fisher-table"}, **COMPENSATED},
    "knapsack": {"method": "guided-knapsack", **COMPENSATED},
}
CLOSE = ("guided", "knapsack")  # the rows that take more than one seed to tell apart
RUNS = [
    *((row, sparsity, 32_768, 0) for sparsity in (0.3, 0.5, 0.2) for row in CLOSE),
    *((row, 0.5, 32_768, 1) for row in CLOSE),
    *((row, sparsity, 32_768, 0) for sparsity in (0.3, 0.5, 0.2) for row in ("guided-plain", "table")),
    ("guided-plain", 0.3, 8192, 0),
    *(("table", 0.3, tokens, 0) for tokens in (8192, 16_384, 65_536)),
]


def main() -> None:
    """Runs what is missing, and writes the JSON after each row."""
    options = _options()
    torch.set_num_threads(options.threads)
    experiment = Experiment(options.config)
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    settings = {"model": options.model, "threads": options.threads, "rows": ROWS, "unseen_windows": UNSEEN}
    if done:
        check_same_settings(done, settings)
    runs, calibrations = done.get("runs", []), done.get("calibrations", [])
    bench = _Bench(experiment, options.model)
    for asked in RUNS:
        if asked in {(run["row"], run["sparsity"], run["calibration_tokens"], run["seed"]) for run in runs}:
            continue
        runs.append(bench.run(*asked, calibrations))
        body = {"marks": _marks(runs, bench.dense_loss), "runs": runs, "calibrations": calibrations}
        write_marks(options.out, SCHEMA, body, settings)


def _options() -> argparse.Namespace:
    parser = make_parser("experiments.defaults", __doc__, grid="demo")
    parser.add_argument("--model", default="smollm2-135m", help="model of the grid (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser.parse_args()


class _Bench:
    """A model, its text, and one calibration at a time."""

    def __init__(self, experiment: Experiment, model: str):
        self.experiment, self.model = experiment, model
        layout = Layout.from_grid(experiment.grid)
        self.folder, self.tokenizer = layout.model(model).folder, load_tokenizer(layout.model(model).folder)
        self.text: SplitText = open_text(experiment.grid.calibration_text, data=Path(experiment.grid.data))
        many = SEARCH.model_copy(update={"selection_windows": SEARCH.selection_windows + UNSEEN})
        wide = prune_settings(0.3, search=many)
        seen = cut_windows(self.tokenizer, self.text, wide).selection
        assert seen is not None
        self.texts = {
            "selection": seen[SEARCH.selection_windows :],
            "test": cut_test_windows(self.tokenizer, self.text, wide),
        }
        self.dense_loss = math.log(api.evaluate(self._load().model, self.texts["selection"])["value"])
        self.calibration: tuple[int, api.Calibration] | None = None

    def run(
        self, row: str, sparsity: float, tokens: int, seed: int, calibrations: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Prunes by one row and scores the result."""
        settings = _settings(row, sparsity, tokens, seed)
        prunable = self._load()
        calibration = self._calibrated(prunable, settings, tokens, calibrations)
        cut = make_cut(
            "structured", score=settings.calibration.score, compensation=settings.compensate, pruner=settings.pruner,
            compensated_search=settings.compensated_search,
        )  # fmt: skip
        started = time.process_time()
        found = api.allocate(
            prunable, calibration, settings.method, sparsity=sparsity, cut=cut, budget=settings.search.budget(),
            seed=settings.seed, checkpoints=settings.search.checkpoints,
        )  # fmt: skip
        searched = time.process_time() - started
        masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut)
        api.install(prunable, found.problem, masks, cut)
        scores = {name: api.evaluate(prunable.model, windows) for name, windows in self.texts.items()}
        return {
            "row": row, "sparsity": sparsity, "seed": seed, "calibration_tokens": tokens,
            "search_tokens": found.cost.n_tokens,
            **{name: {"ppl": score["value"], "stderr": score["stderr"]} for name, score in scores.items()},
            "search_cpu_s": searched, "cpu_s": time.process_time() - started,
        }  # fmt: skip

    def _load(self) -> PrunableModel:
        return steps.load_prunable(self.experiment, self.model, self.folder)

    def _calibrated(
        self, prunable: PrunableModel, settings: PruneSettings, tokens: int, calibrations: list[dict[str, Any]]
    ) -> api.Calibration:
        """The calibration of a model that is freshly loaded; its sums are computed once for each number of tokens."""
        if self.calibration is None or self.calibration[0] != tokens:
            started = time.process_time()
            windows = cut_windows(self.tokenizer, self.text, settings)
            self.calibration = tokens, api.calibrate(prunable, windows, grams=True)
            calibrations.append({"tokens": tokens, "cpu_s": time.process_time() - started})
        one = self.calibration[1]
        return api.Calibration(one.windows, one.dense_loss, one.statistics.of(prunable))


def _settings(row: str, sparsity: float, tokens: int, seed: int) -> PruneSettings:
    asked = dict(ROWS[row])
    order = {"score": asked.pop("score")} if "score" in asked else {}
    calibration = CALIBRATION.model_copy(update={"windows": tokens // CALIBRATION.context, **order})
    return prune_settings(sparsity, calibration=calibration, seed=seed, **asked)


def _marks(runs: list[dict[str, Any]], dense_loss: float) -> dict[str, dict[str, float]]:
    """Mean loss over dense by row and calibration tokens: over seeds, then over sparsities that all rows have."""
    found: dict[str, dict[str, float]] = {}
    for tokens in sorted({run["calibration_tokens"] for run in runs}):
        mine = [run for run in runs if run["calibration_tokens"] == tokens]
        by_row: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for run in mine:
            by_row[run["row"]][run["sparsity"]].append(math.log(run["selection"]["ppl"]))
        if common := set.intersection(*(set(each) for each in by_row.values())):
            means = {row: [statistics.fmean(each[s]) for s in common] for row, each in by_row.items()}
            found[str(tokens)] = {row: statistics.fmean(loss) - dense_loss for row, loss in sorted(means.items())}
    return found


if __name__ == "__main__":
    main()
