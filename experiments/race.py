"""Compares searches at equal cost: same texts, same evaluator, and the same start where a search has one.

    make demo GRID=config/grids/race.yaml && python -m experiments.race

Reads the grid's cells. Each search scores on the selection text what it would have answered after so many tokens
(answers.json of its cell). Those forwards are no part of its budget, and the test text is scored once, at the end. With
--keep, the JSON keeps the runs that only it has, and `kept` names the commits that ran them.

- `runs[].curve`: tokens of the search, and the loss over the dense model's on the selection text in nats per token.
  Heuristics have none.
- `marks.tokens_to_match_evolutionary`, by sparsity and method, median over seeds: tokens until the curve is at or
  below the final loss of evolution under the same seed, over the full budget. null: not within the budget. Seeds whose
  evolution is missing do not count.
- `marks.test_ppl`, by sparsity and method: median over seeds, heuristics beside the searches.
- `marks.selection_test_gap`, by sparsity and search, median over seeds: loss over the dense model's on the test text
  minus that of the final answer on the selection text, in nats per token.

`missing` lists the cells without a score; those whose search has ended are in the curves. The plot beside the JSON
shows the curves. Older JSON files, of an engine of their own (schema ffp/benchmark/search-cost/1), have runs of the
same form and can be drawn again with --redraw; their mark `search_test_gap` was taken on the search text.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import make_parser, write_marks
from experiments.drawing import draw_curves
from experiments.reading import (
    CellResult,
    GridResults,
    SearchedCell,
    add_keep,
    add_redraw,
    by_commit,
    by_tokens,
    check_same_settings,
    median_or_none,
    read_grid,
    tokens_to_reach,
)  # fmt: skip
from ffp.allocators import is_search
from ffp.config import Cell, Experiment
from ffp.store.files import read_json

SCHEMA, OLDER = "ffp/experiment/race/1", "ffp/benchmark/search-cost/1"
RIVAL = "evolutionary"
Run = dict[str, Any]
Runs = dict[str, dict[str, list[Run]]]  # by sparsity and method


def main() -> None:
    """Reads the grid, and writes the JSON and the plot."""
    parser = make_parser("experiments.race", __doc__, grid="race")
    add_redraw(parser)
    add_keep(parser)
    options = parser.parse_args()
    experiment = Experiment(options.config)
    if options.redraw:
        runs = read_runs(options.out)
    else:
        results = read_grid(experiment)
        runs = [read_run(result) for result in (*results.done, *results.searched)]
        kept: dict[str, list[str]] = {}
        if options.keep:
            runs, kept = _keep(read_json(options.out, (SCHEMA,))[1], runs, results)
        scored = {_path(experiment, run) for run in runs if run["test"]}
        body = {
            "marks": compute_marks(experiment, runs),
            "command": f"python -m experiments.race --config {options.config}",
            "budget_tokens": _budget(runs),
            "runs": runs,
            "missing": [path for path in results.missing if path not in scored],
            "kept": kept,
        }
        write_marks(options.out, SCHEMA, body, results.settings)
    _plot(experiment, group_runs(experiment, runs), options.out.with_suffix(".svg"))


def _path(experiment: Experiment, run: Run) -> str:
    """The cell of a run."""
    (model,) = experiment.grid.models
    return Cell(model, "structured", run["sparsity"], run["method"], run["seed"]).path


def _keep(earlier: dict[str, Any], runs: list[Run], results: GridResults) -> tuple[list[Run], dict[str, list[str]]]:
    """Returns the runs with those that only an earlier JSON of the same grid has, and the commits of the latter."""
    check_same_settings(earlier, results.settings)
    here = {_path(results.experiment, run) for run in runs}
    kept = {path: run for run in earlier["runs"] if (path := _path(results.experiment, run)) not in here}
    return [*kept.values(), *runs], by_commit(earlier, kept)


def read_runs(path: Path) -> list[Run]:
    """Reads the runs of a JSON file, also of an older one."""
    tag, body = read_json(path, (SCHEMA, OLDER))
    return [_without_filling(run) for run in body["runs"]] if tag == OLDER else body["runs"]


def read_run(result: SearchedCell) -> Run:
    """Returns a cell's entry of the JSON."""
    points = result.answers.points if result.answers else ()
    ppl = result.scores.ppl if isinstance(result, CellResult) else None
    return {
        "method": result.cell.method,
        "sparsity": result.cell.sparsity,
        "seed": result.cell.seed,
        "curve": [{"tokens": point.tokens, "selection_excess": point.loss} for point in points],
        "final_selection_excess": points[-1].loss if points else None,
        "keep": list(result.allocation.keep) if result.allocation else None,
        "cost": result.cost.model_dump(mode="json", exclude={"provenance"}) if result.cost else None,
        "test": {"ppl": ppl.value, "stderr": ppl.stderr} if ppl else None,
    }


def group_runs(experiment: Experiment, runs: list[Run]) -> Runs:
    """Returns the runs by sparsity and method, in the grid's order; methods without a run are left out."""
    found: Runs = {}
    for sparsity in (f"{value:.2f}" for value in experiment.grid.sparsities):
        for method in experiment.grid.methods:
            if chosen := [run for run in runs if (run["method"], run["sparsity"]) == (method, sparsity)]:
                found.setdefault(sparsity, {})[method] = chosen
    return found


def compute_marks(experiment: Experiment, runs: list[Run]) -> dict[str, Any]:
    """Returns the figures that the race is about, medians over seeds; see the module's text."""
    dense = next((run["test"]["ppl"] for run in runs if run["method"] == "dense"), math.nan)
    budget = _budget(runs)
    found: dict[str, Any] = {"tokens_to_match_evolutionary": {}, "test_ppl": {}, "selection_test_gap": {}}
    for sparsity, methods in group_runs(experiment, runs).items():
        answered = {m: [run for run in of if run["curve"]] for m, of in methods.items()}
        searches = {m: of for m, of in answered.items() if of}
        goal = {run["seed"]: run["final_selection_excess"] for run in searches.get(RIVAL, [])}
        scored = {m: tested for m, of in methods.items() if (tested := [run for run in of if run["test"]])}
        found["test_ppl"][sparsity] = {m: statistics.median(r["test"]["ppl"] for r in of) for m, of in scored.items()}
        found["selection_test_gap"][sparsity] = {
            m: median_or_none([math.log(r["test"]["ppl"] / dense) - r["final_selection_excess"] for r in of])
            for m, of in scored.items()
            if m in searches
        }
        paired = {m: pairs for m, of in searches.items() if (pairs := [run for run in of if run["seed"] in goal])}
        found["tokens_to_match_evolutionary"][sparsity] = {
            m: median_or_none([tokens_to_reach(_curve(run), goal[run["seed"]]) / budget for run in of])
            for m, of in paired.items()
        }
    return found


def _budget(runs: list[Run]) -> int:
    """The last checkpoint of the curves, which is the searches' budget."""
    return max((point["tokens"] for run in runs for point in run["curve"]), default=0)


def _without_filling(run: Run) -> Run:
    """Drops the points before the only answer of a search, which older files filled in with that answer."""
    curve = run["curve"]
    flat = len({point["selection_excess"] for point in curve[:-1]}) == 1
    return {**run, "curve": curve[-1:] if flat else curve}


def _plot(experiment: Experiment, panels: Runs, path: Path) -> None:
    """Median and range over seeds of each search's curve, a panel for each sparsity."""
    from ffp.report.plots import looks

    curves = {
        sparsity: {
            method: by_tokens([_curve(run) for run in of])
            for method, of in methods.items()
            if is_search(experiment.method(method))
        }
        for sparsity, methods in panels.items()
    }
    draw_curves(curves, looks(experiment), "selection loss over dense (nats per token)", path, log=True)


def _curve(run: Run) -> list[tuple[int, float]]:
    """(tokens, loss) of each answer."""
    return [(point["tokens"], point["selection_excess"]) for point in run["curve"]]


if __name__ == "__main__":
    main()
