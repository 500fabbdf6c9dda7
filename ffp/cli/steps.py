"""The commands that are steps of a grid: each runs one rule of the workflow by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ffp.allocators import is_search
from ffp.cli.app import STEPS, app, start_torch
from ffp.config import Cell, Experiment, ModelConfig, TasksConfig, TextConfig, read_part
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

GridFile = Annotated[Path, typer.Option("--config", help="Grid file, e.g. config/grids/demo.yaml.")]
ModelName = Annotated[str, typer.Option("--model", metavar="NAME", help="A model of the grid.")]
CellPath = Annotated[str, typer.Option("--cell", metavar="CELL", help="MODEL/GRANULARITY/sSPARSITY/METHOD/seedN.")]
ModelDir = Annotated[Path, typer.Option(help="Folder of the fetched model.")]
TextDir = Annotated[Path, typer.Option(help="Folder of the fetched text.")]
TasksDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the fetched tasks, for a grid that scores some.")
]
CalibrationDir = Annotated[Path, typer.Option("--calibration", help="Folder that ffp calibrate filled.")]
CellDir = Annotated[Path, typer.Option("--out", help="Folder of the cell.")]
OutDir = Annotated[Path, typer.Option("--out", help="Folder to make.")]


def open_cell(config: Path, path: str, *, computes: bool = True) -> tuple[Experiment, Cell]:
    """Returns the grid and one of its cells, with torch set up for the cell's model; see start."""
    experiment = Experiment(config)
    cell = experiment.cell(path)
    start(experiment.models[cell.model], computes=computes)
    return experiment, cell


def open_model(config: Path, model: str) -> Experiment:
    """Returns the grid; ConfigError unless it has a model of this name."""
    experiment = Experiment(config)
    if model not in experiment.models:
        raise ConfigError(f"{experiment.file} has no model {model!r}: {did_you_mean(model, experiment.models)}")
    return experiment


def start(model: ModelConfig, *, computes: bool = True) -> None:
    """Sets torch up for a model; computes: False for a command that leaves GPUs to others and waits for none."""
    start_torch(model.device, gpus=model.resources.gpu if computes else 0, threads=model.resources.threads)


@app.command(rich_help_panel=STEPS)
def asset(
    kind: Annotated[
        Literal["model", "text", "tasks", "grid-tasks"],
        typer.Argument(help="What to fetch; grid-tasks: the tasks that a grid lists."),
    ],
    config: Annotated[Path, typer.Option(help="YAML file of the model, text, tasks or grid.")],
    out: OutDir,
) -> None:
    """Fetch and verify a model, a text or a set of tasks.

    Example:
      ffp asset text --config config/texts/embedded.yaml --out data/text/embedded
    """
    from ffp import assets
    from ffp.models.families import family_of

    if kind == "model":
        assets.fetch_model(read_part(ModelConfig, config), out, check_family=family_of)
    elif kind == "text":
        assets.fetch_text(read_part(TextConfig, config), out)
    else:
        tasks = read_part(TasksConfig, config) if kind == "tasks" else Experiment(config).tasks
        if tasks is None:
            raise ConfigError(f"{config} names no tasks. Give a grid with a list of tasks.")
        assets.fetch_tasks(tasks, out)


@app.command(rich_help_panel=STEPS)
def preflight(
    config: GridFile, model: ModelName, model_dir: ModelDir,
    text_dir: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Folder of a fetched text: of calibration, then those of tests.")
    ],
    out: Annotated[Path, typer.Option(help="preflight.json to write.")],
    tasks_dir: TasksDir = None,
) -> None:  # fmt: skip
    r"""Check all that would fail a model's cells, before anything is spent on them.

    Example:
      ffp preflight --config config/grids/demo.yaml --model smollm2-135m \
          --model-dir data/models/smollm2-135m --text-dir data/text/embedded \
          --tasks-dir data/tasks/demo --out data/calibration/smollm2-135m/preflight.json
    """
    experiment = open_model(config, model)
    names = experiment.grid.all_texts
    if len(text_dir) != len(names):
        raise ConfigError(
            f"{experiment.file} reads the texts {', '.join(names)}: give --text-dir {len(names)} times, in this order."
        )
    start(experiment.models[model], computes=False)
    from ffp.pipeline import planned

    planned.check_model(experiment, model, model_dir, dict(zip(names, text_dir, strict=True)), tasks_dir, out)


@app.command(rich_help_panel=STEPS)
def calibrate(config: GridFile, model: ModelName, model_dir: ModelDir, text_dir: TextDir, out: OutDir) -> None:
    r"""Run the dense model once over the calibration text, for every cell of this model.

    Example:
      ffp calibrate --config config/grids/demo.yaml --model smollm2-135m \
          --model-dir data/models/smollm2-135m --text-dir data/text/embedded \
          --out data/calibration/smollm2-135m
    """
    experiment = open_model(config, model)
    start(experiment.models[model])
    from ffp.pipeline import planned, steps

    planned.check_machine(experiment, model, model_dir, text_dir, out)
    steps.calibrate(experiment, model, model_dir, text_dir, out)


@app.command(rich_help_panel=STEPS)
def grams(config: GridFile, model: ModelName, model_dir: ModelDir, calibration: CalibrationDir, out: OutDir) -> None:
    r"""Collect the Gram matrices that compensated searches, fisher-table and the orders obs and pairwise need.

    It runs the dense model once more over the calibration's windows.

    Example:
      ffp grams --config config/grids/race-compensated.yaml --model smollm2-135m \
          --model-dir data/models/smollm2-135m \
          --calibration data/calibration/smollm2-135m --out data/calibration/smollm2-135m
    """
    experiment = open_model(config, model)
    start(experiment.models[model])
    from ffp.pipeline import planned, steps

    planned.check_machine(experiment, model, model_dir, None, out)
    steps.collect_grams(experiment, model, model_dir, calibration, out)


@app.command(rich_help_panel=STEPS)
def allocate(
    config: GridFile, cell: CellPath, model_dir: ModelDir, calibration: CalibrationDir, out: CellDir,
    init: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the cell whose policy the search starts from.")
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a cell with the same search, whose answer is taken.")
    ] = None,
) -> None:  # fmt: skip
    r"""Decide how much of each module to keep, with the cell's method.

    Example:
      CELL=smollm2-135m/structured/s0.20/fastforward/seed0
      ffp allocate --config config/grids/demo.yaml --cell $CELL \
          --model-dir data/models/smollm2-135m \
          --calibration data/calibration/smollm2-135m --out results/cells/$CELL
    """
    experiment = Experiment(config)
    point = experiment.cell(cell)
    start(experiment.models[point.model], computes=reuse is None and is_search(experiment.method(point.method)))
    origin = experiment.init_cell(point)
    if (origin is None) != (init is None):
        wanted = f"--init with the folder of {origin.path}" if origin else "no --init"
        policy = origin.path if origin else "no policy"
        raise ConfigError(f"{point.path} starts from {policy} in {experiment.file}: give {wanted}.")
    from ffp.pipeline import planned, steps

    if reuse is None:
        planned.check_unless_done(experiment, point.model)
        steps.allocate(experiment, point, model_dir, calibration, out, init)
    else:
        steps.reuse_allocation(experiment, point, model_dir, calibration, reuse, out)


@app.command(rich_help_panel=STEPS)
def apply(
    config: GridFile, cell: CellPath, model_dir: ModelDir, calibration: CalibrationDir,
    allocation: Annotated[Path, typer.Option(help="The cell's allocation.json.")], out: CellDir,
) -> None:  # fmt: skip
    r"""Choose which units or weights stay, and compute what makes up for the others.

    Example:
      CELL=smollm2-135m/structured/s0.20/fastforward-guided/seed0
      ffp apply --config config/grids/demo.yaml --cell $CELL \
          --model-dir data/models/smollm2-135m \
          --calibration data/calibration/smollm2-135m \
          --allocation results/cells/$CELL/allocation.json --out results/cells/$CELL
    """
    experiment, point = open_cell(config, cell)
    from ffp.pipeline import steps

    steps.apply(experiment, point, model_dir, calibration, allocation, out)


@app.command(rich_help_panel=STEPS)
def recover(
    config: GridFile, cell: CellPath, model_dir: ModelDir, text_dir: TextDir, out: CellDir,
    cut: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the cell's masks and updates; without it the model is dense."),
    ] = None,
) -> None:  # fmt: skip
    r"""Train a pruned model on text that calibration left, so that it makes up for what is gone.

    Interrupted, the same command goes on where it was.

    Example:
      CELL=smollm2-135m/structured/s0.20/fastforward-guided-lora/seed0
      ffp recover --config config/grids/recovery.yaml --cell $CELL \
          --model-dir data/models/smollm2-135m --text-dir data/text/embedded \
          --cut results/cells/$CELL --out results/cells/$CELL
    """
    experiment, point = open_cell(config, cell)
    from ffp.pipeline import recover as step

    step.recover(experiment, point, model_dir, text_dir, cut, out)


@app.command(rich_help_panel=STEPS)
def evaluate(
    config: GridFile, cell: CellPath, model_dir: ModelDir,
    text_dir: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Folder of a fetched test text; one each, in the grid's order.")
    ],
    out: Annotated[Path, typer.Option(help="scores.json to write.")],
    tasks_dir: TasksDir = None,
    cut: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with the cell's masks, updates and recovered weights; without it the model is dense.",
        ),
    ] = None,
) -> None:  # fmt: skip
    r"""Measure perplexity and lm-eval scores of a cell.

    Example:
      CELL=smollm2-135m/structured/s0.20/fastforward-guided/seed0
      ffp evaluate --config config/grids/demo.yaml --cell $CELL \
          --model-dir data/models/smollm2-135m --text-dir data/text/embedded \
          --tasks-dir data/tasks/demo --cut results/cells/$CELL \
          --out results/cells/$CELL/scores.json
    """
    experiment, point = open_cell(config, cell)
    from ffp.pipeline import steps

    steps.evaluate(experiment, point, model_dir, text_dir, tasks_dir, cut, out)


@app.command(rich_help_panel=STEPS)
def report(config: GridFile, out: Annotated[Path, typer.Option(help="Folder to fill.")]) -> None:
    """Make tables, plots and a page of all cells that are finished.

    Example:
      ffp report --config config/grids/demo.yaml --out results/report
    """
    from ffp import report as reports

    print(reports.build(Experiment(config), out))
