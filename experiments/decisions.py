"""Measures how the tokens that fastforward-guided needs grow with the number of decisions.

    snakemake --cores all --profile profiles/local --config grid=config/grids/race.yaml -- calibrated
    python -m experiments.decisions

Neighbouring blocks are pruned as one: `--tied` of them share a decision for their attention and one for their FFN, so
that 30 blocks make from 60 decisions down to 6. Model, texts, seeds and the budget of each search are those of
config/grids/race.yaml, at `--sparsity`. Each run leaves a file in --work; a killed experiment goes on after the last.

- `runs[].curve`: loss over the dense model's on the selection text, in nats per token, of what the search would have
  answered at CHECKPOINTS. The point at 0 tokens is the FFN-only allocation that the search starts from.
- `marks.tokens_needed`: by number of decisions, tokens until the median curve over seeds has made SHARE of the way from
  the start to its lowest point. `marks.gain`: how long that way is, in nats per token.
- `marks.exponent`: of the power law tokens = c * decisions^exponent, least squares on logarithms. Searches that gain
  nothing over their start need 0 tokens and are left out; null where fewer than two numbers of decisions remain.
- `marks.projected_7b_tokens`: that law at the 64 decisions of a model of 32 blocks; `projected_7b_seconds` the time of
  so many tokens at 2 x 6.74e9 operations each, on half the peak of an A100 (312e12 operations a second in bfloat16).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import make_parser, open_model, write_marks
from experiments.drawing import pyplot, save
from experiments.reading import add_redraw
from ffp.allocators.base import Search
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.tracker import Tracker
from ffp.config import Experiment
from ffp.core.problem import Allocation, Decision, FloatArray, PruningProblem
from ffp.measure.reward import ModelReward
from ffp.measure.text import Text
from ffp.pipeline.steps import cut_of
from ffp.store.digests import calibration_digest
from ffp.store.files import digest, read_json, write_json
from ffp.store.identity import step_settings
from ffp.store.layout import Layout

METHOD = "fastforward-guided"
CHECKPOINTS = (0, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # shares of the budget
SHARE = 0.75
DECISIONS_7B, PARAMETERS_7B, OPERATIONS_A_SECOND = 64, 6.74e9, 312e12 / 2
SCHEMA = "ffp/benchmark/decisions/1"


class Tied:
    """A problem with fewer decisions, each for the same module of several neighbouring blocks, and its reward.

    Attributes:
        full: The problem in which every block decides for itself.
        problem: The one with shared decisions; the budget is the same number of parameters.
    """

    def __init__(self, full: PruningProblem, blocks: int, reward: Any = None):
        """Lets blocks share their decisions.

        Args:
            full: Attention and FFN of each block in turn, every block of the same sizes.
            blocks: Neighbours that share; a divisor of the number of blocks.
            reward: Of the full problem's allocations.
        """
        if len(full.decisions) % (2 * blocks):
            raise SystemExit(f"--tied {blocks} does not divide the {len(full.decisions) // 2} blocks. Give a divisor.")
        starts = range(0, len(full.decisions), 2 * blocks)
        self._members = [range(start + i, start + 2 * blocks, 2) for start in starts for i in (0, 1)]
        self._reward, self.full = reward, full
        shared = tuple(share_decision([full.decisions[i] for i in members]) for members in self._members)
        self.problem = dataclasses.replace(full, decisions=shared)

    def __getattr__(self, name: str) -> Any:
        """Counters and sizes are those of the full reward."""
        return getattr(self._reward, name)

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        """Returns the reward of the expanded allocation."""
        return float(self._reward(self.expand(allocation), windows=windows))

    def select(self, allocation: Allocation) -> float:
        """Returns the reward of the expanded allocation on the selection text."""
        return float(self._reward.select(self.expand(allocation)))

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> FloatArray:
        """Returns means over the members of each decision, whose noise is taken as independent, as it nearly is."""
        each = self._reward.marginal_utility(self.expand(allocation), windows=windows)
        found = np.array([each[list(members)].mean(axis=0) for members in self._members])
        found[:, :, 2] /= np.sqrt([len(members) for members in self._members])[:, None]
        return found

    def expand(self, allocation: Allocation) -> Allocation:
        """Returns the allocation of the full problem that keeps the same units in every block that shares."""
        keep = np.zeros(len(self.full.decisions), dtype=int)
        for kept, members in zip(allocation.keep, self._members, strict=True):
            keep[list(members)] = kept
        return Allocation.of(self.full, keep)


def share_decision(members: Sequence[Decision]) -> Decision:
    """Returns one decision for several of the same size: a unit of it is a unit of every member."""
    first = members[0]
    if any(
        (each.n_units, each.min_keep, each.bundle) != (first.n_units, first.min_keep, first.bundle) for each in members
    ):
        raise SystemExit(f"{first.name} and its neighbours have different sizes and cannot share a decision.")
    return dataclasses.replace(
        first,
        params_per_unit=sum(each.params_per_unit for each in members),
        fixed_params=sum(each.fixed_params for each in members),
    )


def main() -> None:
    """Runs the searches that are missing, and writes the JSON and the plot."""
    options = _options()
    if options.redraw:
        _, body = read_json(options.out, (SCHEMA,))
    else:
        experiment = Experiment(options.config)
        runs = [_run(experiment, options, tied, seed) for tied in options.tied for seed in options.seeds]
        body = {
            "marks": marks(runs),
            "command": shlex.join(["python", "-m", "experiments.decisions", *sys.argv[1:]]),
            "sparsity": options.sparsity,
            "runs": runs,
        }
        write_marks(options.out, SCHEMA, body, experiment.grid.model_dump(mode="json"))
    _plot(body, options.out.with_suffix(".svg"))


def _options() -> argparse.Namespace:
    parser = make_parser("experiments.decisions", __doc__, grid="race")
    add_redraw(parser)
    parser.add_argument("--sparsity", default="0.30", help="one of the grid's, as its cells name it (%(default)s)")
    tied = "blocks that share decisions, divisors of their number"
    parser.add_argument("--tied", type=int, nargs="+", default=[1, 2, 3, 5, 10], help=tied)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="some of the grid's (%(default)s)")
    work = Path("experiments/work/decisions")
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help="finished runs (%(default)s)")
    return parser.parse_args()


def _run(experiment: Experiment, options: argparse.Namespace, tied: int, seed: int) -> dict[str, Any]:
    """One search and its curve, or the file that an earlier attempt with the same settings left of it."""
    wanted = (METHOD, options.sparsity, seed)
    cell = next(cell for cell in experiment.cells() if (cell.method, cell.sparsity, cell.seed) == wanted)
    calibrated = calibration_digest(Layout.from_grid(experiment.grid).calibration(cell.model).folder)
    key = digest([step_settings(experiment, "allocate", cell), cell.path, calibrated])
    file = options.work / f"tied{tied}-seed{seed}-{key}.json"
    if file.exists():
        return read_json(file, (SCHEMA,))[1]
    prunable, calibration = open_model(experiment, cell.model)
    candidates = cut_of(experiment, cell).candidates(calibration.statistics)
    texts = [Text(name, getattr(calibration.windows, name), loss) for name, loss in calibration.dense_loss.items()]
    reward = ModelReward(candidates, *texts, batch_tokens=experiment.models[cell.model].batch_tokens)
    problem = Tied(prunable.problem(float(cell.sparsity), cell.granularity), tied, reward)
    curve, count = _search(problem, experiment, seed), len(problem.problem.decisions)
    run = {"decisions": count, "tied": tied, "seed": seed, "curve": curve}
    write_json(file, SCHEMA, run)
    losses = [round(point["selection_excess"], 3) for point in curve]
    print(f"{count} decisions, seed {seed}: {losses}", flush=True)
    return run


def _search(tied: Tied, experiment: Experiment, seed: int) -> list[dict[str, Any]]:
    """Runs the search on a tied problem and returns its curve."""
    method, budget = experiment.create(METHOD), experiment.grid.search.budget()
    assert isinstance(method, Search)
    tracker = Tracker(tied.problem, tied, budget, method=METHOD, seed=seed)
    method.run(tracker, np.random.default_rng(seed))
    keeps = {0: ffn_only_allocation(tied.problem).keep, **{tokens: keep for tokens, keep, _ in tracker.answers}}
    total = budget.tokens(tied.window_tokens)
    curve = []
    for share in CHECKPOINTS:
        keep = keeps[max(tokens for tokens in keeps if tokens <= share * total)]
        loss = -math.log(tied.select(Allocation.of(tied.problem, keep)))
        curve.append({"tokens": round(share * total), "selection_excess": loss})
    return curve


def marks(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures that the module's text describes."""
    medians = _medians(runs)
    needed = {count: _tokens_needed(curve) for count, curve in medians.items()}
    found: dict[str, Any] = {
        "tokens_needed": {str(count): tokens for count, tokens in needed.items()},
        "gain": {str(count): curve[0][1] - min(loss for _, loss in curve) for count, curve in medians.items()},
        "exponent": None,
        "projected_7b_tokens": None,
        "projected_7b_seconds": None,
    }
    measured = {count: tokens for count, tokens in needed.items() if tokens}
    if len(measured) > 1:
        slope, constant = np.polyfit(np.log(list(measured)), np.log(list(measured.values())), 1)
        tokens = float(np.exp(constant) * DECISIONS_7B**slope)
        found |= {"exponent": float(slope), "projected_7b_tokens": tokens}
        found["projected_7b_seconds"] = tokens * 2 * PARAMETERS_7B / OPERATIONS_A_SECOND
    return found


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
    if (exponent := body["marks"]["exponent"]) is not None:
        line = np.geomspace(min(needed), DECISIONS_7B)
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
