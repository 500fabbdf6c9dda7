"""The race: searches at equal cost, from the same start where they have one, on the same texts, by the same evaluator.

    snakemake --cores all --profile profiles/local --config grid=config/grids/race.yaml -- calibrated
    python benchmarks/search_cost.py --jobs 2

The first line fetches and calibrates. Methods, seeds, sparsities and the budget are those of config/grids/race.yaml. Each run
(method, sparsity, seed) is a process with one thread and leaves a file in --work, so that a killed race goes on where
it was. The outcome is one JSON and plot:

- `runs[].curve`: selection loss over dense, nats per token, of what each search would have answered at CHECKPOINTS of
  its budget. The selection text decides among finalists at the end of a search and is scored here for every checkpoint,
  at no cost to the search; the test text is scored once a run, for the final answer.
- `marks.tokens_to_match_evolutionary`: by sparsity and method, median over seeds: tokens until the curve is at or below
  evolution's final loss of the same seed, over evolution's full budget. null: not within the budget.
- `marks.test_ppl`: by sparsity and method, median over seeds; heuristics beside the searches.
- `marks.search_test_gap`: by sparsity and method, median over seeds, nats: by how much the excess loss over dense is
  larger on the test text than on the search text (its first GAP_WINDOWS windows).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from drawing import pyplot, save

from ffp.config import Cell, Experiment
from ffp.core.problem import Allocation
from ffp.store.files import write_json
from ffp.store.provenance import provenance

CHECKPOINTS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
GAP_WINDOWS = 16
SCHEMA = "ffp/benchmark/search-cost/1"
RIVAL = "evolutionary"


def main() -> None:
    options = _options()
    project = Experiment(options.config)
    cells = sorted(project.cells(), key=lambda cell: (cell.seed, cell.sparsity))
    todo = [cell for cell in cells if not _file(options.work, cell).exists()]
    print(f"{len(cells)} runs, {len(cells) - len(todo)} done already", flush=True)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run, options.config, options.work, cell.path): cell for cell in todo}
        for number, future in enumerate(as_completed(futures), start=1):
            future.result()
            print(f"{number}/{len(todo)} {futures[future].path}", flush=True)
    write(project, [json.loads(_file(options.work, cell).read_text()) for cell in cells], options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/race.yaml"), help="grid file")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work/search_cost"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_cost.json"))
    return parser.parse_args()


def _file(work: Path, cell: Cell) -> Path:
    return Path(work) / f"{cell.path.replace('/', '-')}.json"


def _run(config_file: Path, work: Path, path: str) -> None:
    """One search from its start to its test perplexity, in a process of its own."""
    import torch

    from ffp.measure.cost import CostMeter
    from ffp.measure.journal import Journal

    torch.set_num_threads(1)
    project = Experiment(config_file)
    cell = project.cell(path)
    journal = _file(work, cell).with_suffix(".journal")
    identity = [path, {} if cell.method == "dense" else project.settings("allocate", cell)]
    problem, stats, reward = opened(project, cell, Journal(journal, identity))
    with CostMeter() as cost:
        result = _search(project, cell, problem, stats, reward)
        cost.evaluations, cost.n_tokens, cost.earlier_s = reward.evaluations, reward.spent_tokens, reward.earlier_s

    total = project.grid.search.budget().tokens(reward.window_tokens)
    answers = result.answers or ((0, result.allocation.keep),)
    seen = [[keep for tokens, keep in answers if tokens <= share * total] for share in CHECKPOINTS]
    points = [Allocation(problem.problem_id, keeps[-1] if keeps else answers[0][1]) for keeps in seen]
    curve = [
        {"tokens": round(share * total), "selection_excess": selection_excess(reward, point)}
        for share, point in zip(CHECKPOINTS, points, strict=True)
    ]
    body = {
        "method": cell.method,
        "sparsity": cell.sparsity,
        "seed": cell.seed,
        "curve": curve,
        "final_selection_excess": selection_excess(reward, result.allocation),
        "final_search_excess": -math.log(reward(result.allocation, windows=range(GAP_WINDOWS))),
        "keep": list(result.allocation.keep),
        "cost": cost.as_dict(),
        "test": _test(project, cell, reward.sliced, result.allocation),
    }
    write_json(_file(work, cell), SCHEMA, body)
    journal.unlink(missing_ok=True)


def opened(project: Experiment, cell: Cell, journal: Any = None) -> tuple[Any, Any, Any]:
    """The problem of a cell, its calibration statistics, and the evaluator over its model."""
    from ffp.measure.journal import Journal
    from ffp.models.checkpoint import load_model
    from ffp.models.prunable import PrunableModel
    from ffp.pipeline import steps
    from ffp.pruning.cuts import cut_of

    config, data = project.models[cell.model], Path(project.grid.data)
    model_dir, calibration_dir = data / "models" / cell.model, data / "calibration" / cell.model
    prunable = PrunableModel(load_model(model_dir, config), min_keep=config.min_keep, align=config.align)
    stats = steps.open_calibration(prunable, calibration_dir, cell.granularity)
    candidates = cut_of(project, cell).candidates(stats)
    reward = steps.open_reward(candidates, calibration_dir, config.batch_tokens, journal or Journal(None))
    return prunable.problem(float(cell.sparsity), cell.granularity), stats, reward


def selection_excess(reward: Any, allocation: Allocation) -> float:
    """Loss over dense on the selection text, nats per token."""
    return -math.log(reward.select(allocation))


def _search(project: Experiment, cell: Cell, problem: Any, stats: Any, reward: Any) -> Any:
    from ffp.allocators import registry
    from ffp.allocators.base import SearchResult
    from ffp.core import projection

    if cell.method == "dense":
        return SearchResult(projection.dense(problem))
    allocator = registry.create(project.method(cell.method).name, project.parameters(cell.method))
    return allocator.allocate(problem, stats=stats, reward=reward, budget=project.grid.search.budget(), seed=cell.seed)


def _test(project: Experiment, cell: Cell, sliced: Any, allocation: Allocation) -> dict[str, float]:
    """Perplexity of the answer on the test text."""
    from ffp.measure.perplexity import perplexity
    from ffp.measure.windows import read_documents, token_windows
    from ffp.models.checkpoint import load_tokenizer

    documents = read_documents(Path(project.grid.data) / "text" / project.grid.text / "test.jsonl")
    settings = project.grid.evaluation
    model_dir = Path(project.grid.data) / "models" / cell.model
    windows = token_windows(
        load_tokenizer(model_dir), documents, context=settings.context, windows=settings.windows, name="test text"
    )
    sliced.set_allocation(allocation)
    found = perplexity(sliced.model, windows, batch_tokens=project.models[cell.model].batch_tokens)
    return {"ppl": found["value"], "stderr": found["stderr"]}


def marks(project: Experiment, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the race is about, medians over seeds; see the module's text."""
    dense = next(run["test"]["ppl"] for run in runs if run["method"] == "dense")
    found: dict[str, Any] = {"tokens_to_match_evolutionary": {}, "test_ppl": {}, "search_test_gap": {}}
    for sparsity, of in _by_sparsity(project, runs).items():
        goal = {run["seed"]: run["final_selection_excess"] for run in of[RIVAL]}
        found["test_ppl"][sparsity] = {m: statistics.median(r["test"]["ppl"] for r in found) for m, found in of.items()}
        found["search_test_gap"][sparsity] = {
            m: statistics.median(math.log(r["test"]["ppl"] / dense) - r["final_search_excess"] for r in found)
            for m, found in of.items()
        }
        found["tokens_to_match_evolutionary"][sparsity] = {
            m: _median_or_none([_share_to_reach(run["curve"], goal[run["seed"]]) for run in found])
            for m, found in of.items()
            if project.method(m).is_search
        }
    return found


def _by_sparsity(project: Experiment, runs: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """sparsity -> method -> runs, in the grid's order."""
    return {
        f"{s:.2f}": {
            m: [run for run in runs if run["method"] == m and run["sparsity"] == f"{s:.2f}"]
            for m in project.grid.methods
        }
        for s in project.grid.sparsities
    }


def _share_to_reach(curve: list[dict[str, Any]], goal: float) -> float:
    """The first checkpoint at or below the goal, as a share of the budget; infinite where there is none."""
    reached = (point["tokens"] for point in curve if point["selection_excess"] <= goal)
    return next(reached, math.inf) / float(curve[-1]["tokens"])


def _median_or_none(values: list[float]) -> float | None:
    middle = statistics.median(values)
    return middle if math.isfinite(middle) else None


def write(project: Experiment, runs: list[dict[str, Any]], out: Path) -> None:
    """The JSON with its marks, and the plot beside it."""
    body = {
        "marks": marks(project, runs),
        "command": "python benchmarks/search_cost.py",
        "budget_tokens": runs[-1]["curve"][-1]["tokens"],
        "runs": runs,
        "provenance": provenance(settings=project.grid.model_dump(mode="json")),
    }
    write_json(out, SCHEMA, body)
    _plot(project, runs, out.with_suffix(".svg"))
    print(json.dumps(body["marks"], indent=1))


def _plot(project: Experiment, runs: list[dict[str, Any]], path: Path) -> None:
    """Median and range over seeds of each search's curve, a panel a sparsity."""
    from matplotlib.ticker import MaxNLocator

    from ffp.report.plots import looks

    plt = pyplot()
    look, panels = looks(project), _by_sparsity(project, runs)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, (sparsity, of) in zip(axes[0], panels.items(), strict=True):
        for method in (m for m in of if project.method(m).is_search):
            tokens = [point["tokens"] for point in of[method][0]["curve"]]
            losses = list(zip(*([p["selection_excess"] for p in run["curve"]] for run in of[method]), strict=True))
            first = len(losses) - 1 if len(set(losses[:-1])) == 1 else 0  # an answer at its end only is a point
            medians = [statistics.median(values) for values in losses]
            low, high = zip(*((min(values), max(values)) for values in losses), strict=True)
            colour, style = look[method].colour, {"marker": look[method].marker, "linestyle": look[method].line}
            axis.plot(tokens[first:], medians[first:], **style, ms=5, label=method, color=colour)
            axis.fill_between(tokens[first:], low[first:], high[first:], alpha=0.15, color=colour)
            axis.vlines(tokens[first], low[first], high[first], color=colour, alpha=0.4)
        axis.set(title=f"{float(sparsity):.0%} sparsity", xlabel="tokens forwarded (a backward counts as two)")
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(tokens[::2], [f"{count / 1000:.3g} k" for count in tokens[::2]])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(MaxNLocator(6))
        axis.yaxis.set_major_formatter("{x:.2f}")
    axes[0][0].set_ylabel("selection loss over dense (nats per token)")
    axes[0][-1].legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
