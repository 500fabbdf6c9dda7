"""What finished jobs of a grid took: seconds, tokens and memory of each step, and the speed that follows from them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ffp.config import Experiment
from ffp.models.checkpoint import dtype_of
from ffp.models.placement import choose_device
from ffp.models.prunable import PrunableModel
from ffp.pipeline.estimate import SHARE, flops_per_second
from ffp.pipeline.preflight import STEPS
from ffp.pipeline.sizes import computing_cells, forward_flops
from ffp.store import schemas
from ffp.store.layout import Layout

ASSUMED = 100e12  # of a GPU that is not here, operations a second
UNSEEN = ("NA", "-")  # what Snakemake writes where it measured nothing
TIMED = ("calibrate", "allocate")  # steps whose tokens are all that they forward


@dataclass(frozen=True)
class Took:
    """What jobs took.

    Attributes:
        jobs: Finished jobs.
        seconds: Of all of them.
        tokens: Forwarded, all together; 0 where no file says it.
        memory: Peak bytes of the largest job: of the process on a CPU, of the device on CUDA.
    """

    jobs: int
    seconds: float
    tokens: int
    memory: int


def took(experiment: Experiment, name: str) -> dict[str, Took]:
    """Returns what the finished jobs of a model took, by step; of cells whose step runs the model.

    Gram matrices count where this grid keeps them: those of another grid may lie beside the calibration.
    """
    layout = Layout.from_grid(experiment.grid)
    calibration = layout.calibration(name)
    grams = [calibration.grams_cost] if experiment.keeps_grams else []
    found = {"calibrate": _sum(_costs([calibration.cost])), "grams": _sum(_costs(grams))}
    for step, cells in computing_cells(experiment, name).items():
        files = [layout.cell(cell) for cell in cells]
        if step == "apply":
            found[step] = _sum(_benchmarks([layout.benchmark(step, cell.path) for cell in cells]))
        elif step == "evaluate":
            scores = [schemas.ScoresFile.read(cell.scores) for cell in files if cell.scores.is_file()]
            found[step] = _sum([_of_cost(file.cost) for file in scores])
        else:
            found[step] = _sum(
                _costs([cell.search_cost if step == "allocate" else cell.recover_cost for cell in files])
            )
    return {step: found[step] for step in STEPS if found[step].jobs}


def _costs(paths: Sequence[Path]) -> list[Took]:
    return [_of_cost(schemas.CostFile.read(path)) for path in paths if path.is_file()]


def _of_cost(cost: schemas.Cost) -> Took:
    return Took(1, cost.wall_s, cost.n_tokens, cost.peak_mem_bytes)


def _benchmarks(paths: Sequence[Path]) -> list[Took]:
    """What Snakemake itself measured of jobs that write no cost; a job can be too short for it to see its memory."""
    found = []
    for path in (path for path in paths if path.is_file()):
        for row in csv.DictReader(path.read_text().splitlines(), delimiter="\t"):
            memory = 0.0 if row["max_rss"] in UNSEEN else float(row["max_rss"]) * 2**20
            found.append(Took(1, float(row["s"]), 0, int(memory)))
    return found


def _sum(parts: Sequence[Took]) -> Took:
    return Took(
        sum(part.jobs for part in parts),
        sum(part.seconds for part in parts),
        sum(part.tokens for part in parts),
        max((part.memory for part in parts), default=0),
    )


@dataclass(frozen=True)
class Speed:
    """How fast a model runs.

    Attributes:
        flops: Multiplications and additions a second.
        source: Where that is known from.
    """

    flops: float
    source: str


def speed_of(experiment: Experiment, name: str, prunable: PrunableModel) -> Speed:
    """Returns the speed of a model's jobs: that of its finished ones, else of this machine, else one that is assumed.

    Args:
        experiment: The grid.
        name: One of its models.
        prunable: Its modules, without weights.
    """
    timed = [part for step, part in took(experiment, name).items() if step in TIMED and part.tokens]
    if timed:
        spent = _sum(timed)
        return Speed(forward_flops(prunable) * spent.tokens / spent.seconds, "measured: its finished jobs")
    config = experiment.models[name]
    if config.device == "cpu" or torch.cuda.is_available():
        device = choose_device(config.device)
        speed = flops_per_second(device, dtype_of(prunable.model, config)) * SHARE
        return Speed(speed, f"measured: products of matrices on this machine's {device.type}")
    return Speed(ASSUMED, "assumed; give --tflops")
