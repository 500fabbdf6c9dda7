"""How far a search's answer depends on the processor: the same search under several kernels of one machine.

    make demo
    python -m experiments.kernels

A kernel here is a set of environment variables with which PyTorch or MKL computes the same sums by other code, as they
do by themselves on another processor: the last bits of losses and gradients change. The machine's own kernel is that of
the grid's results. Every other one calibrates and searches again, as `ffp calibrate` and `ffp allocate` in processes of
their own, below --work; finished runs are kept. All answers are scored on the test text by the machine's own kernel, so
that only the search's difference counts.

Tried on an AMD EPYC with AVX2 and left out, since they change no bit of a loss there: ONEDNN_MAX_CPU_ISA=SSE41,
MKL_ENABLE_INSTRUCTIONS=SSE4_2, MKL_CBWR=AVX2, and two threads instead of one.

- `runs[]`: by method, sparsity and kernel: `ppl` of the answer and `own_ppl`; `decisions` that keep another number of
  units than the own answer; `same_evaluations` before both searches measure different allocations, of `evaluations`;
  `loss_difference`, the median and the largest until then, nats per token; null where the first ones differ.
- `replays[]`: each own search repeated from its trace, without a model, each loss with an error drawn from the
  differences above. `whole`: repetitions that measured the same allocations to the end. Only for methods that ask for
  losses and not for gradients; the finalists' comparison is not repeated.
- `marks.equal`: by method, runs under other kernels whose answer is the own one to the unit. `marks.replayed`: whole
  replays of all.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reading import read_scores
from ffp.allocators.tracker import Tracker
from ffp.config import Cell, Experiment
from ffp.core.problem import Allocation
from ffp.store import schemas
from ffp.store.files import write_json
from ffp.store.layout import CellFiles, Layout
from ffp.store.provenance import provenance

TAG = "ffp/experiment/kernels/1"
KERNELS: Mapping[str, Mapping[str, str]] = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},  # both without AVX-512; no change where there is none
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},  # PyTorch's own loops without AVX2
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},  # MKL's matrix products with SSE2 only
}
REPLAYS = 20


def main() -> None:
    """Runs what is missing and writes the JSON."""
    options = _options()
    experiment = Experiment(options.config)
    layout, seed = Layout.from_grid(experiment.grid), experiment.grid.seeds[0]
    cells = [c for c in experiment.cells(dense=False) if c.method in options.methods and c.seed == seed]
    runs, errors = [], []
    for kernel, cell in itertools.product(options.kernels, cells):
        files = CellFiles(options.work / kernel / cell.path)
        _search(options, layout, kernel, cell, files.folder)
        found = _differences(layout.cell(cell), files)
        errors += found
        runs.append(_run(experiment, layout, cell, kernel, files, found))
    replays = [_replay(experiment, layout.cell(cell), cell, errors) for cell in cells]
    body = {
        "marks": _marks(runs, replays),
        "command": shlex.join(["python", "-m", "experiments.kernels", *sys.argv[1:]]),
        "kernels": {name: dict(KERNELS[name]) for name in options.kernels},
        "runs": runs,
        "replays": [each for each in replays if each],
        "provenance": provenance(seed=seed, settings=experiment.grid.model_dump(mode="json")).model_dump(),
    }
    write_json(options.out, TAG, body)
    print(json.dumps(body["marks"], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"), help="grid file")
    parser.add_argument("--methods", nargs="+", default=["evolutionary", "fastforward", "fastforward-guided"])
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=list(KERNELS))
    parser.add_argument("--work", type=Path, default=Path("experiments/work/kernels"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/kernels.json"))
    return parser.parse_args()


def _search(options: argparse.Namespace, layout: Layout, kernel: str, cell: Cell, out: Path) -> None:
    """Calibrates and searches under a kernel, unless that is done already."""
    grid = Experiment(options.config).grid
    calibration, model = options.work / kernel / "calibration", layout.model(cell.model).folder
    environment = {**os.environ, **KERNELS[kernel]}

    def ffp(command: str, **words: Any) -> None:
        flags = [word for key, value in words.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        subprocess.run(["ffp", command, "--config", str(options.config), *flags], env=environment, check=True)

    if not (calibration / "calibrate.cost.json").exists():
        ffp(
            "calibrate",
            model=cell.model,
            model_dir=model,
            text_dir=layout.text(grid.calibration_text).folder,
            out=calibration,
        )
    if Experiment(options.config).needs_grams(cell.method) and not (calibration / "grams.cost.json").exists():
        ffp("grams", model=cell.model, model_dir=model, calibration=calibration, out=calibration)
    if not CellFiles(out).allocation.exists():
        ffp("allocate", cell=cell.path, model_dir=model, calibration=calibration, out=out)


def _differences(own: CellFiles, other: CellFiles) -> list[float]:
    """Differences of the losses until both searches measure different allocations, nats per token."""
    pairs = zip(_rows(own), _rows(other), strict=False)
    same = itertools.takewhile(lambda pair: list(pair[0].keep) == list(pair[1].keep), pairs)
    return [math.log(ours.reward / theirs.reward) for ours, theirs in same]


def _rows(files: CellFiles) -> list[Any]:
    return list(schemas.TRACE.read(files.trace).itertuples())


def _run(
    experiment: Experiment, layout: Layout, cell: Cell, kernel: str, files: CellFiles, differences: list[float]
) -> dict[str, Any]:
    own, other = (schemas.AllocationFile.read(each.allocation).keep for each in (layout.cell(cell), files))
    sizes = [abs(difference) for difference in differences]
    return {
        "method": cell.method,
        "sparsity": cell.sparsity,
        "kernel": kernel,
        "own_ppl": _own_perplexity(experiment, cell),
        "ppl": _perplexity(experiment, layout, cell, files),
        "decisions": int((np.array(own) != np.array(other)).sum()),
        "evaluations": len(_rows(files)),
        "same_evaluations": len(sizes),
        "loss_difference": {"median": statistics.median(sizes), "largest": max(sizes)} if sizes else None,
    }


def _own_perplexity(experiment: Experiment, cell: Cell) -> float:
    """Test perplexity of a finished cell of the grid."""
    scores = read_scores(experiment, cell)
    if scores is None:
        raise SystemExit(f"{cell.path} has no perplexity on {experiment.grid.test_texts[0]} yet. Run the grid first.")
    return scores.ppl.value


def _perplexity(experiment: Experiment, layout: Layout, cell: Cell, files: CellFiles) -> float:
    """Test perplexity of an answer by the machine's own kernel; measured once."""
    own = schemas.AllocationFile.read(layout.cell(cell).allocation)
    if schemas.AllocationFile.read(files.allocation).keep == own.keep:
        return _own_perplexity(experiment, cell)
    if not files.scores.exists():
        grid, model = experiment.grid, layout.model(cell.model).folder
        common = ["--config", str(experiment.file), "--cell", cell.path, "--model-dir", str(model)]
        calibration, texts = layout.calibration(cell.model).folder, [layout.text(name) for name in grid.test_texts]
        apply = ["--calibration", str(calibration), "--allocation", str(files.allocation), "--out", str(files.folder)]
        subprocess.run(["ffp", "apply", *common, *apply], check=True)
        score = [word for text in texts for word in ("--text-dir", str(text.folder))]
        score += ["--tasks-dir", str(layout.tasks(experiment.tasks_name).folder)] if experiment.tasks_name else []
        score += ["--cut", str(files.folder), "--out", str(files.scores)]
        subprocess.run(["ffp", "evaluate", *common, *score], check=True)
    return schemas.ScoresFile.read(files.scores).ppl.value


class Parted(Exception):
    """A replayed search asks for what the first one did not."""


class Replay:
    """The losses of a finished search in their order, each with an error."""

    def __init__(self, trace: list[Any], errors: list[float], experiment: Experiment, seed: int):
        self.n_windows, self.window_tokens = experiment.grid.search.windows, experiment.grid.search.context
        self.spent_tokens = self.evaluations = 0
        self._trace, self._errors, self._rng = trace, errors, np.random.default_rng(seed)

    def __call__(self, allocation: Allocation, *, windows: Sequence[int]) -> float:
        """Returns the next reward of the trace with an error; raises Parted where another allocation is asked for."""
        if self.evaluations == len(self._trace) or list(self._trace[self.evaluations].keep) != list(allocation.keep):
            raise Parted
        row = self._trace[self.evaluations]
        self.evaluations, self.spent_tokens = self.evaluations + 1, int(row.tokens)
        return float(row.reward * math.exp(self._rng.choice(self._errors)))

    def select(self, allocation: Allocation) -> float:
        """Ends the replay: the finalists' comparison is not repeated."""
        raise Parted

    def marginal_utility(self, allocation: Allocation, *, windows: Sequence[int]) -> Any:
        """Refuses: only losses are in a trace."""
        raise NotImplementedError("a trace holds no gradients")


def _replay(experiment: Experiment, files: CellFiles, cell: Cell, errors: list[float]) -> dict[str, Any]:
    """Counts the searches with other errors that go the same way; empty for methods that ask for gradients."""
    trace, problem = _rows(files), schemas.AllocationFile.read(files.allocation).pruning_problem
    method, reached = experiment.create(cell.method), []
    for seed in range(REPLAYS):
        reward = Replay(trace, errors, experiment, seed)
        tracker = Tracker(problem, reward, experiment.grid.search.budget(), method=cell.method, seed=cell.seed)
        try:
            with contextlib.suppress(Parted):
                method.run(tracker, np.random.default_rng(cell.seed))  # type: ignore[attr-defined]
        except NotImplementedError:
            return {}
        reached.append(reward.evaluations)
    whole = sum(count == len(trace) for count in reached)
    return {"method": cell.method, "sparsity": cell.sparsity, "replays": REPLAYS, "whole": whole}


def _marks(runs: list[dict[str, Any]], replays: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by method; see the module's text."""
    found: dict[str, Any] = {"equal": {}, "replayed": {}}
    for run in runs:
        counts = found["equal"].setdefault(run["method"], {"equal": 0, "runs": 0})
        counts["equal"] += run["decisions"] == 0
        counts["runs"] += 1
    for replay in filter(None, replays):
        counts = found["replayed"].setdefault(replay["method"], {"whole": 0, "replays": 0})
        counts["whole"] += replay["whole"]
        counts["replays"] += replay["replays"]
    return found


if __name__ == "__main__":
    main()
