"""How the cost of a search grows with the model: tokens and seconds to the same gain, on each model of a grid.

    make demo GRID=config/grids/two-models.yaml && python -m experiments.growth

The gain is the same where a search's answer is as good as evolution's last one under the same seed, on the selection
text. For evolution itself it is the first answer that good.

- `runs[]`, for each model, sparsity, seed and search: `tokens` and `seconds` until then (null: not within the budget),
  and their `share` of the budget.
- `models`: parameters that can be pruned, decisions, and seconds a token of a candidate.
- `marks.share`: median of `share` over sparsities and seeds, by model and search.
- `marks.exponent`, by search: by which power of the prunable parameters the tokens grow from the smallest model to the
  largest, with its standard error over sparsities and seeds; 0: they do not grow. Null where all models have one size;
  searches that did not get there once have none, since what they would have needed is not known.
- `marks.projected_7b_tokens`: from the largest model on, at 6.5e9 prunable parameters, with that power: low, middle
  and high, by two standard errors.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.common import make_parser, write_marks
from experiments.reading import CellResult, read_grid
from ffp.config import Experiment

SCHEMA = "ffp/experiment/growth/1"
RIVAL, SEARCHES = "evolutionary", ("evolutionary", "fastforward", "fastforward-guided")
LLAMA_7B = 6.5e9  # prunable parameters
Run = dict[str, Any]


def main() -> None:
    """Reads the grid and writes the JSON."""
    options = make_parser("experiments.growth", __doc__, grid="two-models").parse_args()
    experiment = Experiment(options.config)
    results = read_grid(experiment)
    searched = [cell for cell in results.done if cell.cell.method in SEARCHES]
    models, runs = describe_models(searched), read_runs(searched)
    marks = compute_marks(models, runs)
    body = {"marks": marks, "models": models, "runs": runs, "missing": results.missing}
    write_marks(options.out, SCHEMA, body, results.settings)


def describe_models(searched: list[CellResult]) -> dict[str, Run]:
    """Returns sizes and speed by model, from the problems and costs that the cells saved."""
    found: dict[str, Run] = {}
    for model in dict.fromkeys(result.cell.model for result in searched):
        mine = [result for result in searched if result.cell.model == model]
        speeds = [r.cost.wall_s / r.cost.n_tokens for r in mine if r.cost and r.cost.n_tokens]
        assert mine[0].allocation is not None
        problem = mine[0].allocation.pruning_problem
        found[model] = {
            "prunable_params": problem.total_params,
            "decisions": len(problem.decisions),
            "seconds_per_token": statistics.median(speeds),
        }
    return found


def read_runs(searched: list[CellResult]) -> list[Run]:
    """Returns when each search was as good as evolution's last answer; cells without such a rival are left out."""
    goals = {_setting(r): r.answers.points[-1].loss for r in searched if r.cell.method == RIVAL and r.answers}
    runs = []
    for result in searched:
        if (goal := goals.get(_setting(result))) is None or result.answers is None or result.cost is None:
            continue
        points = result.answers.points
        tokens = next((point.tokens for point in points if point.loss <= goal), None)
        speed = result.cost.wall_s / max(1, result.cost.n_tokens)
        runs.append({
            "model": result.cell.model, "sparsity": result.cell.sparsity, "seed": result.cell.seed,
            "method": result.cell.method, "tokens": tokens,
            "seconds": None if tokens is None else tokens * speed,
            "share": None if tokens is None else tokens / points[-1].tokens,
        })  # fmt: skip
    return runs


def compute_marks(models: dict[str, Run], runs: list[Run]) -> dict[str, Any]:
    """Returns the figures that the experiment is about; see the module's text."""
    shares: dict[str, dict[str, float]] = {}
    for model in models:
        for method in dict.fromkeys(run["method"] for run in runs):
            values = [math.inf if r["share"] is None else r["share"] for r in _of(runs, method=method, model=model)]
            if values and math.isfinite(middle := statistics.median(values)):
                shares.setdefault(model, {})[method] = middle
    found: dict[str, Any] = {"share": shares, "exponent": None, "projected_7b_tokens": None}
    sizes = sorted((models[model]["prunable_params"], model) for model in models)
    (small, first), (large, second) = sizes[0], sizes[-1]
    if small == large:
        return found
    found |= {"exponent": {}, "projected_7b_tokens": {}}
    for method in shares.get(second, {}):
        pairs = _pairs(_of(runs, method=method, model=first), _of(runs, method=method, model=second))
        if any(tokens is None for pair in pairs for tokens in pair):
            continue
        powers = [math.log(after / before) / math.log(large / small) for before, after in pairs]
        if len(powers) < 2:
            continue
        mean, error = statistics.fmean(powers), statistics.stdev(powers) / len(powers) ** 0.5
        tokens = statistics.median(after for _, after in pairs)
        found["exponent"][method] = [mean, error]
        found["projected_7b_tokens"][method] = [
            tokens * (LLAMA_7B / large) ** (mean + step * error) for step in (-2, 0, 2)
        ]
    return found


def _setting(result: CellResult) -> tuple[str, str, int]:
    return result.cell.model, result.cell.sparsity, result.cell.seed


def _of(runs: list[Run], **wanted: str) -> list[Run]:
    return [run for run in runs if all(run[key] == value for key, value in wanted.items())]


def _pairs(first: list[Run], second: list[Run]) -> list[tuple[Any, Any]]:
    """Tokens on both models under the same sparsity and seed; None where a search did not get there."""
    known = {(run["sparsity"], run["seed"]): run["tokens"] for run in first}
    keyed = [((run["sparsity"], run["seed"]), run["tokens"]) for run in second]
    return [(known[key], tokens) for key, tokens in keyed if key in known]


if __name__ == "__main__":
    main()
