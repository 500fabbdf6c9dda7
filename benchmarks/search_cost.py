"""The race: searches at equal cost, from the same start, on the same texts, through the same evaluator.

    python benchmarks/search_cost.py --jobs 2

Needs what `make demo` leaves behind (model, texts, calibration). Each run (method, sparsity, seed) is a process with
one thread and leaves a file in --work, so that a killed race goes on where it was. The outcome is one JSON and plot:

- `curves`: selection loss over dense, nats per token, of what each search would have answered at CHECKPOINTS of its
  budget. The selection text decides among finalists at the end of a search and is scored here for every checkpoint,
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

CHECKPOINTS = (1 / 8, 1 / 4, 1 / 2, 1)
GAP_WINDOWS = 8
START = "ffn-only"
HEURISTICS = ("uniform", "ffn-only", "owl")
SEARCHES: dict[str, dict[str, Any]] = {
    "evolutionary": {"start": START},
    "fastforward-guided": {"start": START},
    "fastforward": {},  # its first mean keeps attention whole too
    "cma-es": {"start": START},
    "random-search": {"start": START},
}
SCHEMA = "ffp/benchmark/search-cost/1"


def main() -> None:
    options = _options()
    runs = [{"method": "dense", "sparsity": 0.0, "seed": 0}] + [
        {"method": method, "sparsity": sparsity, "seed": seed}
        for sparsity in options.sparsities
        for method in [*HEURISTICS, *SEARCHES]
        for seed in (options.seeds if method in SEARCHES else options.seeds[:1])
    ]
    todo = [run for run in runs if not _file(options.work, run).exists()]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} done already")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run, vars(options), run): run for run in todo}
        for number, future in enumerate(as_completed(futures), start=1):
            future.result()
            print(f"{number}/{len(todo)} {futures[future]}", flush=True)
    results = [json.loads(_file(options.work, run).read_text()) for run in runs]
    _write(options, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/demo.yaml"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.2, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--evaluations", type=int, default=96, help="full-fidelity evaluations that the budget pays for"
    )
    parser.add_argument("--windows", type=int, default=1, help="windows of the search text behind an evaluation")
    parser.add_argument("--test-windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work/search_cost"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_cost.json"))
    return parser.parse_args()


def _file(work: Path, run: dict[str, Any]) -> Path:
    return Path(work) / f"s{run['sparsity']:.2f}-{run['method']}-seed{run['seed']}.json"


def _run(options: dict[str, Any], run: dict[str, Any]) -> None:
    """One search from its start to its test perplexity, in a process of its own."""
    import torch

    from ffp import registry, steps
    from ffp.artifacts import write_json
    from ffp.config import Project
    from ffp.cost import CostMeter
    from ffp.models.adapter import Adapter, load_model
    from ffp.models.sliced import SlicedModel
    from ffp.reward import Journal
    from ffp.types import Allocation, SearchBudget

    torch.set_num_threads(1)
    project = Project(options["config"])
    config, data = project.models[options["model"]], Path(project.grid.data)
    model_dir, calibration_dir = data / "models" / options["model"], data / "calibration" / options["model"]
    adapter = Adapter(load_model(model_dir, config), min_keep=config.min_keep)
    stats = steps.open_calibration(adapter, calibration_dir)
    journal = _file(options["work"], run).with_suffix(".journal")
    version = None if run["method"] == "dense" else registry.find(run["method"]).version
    identity = [run, options["evaluations"], options["windows"], version]
    candidates = SlicedModel(adapter, stats.orders(project.grid.calibration.score))
    reward = steps.open_reward(candidates, calibration_dir, config.batch_tokens, Journal(journal, identity))
    problem = adapter.problem(run["sparsity"])
    budget = SearchBudget(options["evaluations"], options["windows"], project.grid.search.finalists)
    with CostMeter() as cost:
        result = _search(run, problem, stats=stats, reward=reward, budget=budget, seed=run["seed"])
        cost.evaluations, cost.n_tokens, cost.earlier_s = reward.evaluations, reward.spent_tokens, reward.earlier_s

    def excess(keep: tuple[int, ...]) -> float:
        return -math.log(reward.select(Allocation(problem.problem_id, keep)))

    total = budget.tokens(reward.window_tokens)
    answers = result.answers or ((0, result.allocation.keep),)
    seen = [[keep for tokens, keep in answers if tokens <= share * total] for share in CHECKPOINTS]
    body = {
        **run,
        "curve": [
            {"tokens": round(share * total), "selection_excess": excess(keeps[-1] if keeps else answers[0][1])}
            for share, keeps in zip(CHECKPOINTS, seen, strict=True)
        ],
        "final_selection_excess": excess(result.allocation.keep),
        "final_search_excess": -math.log(reward(result.allocation, windows=range(GAP_WINDOWS))),
        "keep": list(result.allocation.keep),
        "cost": cost.as_dict(),
        "test": _test(project, reward.sliced, result.allocation, options, model_dir),
    }
    write_json(_file(options["work"], run), SCHEMA, body)
    journal.unlink(missing_ok=True)


def _search(run: dict[str, Any], problem: Any, **given: Any) -> Any:
    from ffp import budget, registry
    from ffp.types import SearchResult

    if run["method"] == "dense":
        return SearchResult(budget.dense(problem))
    return registry.create(run["method"], SEARCHES.get(run["method"], {})).allocate(problem, **given)


def _test(project: Any, sliced: Any, allocation: Any, options: dict[str, Any], model_dir: Path) -> dict[str, float]:
    """Perplexity of the answer, and of the dense model once more, on the same windows of the test text."""
    from ffp.evaluation import perplexity
    from ffp.models.adapter import load_tokenizer
    from ffp.texts import read_documents, token_windows

    documents = read_documents(Path(project.grid.data) / "text" / project.grid.text / "test.jsonl")
    count, tokenizer = options["test_windows"], load_tokenizer(model_dir)
    windows = token_windows(tokenizer, documents, context=512, windows=count, name="test text")
    batch = project.models[options["model"]].batch_tokens
    sliced.set_allocation(allocation)
    found = perplexity(sliced.model, windows, batch_tokens=batch)
    return {"ppl": found["value"], "stderr": found["stderr"]}


def marks(results: list[dict[str, Any]], total: int) -> dict[str, Any]:
    """The figures that the race is about, medians over seeds; see the module's text."""
    dense = next(run["test"]["ppl"] for run in results if run["method"] == "dense")
    found: dict[str, Any] = {"tokens_to_match_evolutionary": {}, "test_ppl": {}, "search_test_gap": {}}
    for sparsity in sorted({run["sparsity"] for run in results} - {0.0}):
        key, of = f"{sparsity:.2f}", _by_method(results, sparsity)
        goal = {run["seed"]: run["final_selection_excess"] for run in of["evolutionary"]}
        found["test_ppl"][key] = {m: statistics.median(r["test"]["ppl"] for r in runs) for m, runs in of.items()}
        found["search_test_gap"][key] = {
            m: statistics.median(math.log(r["test"]["ppl"] / dense) - r["final_search_excess"] for r in runs)
            for m, runs in of.items()
        }
        found["tokens_to_match_evolutionary"][key] = {
            m: _median_or_none([_tokens_to_reach(run["curve"], goal[run["seed"]]) / total for run in of[m]])
            for m in SEARCHES
        }
    return found


def _by_method(results: list[dict[str, Any]], sparsity: float) -> dict[str, list[dict[str, Any]]]:
    return {
        method: [run for run in results if run["method"] == method and run["sparsity"] == sparsity]
        for method in [*HEURISTICS, *SEARCHES]
    }


def _tokens_to_reach(curve: list[dict[str, Any]], goal: float) -> float:
    return next((point["tokens"] for point in curve if point["selection_excess"] <= goal), math.inf)


def _median_or_none(values: list[float]) -> float | None:
    middle = statistics.median(values)
    return middle if math.isfinite(middle) else None


def _write(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    from ffp.artifacts import provenance, write_json

    window = results[-1]["curve"][-1]["tokens"]
    facts = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("work", "out")}
    body = {
        "marks": marks(results, window),
        "budget_tokens": window,
        "start": START,
        "runs": results,
        "provenance": provenance(settings=facts),
    }
    write_json(options.out, SCHEMA, body)
    _plot(results, options.config, options.out.with_suffix(".svg"))
    print(json.dumps(body["marks"], indent=1))


def _plot(results: list[dict[str, Any]], config: Path, path: Path) -> None:
    """Median and range over seeds of each search's curve, a panel a sparsity."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ffp"
    import matplotlib.pyplot as plt

    from ffp.artifacts import whole
    from ffp.config import Project
    from ffp.report.plots import looks

    look = looks(Project(config))
    sparsities = sorted({run["sparsity"] for run in results} - {0.0})
    figure, axes = plt.subplots(1, len(sparsities), figsize=(5 * len(sparsities), 4), squeeze=False)
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        of = _by_method(results, sparsity)
        for method in SEARCHES:
            tokens = [point["tokens"] for point in of[method][0]["curve"]]
            losses = list(zip(*([p["selection_excess"] for p in run["curve"]] for run in of[method]), strict=True))
            line = [statistics.median(values) for values in losses]
            axis.plot(tokens, line, "o-", label=method, color=look[method].colour)
            axis.fill_between(
                tokens, [min(v) for v in losses], [max(v) for v in losses], alpha=0.15, color=look[method].colour
            )
        axis.set(title=f"{sparsity:.0%} sparsity", xlabel="tokens forwarded (a backward counts as two)", xscale="log")
    axes[0][0].set_ylabel("selection loss over dense (nats per token)")
    axes[0][-1].legend(frameon=False)
    figure.tight_layout()
    with whole(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
