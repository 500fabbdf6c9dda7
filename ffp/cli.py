"""The command line: explicit files in, explicit files out. Exit 0 done, 2 user or config error, 3 bad artifact."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

import ffp
from ffp.config import Cell, Experiment, ModelConfig, TasksConfig, TextConfig, read_part
from ffp.core.errors import ConfigError, FfpError
from ffp.core.suggest import did_you_mean
from ffp.pipeline.cluster import claim_gpus
from ffp.store.layout import Layout

STEPS, GRIDS, RESULTS = "Steps of a grid, in this order", "Look at a grid", "Use results"
INTERRUPTED = 130  # typer answers Ctrl-C with this code

app = typer.Typer(name="ffp", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

GridFile = Annotated[Path, typer.Option("--config", help="Grid file, e.g. config/grids/demo.yaml.")]
CellPath = Annotated[str, typer.Option("--cell", metavar="CELL", help="MODEL/GRANULARITY/sSPARSITY/METHOD/seedN.")]
ModelDir = Annotated[Path, typer.Option(help="Folder of the fetched model.")]
TextDir = Annotated[Path, typer.Option(help="Folder of the fetched text.")]
CalibrationDir = Annotated[Path, typer.Option("--calibration", help="Folder that ffp calibrate filled.")]
CellDir = Annotated[Path, typer.Option("--out", help="Folder of the cell.")]
OutDir = Annotated[Path, typer.Option("--out", help="Folder to make.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words after `ffp`; those of this process if None.

    Returns:
        The exit code: 0, what the command returns, or that of its error, whose one line goes to stderr.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    name = f"ffp {words[0]}" if words and words[0] in known else "ffp"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for chatty in ("httpx", "fontTools"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    code = FfpError.exit_code
    try:
        code = int(app(words, standalone_mode=False, prog_name="ffp") or 0)
        message = "interrupted; start it again to go on." if code == INTERRUPTED else ""
    except typer.TyperException as error:
        message = f"{_usage_fault(error)} See {name} --help."
    except FfpError as error:
        code, message = error.exit_code, str(error)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        message = f"{what}. Check the path, its rights and the space on its disk."
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU's memory
        if not (isinstance(error, MemoryError) or re.search(r"allocate.*memory|out of memory", str(error))):
            raise
        message = "out of memory. Lower batch_tokens in the model's YAML, or give more (mem_mb)."
    if message:
        print(f"{name}: {message}", file=sys.stderr)
    return code


def _usage_fault(error: typer.TyperException) -> str:
    """What is wrong with the command line, as one sentence."""
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    message = message[:1].lower() + message[1:]
    unknown, context = re.match(r"no such option: (\S+)", message), getattr(error, "ctx", None)
    if unknown and context:
        options = [option for parameter in context.command.params for option in parameter.opts]
        return f"no such option {unknown[1]}: {did_you_mean(unknown[1], options)}"
    return message if message.endswith("?") else f"{message}."


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ffp {ffp.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    r"""Prunes large language models and benchmarks how to spread the cut over their layers.

    The workflow (make demo, or snakemake) runs these commands for every cell of a grid; each can be run by hand.

    Example:
      ffp list methods
      ffp validate --config config/grids/demo.yaml
      ffp asset model --config config/models/smollm2-135m.yaml \
          --out data/models/smollm2-135m
      ffp status --config config/grids/demo.yaml
      ffp export --config config/grids/demo.yaml --out pruned \
          --cell smollm2-135m/structured/s0.20/owl/seed0
    """


@app.command("list", rich_help_panel="Look around")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="What to list: methods, models, texts, tasks or granularities.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List what a grid can name. Entries of config/ in this folder come before those of the package.

    Example:
      ffp list methods
      ffp list models --json
    """
    from ffp.config import listing

    found = listing.rows(kind)
    print(json.dumps(found, indent=1) if as_json else "\n".join(listing.lines(found)))


@app.command(rich_help_panel=STEPS)
def asset(
    kind: Annotated[Literal["model", "text", "tasks"], typer.Argument(help="What to fetch.")],
    config: Annotated[Path, typer.Option(help="YAML file of the model, text or tasks.")],
    out: OutDir,
) -> None:
    """Fetch and verify a model, a text or a set of tasks.

    Example:
      ffp asset text --config config/texts/embedded.yaml --out data/text/embedded
    """
    from ffp import assets

    if kind == "model":
        assets.fetch_model(read_part(ModelConfig, config), out)
    elif kind == "text":
        assets.fetch_text(read_part(TextConfig, config), out)
    else:
        assets.fetch_tasks(read_part(TasksConfig, config), out)


@app.command(rich_help_panel=STEPS)
def calibrate(
    config: GridFile,
    model: Annotated[str, typer.Option(metavar="NAME", help="A model of the grid.")],
    model_dir: ModelDir,
    text_dir: TextDir,
    out: OutDir,
) -> None:
    r"""Run the dense model once over the calibration text, for every cell of this model.

    Example:
      ffp calibrate --config config/grids/demo.yaml --model smollm2-135m \
          --model-dir data/models/smollm2-135m --text-dir data/text/embedded \
          --out data/calibration/smollm2-135m
    """
    experiment = Experiment(config)
    if model not in experiment.models:
        raise ConfigError(f"{experiment.file} has no model {model!r}: {did_you_mean(model, experiment.models)}")
    _start_torch(experiment, model)
    from ffp.pipeline import plan, steps

    plan.check_machine(experiment, model, model_dir, out)
    steps.calibrate(experiment, model, model_dir, text_dir, out)


@app.command(rich_help_panel=STEPS)
def allocate(
    config: GridFile,
    cell: CellPath,
    model_dir: ModelDir,
    calibration: CalibrationDir,
    out: CellDir,
    init: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the cell whose policy the search starts from.")
    ] = None,
) -> None:
    r"""Decide how much of each module to keep, with the cell's method.

    Example:
      CELL=smollm2-135m/structured/s0.20/fastforward/seed0
      ffp allocate --config config/grids/demo.yaml --cell $CELL \
          --model-dir data/models/smollm2-135m \
          --calibration data/calibration/smollm2-135m --out results/cells/$CELL
    """
    experiment, point = _open(config, cell)
    origin = experiment.init_cell(point)
    if (origin is None) != (init is None):
        wanted = f"--init with the folder of {origin.path}" if origin else "no --init"
        start = origin.path if origin else "no policy"
        raise ConfigError(f"{point.path} starts from {start} in {experiment.file}: give {wanted}.")
    from ffp.pipeline import steps

    steps.allocate(experiment, point, model_dir, calibration, out, init)


@app.command(rich_help_panel=STEPS)
def apply(
    config: GridFile,
    cell: CellPath,
    model_dir: ModelDir,
    calibration: CalibrationDir,
    allocation: Annotated[Path, typer.Option(help="The cell's allocation.json.")],
    out: CellDir,
) -> None:
    r"""Choose which units or weights stay, and compute what makes up for the others.

    Example:
      CELL=smollm2-135m/structured/s0.20/owl/seed0
      ffp apply --config config/grids/demo.yaml --cell $CELL \
          --model-dir data/models/smollm2-135m \
          --calibration data/calibration/smollm2-135m \
          --allocation results/cells/$CELL/allocation.json --out results/cells/$CELL
    """
    experiment, point = _open(config, cell)
    from ffp.pipeline import steps

    steps.apply(experiment, point, model_dir, calibration, allocation, out)


@app.command(rich_help_panel=STEPS)
def evaluate(
    config: GridFile,
    cell: CellPath,
    model_dir: ModelDir,
    text_dir: TextDir,
    out: Annotated[Path, typer.Option(help="scores.json to write.")],
    tasks_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the fetched tasks; without it no task is scored.")
    ] = None,
    cut: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the cell's masks and updates; without it the model is dense."),
    ] = None,
) -> None:
    r"""Measure perplexity and lm-eval scores of a cell.

    Example:
      CELL=smollm2-135m/structured/s0.20/owl/seed0
      ffp evaluate --config config/grids/demo.yaml --cell $CELL \
          --model-dir data/models/smollm2-135m --text-dir data/text/embedded \
          --cut results/cells/$CELL --out results/cells/$CELL/scores.json
    """
    experiment, point = _open(config, cell)
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


@app.command(rich_help_panel=GRIDS)
def validate(
    config: GridFile,
    tflops: Annotated[float, typer.Option(help="Sustained speed of a device, TFLOP/s.")] = 100.0,
) -> None:
    """Check a grid, and estimate what it takes, before anything is fetched.

    Example:
      ffp validate --config config/grids/paper.yaml --tflops 300
    """
    experiment = Experiment(config)
    _start_torch(experiment, experiment.grid.models[0])
    from ffp.pipeline import plan

    if not tflops > 0:
        raise ConfigError(f"--tflops {tflops:g} is not above 0. Give the sustained speed of a device.")
    print(plan.report(experiment, tflops=tflops))


@app.command(rich_help_panel=GRIDS)
def status(config: GridFile) -> None:
    """Show how far a grid is, from another shell or after a crash.

    Example:
      ffp status --config config/grids/demo.yaml
    """
    from ffp.pipeline import status as progress

    print("\n".join(progress.lines(Experiment(config))))


@app.command(rich_help_panel=GRIDS)
def schema(out: OutDir) -> None:
    """Write the JSON schemas of all YAML files, for completion and checks in an editor.

    Example:
      ffp schema --out config/schemas
    """
    from ffp.config.schema import schemas
    from ffp.store.files import write_text

    for name, body in schemas().items():
        write_text(out / f"{name}.json", json.dumps(body, indent=1) + "\n")


@app.command(rich_help_panel=RESULTS)
def export(
    config: GridFile,
    cell: CellPath,
    out: OutDir,
    model_dir: Annotated[Path | None, typer.Option(help="Folder of the fetched model; default: the grid's.")] = None,
    cut: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the cell's masks and updates; default: the grid's results."),
    ] = None,
    dense_shape: Annotated[
        bool, typer.Option("--dense-shape", help="Keep the parent's shapes and write zeros for what was removed.")
    ] = False,
) -> None:
    r"""Write a cell's model as a checkpoint that transformers loads.

    Example:
      ffp export --config config/grids/demo.yaml --out pruned \
          --cell smollm2-135m/structured/s0.20/owl/seed0
    """
    experiment, point = _open(config, cell)
    from ffp.pipeline import steps

    layout = Layout.from_grid(experiment.grid)
    model_dir, cut = model_dir or layout.model(point.model).folder, cut or layout.cell(point).folder
    steps.export(experiment, point, model_dir, cut, out, dense_shape=dense_shape)
    print(out)


@app.command(rich_help_panel=RESULTS)
def verify(
    results: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Results folder; default: the grid's own.")
    ] = None,
    config: GridFile = Path("config/grids/demo.yaml"),
) -> None:
    """Check every digest, budget, text and figure behind a report again.

    Example:
      ffp verify results --config config/grids/demo.yaml
    """
    from ffp.pipeline.verify import verify as check

    print(check(Experiment(config).at(results=results)))


@app.command(rich_help_panel=RESULTS)
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Results of one commit or machine: has cells/.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Results of another one.")],
    tolerance: Annotated[float, typer.Option(help="Relative difference to overlook.")] = 1e-4,
    json: Annotated[Path | None, typer.Option(help="File for the differences as JSON.")] = None,
) -> int:
    """Show what changed between two result folders; exit code 1 if anything did.

    Example:
      ffp compare results-before results --json changes.json
    """
    from ffp.report import compare as comparing

    found = comparing.compare(before, after, tolerance=tolerance)
    print("\n".join(comparing.lines(found, before, after)))
    if json:
        comparing.write(found, json)
    return int(found.changed)


def _open(config: Path, path: str) -> tuple[Experiment, Cell]:
    """The grid and one of its cells, with torch set up for the cell's model."""
    experiment = Experiment(config)
    cell = experiment.cell(path)
    _start_torch(experiment, cell.model)
    return experiment, cell


def _start_torch(experiment: Experiment, model: str) -> None:
    """Fix the number of threads, on which the last bits of every sum depend, and take GPUs that nobody else has."""
    config = experiment.models[model]
    if config.device in ("auto", "cuda"):
        claim_gpus(config.resources.gpu)
    # Libraries stay off the network and off the terminal.
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(config.resources.threads)


if __name__ == "__main__":
    sys.exit(main())
