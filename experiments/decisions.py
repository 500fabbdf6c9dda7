"""How the tokens that fastforward-guided needs grow with the number of decisions.

    snakemake --cores all --profile profiles/local --config grid=config/grids/race.yaml -- calibrated
    python benchmarks/decisions.py

Neighbouring blocks are pruned as one: `--tied` of them share a decision for their attention and one for their FFN, so
that 30 blocks make from 60 decisions down to 6. Model, texts, seeds and the budget of each search are those of
config/grids/race.yaml, at `--sparsity`. Each run leaves a file in --work, so that a killed benchmark goes on where it was.

- `runs[].curve`: selection loss over dense, nats per token, of what the search would have answered at CHECKPOINTS.
- `marks.tokens_needed`: by number of decisions, tokens until the median curve over seeds has made SHARE of the way from
  the start to its lowest point. `marks.gain`: how long that way is, nats per token.
- `marks.exponent`: of the power law tokens = c * decisions^exponent, least squares on logarithms.
- `marks.projected_7b_tokens`: that law at the 64 decisions of a model of 32 blocks; `projected_7b_seconds` the time of
  so many tokens at 2 x 6.74e9 operations each, on half the peak of an A100 (312e12 operations a second in bfloat16).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drawing import pyplot, save
from search_cost import opened, selection_excess

from ffp.allocators import registry
from ffp.config import Experiment
from ffp.core.problem import Allocation, Decision, FloatArray, PruningProblem
from ffp.store.files import write_json
from ffp.store.provenance import provenance

METHOD = "fastforward-guided"
CHECKPOINTS = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
SHARE = 0.75
DECISIONS_7B, PARAMETERS_7B, OPERATIONS_A_SECOND = 64, 6.74e9, 312e12 / 2
SCHEMA = "ffp/benchmark/decisions/1"


class Tied:
    """The reward of a problem with fewer decisions, each of which stands for the same module of several blocks."""

    def __init__(self, reward: Any, problem: PruningProblem, blocks: int):
        """problem: attention and FFN of each block in turn, of the same sizes; `blocks` divides their number."""
        if len(problem.decisions) % (2 * blocks):
            raise SystemExit(f"--tied {blocks} does not divide the {len(problem.decisions) // 2} blocks. Give a divisor.")
        self._reward, self._full = reward, problem
        starts = range(0, len(problem.decisions), 2 * blocks)
        members = [range(start + i, start + 2 * blocks, 2) for start in starts for i in (0, 1)]
        self._members = members
        units = tuple(_together([problem.decisions[i] for i in of]) for of in members)
        self.problem = PruningProblem(units, problem.target, problem.granularity)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reward, name)

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        return float(self._reward(self.full(allocation), windows=windows))

    def select(self, allocation: Allocation) -> float:
        return float(self._reward.select(self.full(allocation)))

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> FloatArray:
        """Means over the members; their tokens' noise is taken as independent, as it nearly is."""
        each = self._reward.marginal_utility(self.full(allocation), windows=windows)
        found = [each[list(of)].mean(axis=0) for of in self._members]
        for values, of in zip(found, self._members, strict=True):
            values[:, 2] /= len(of) ** 0.5
        return np.array(found)

    def full(self, allocation: Allocation) -> Allocation:
        """The same with every block's own decisions."""
        keep = np.zeros(len(self._full.units), dtype=int)
        for kept, of in zip(allocation.keep, self._members, strict=True):
            keep[list(of)] = kept
        return Allocation(self._full.problem_id, tuple(keep.tolist()))


def _together(units: list[Decision]) -> Decision:
    return Decision(
        name=units[0].name,
        n_units=units[0].n_units,
        params_per_unit=sum(unit.params_per_unit for unit in units),
        fixed_params=units[0].min_keep,
        min_keep=sum(unit.fixed_params for unit in units),
        bundle=units[0].size,
    )


def main() -> None:
    options = _options()
    project = Experiment(options.config)
    runs = [_run(project, options, tied, seed) for tied in options.tied for seed in project.grid.seeds]
    body = {
        "marks": marks(runs),
        "command": "python benchmarks/decisions.py",
        "sparsity": options.sparsity,
        "runs": runs,
        "provenance": provenance(settings=project.grid.model_dump(mode="json")),
    }
    write_json(options.out, SCHEMA, body)
    _plot(body, options.out.with_suffix(".svg"))
    print(json.dumps(body["marks"], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/race.yaml"), help="grid file")
    parser.add_argument("--sparsity", default="0.30", help="one of the grid's, as its cells name it")
    parser.add_argument(
        "--tied",
        type=int,
        nargs="+",
        default=[1, 2, 3, 5, 10],
        help="blocks that share decisions, divisors of their number",
    )
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work/decisions"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decisions.json"))
    return parser.parse_args()


def _run(project: Experiment, options: argparse.Namespace, tied: int, seed: int) -> dict[str, Any]:
    """One search and its curve; read where it was made already."""
    file = options.work / f"tied{tied}-seed{seed}.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    cell = next(
        c for c in project.cells() if (c.method, c.sparsity, c.seed) == (METHOD, options.sparsity, seed)
    )  # its model, granularity and search settings
    problem, stats, full = opened(project, cell)
    reward = Tied(full, problem, tied)
    budget = project.grid.search.budget()
    allocator = registry.create(METHOD, project.parameters(METHOD))
    result = allocator.allocate(reward.problem, stats=stats, reward=reward, budget=budget, seed=seed)
    start = registry.create("ffn-only", {}).allocate(reward.problem, stats=stats, reward=None, budget=budget, seed=seed)
    answers = ((0, start.allocation.keep), *result.answers)
    keeps = {at: Allocation(reward.problem.problem_id, keep) for at, keep in answers}
    total = budget.tokens(full.window_tokens)
    curve = [
        {
            "tokens": round(share * total),
            "selection_excess": selection_excess(reward, keeps[max(at for at in keeps if at <= share * total)]),
        }
        for share in (0, *CHECKPOINTS)
    ]
    run = {"decisions": len(reward.problem.decisions), "tied": tied, "seed": seed, "curve": curve}
    write_json(file, SCHEMA, run)
    print(f"{run['decisions']} decisions, seed {seed}: {[round(p['selection_excess'], 3) for p in curve]}", flush=True)
    return run


def marks(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """See the module's text."""
    medians = _medians(runs)
    needed = {count: _tokens_needed(curve) for count, curve in medians.items()}
    slope, constant = np.polyfit(np.log(list(needed)), np.log(list(needed.values())), 1)
    tokens = float(np.exp(constant) * DECISIONS_7B**slope)
    return {
        "tokens_needed": {str(count): tokens for count, tokens in needed.items()},
        "gain": {str(count): curve[0][1] - min(loss for _, loss in curve) for count, curve in medians.items()},
        "exponent": float(slope),
        "projected_7b_tokens": tokens,
        "projected_7b_seconds": tokens * 2 * PARAMETERS_7B / OPERATIONS_A_SECOND,
    }


def _medians(runs: list[dict[str, Any]]) -> dict[int, list[tuple[int, float]]]:
    """By number of decisions: (tokens, median selection loss over seeds) at each checkpoint."""
    found = {}
    for count in sorted({run["decisions"] for run in runs}):
        points = zip(*(run["curve"] for run in runs if run["decisions"] == count), strict=True)
        found[count] = [(at[0]["tokens"], statistics.median(p["selection_excess"] for p in at)) for at in points]
    return found


def _tokens_needed(curve: list[tuple[int, float]]) -> int:
    """Tokens of the first point of a curve that has made SHARE of the way from its start to its lowest point."""
    start, lowest = curve[0][1], min(loss for _, loss in curve)
    return next(tokens for tokens, loss in curve if loss <= start - SHARE * (start - lowest))


def _plot(body: dict[str, Any], path: Path) -> None:
    """Curves by number of decisions (medians), and the tokens needed with the fitted law."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    needed = {int(count): tokens for count, tokens in body["marks"]["tokens_needed"].items()}
    for count, colour in zip(needed, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(needed))), strict=True):
        tokens, losses = zip(*_medians(body["runs"])[count], strict=True)
        left.plot(tokens, losses, "o-", ms=3, color=colour, label=f"{count} decisions")
    left.set(xlabel="tokens forwarded (a backward counts as two)", ylabel="selection loss over dense (nats per token)")
    left.set_ylim(top=1.15 * left.get_ylim()[1])
    left.legend(frameon=False, ncols=2, loc="upper right")
    right.loglog(list(needed), list(needed.values()), "o", label="measured")
    line = np.geomspace(min(needed), DECISIONS_7B)
    exponent = body["marks"]["exponent"]
    law = body["marks"]["projected_7b_tokens"] * (line / DECISIONS_7B) ** exponent
    right.loglog(line, law, "--", color="grey", label=f"tokens = c · decisions^{exponent:.2f}")
    right.set_xticks(list(needed), [str(count) for count in needed])
    right.minorticks_off()
    right.set_yticks(
        sorted(set(needed.values())), [f"{tokens / 1000:.3g} k" for tokens in sorted(set(needed.values()))]
    )
    right.set(xlabel="decisions", ylabel=f"tokens for {SHARE:.0%} of the gain")
    right.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
