"""The commands of a grid: how to look at it, and what to do with its results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ffp.cli import options
from ffp.cli.app import GRIDS, RESULTS, app
from ffp.cli.steps import CellPath, GridFile, OutDir, open_cell, start
from ffp.config import Experiment
from ffp.core.errors import ArtifactError, ConfigError
from ffp.core.plain import one_line
from ffp.store.layout import Layout


@app.command(rich_help_panel=GRIDS)
def validate(
    config: GridFile,
    tflops: Annotated[
        float | None,
        typer.Option(help="Sustained speed of a device, TFLOP/s. Default: that of finished jobs, or of this machine."),
    ] = None,
) -> None:
    """Check a grid, and estimate what it takes, before anything is fetched.

    Example:
      ffp validate --config config/grids/paper.yaml --tflops 300
    """
    experiment = Experiment(config)
    start(experiment.models[experiment.grid.models[0]], computes=False)
    from ffp.pipeline import plan

    if tflops is not None and not tflops > 0:
        raise ConfigError(f"--tflops {tflops:g} is not above 0. Give the sustained speed of a device.")
    print(plan.report(experiment, tflops=tflops))


@app.command(rich_help_panel=GRIDS)
def cost(config: GridFile) -> None:
    """Show what a grid took so far, beside what was planned: time, tokens and memory of each step.

    Example:
      ffp cost --config config/grids/demo.yaml
    """
    experiment = Experiment(config)
    start(experiment.models[experiment.grid.models[0]], computes=False)
    from ffp.pipeline import spent

    print(spent.compare(experiment))


@app.command(rich_help_panel=GRIDS)
def status(config: GridFile) -> None:
    """Show how far a grid is, from another shell or after a crash.

    Example:
      ffp status --config config/grids/demo.yaml
    """
    from ffp.pipeline import status as progress

    print("\n".join(progress.lines(Experiment(config))))


@app.command(rich_help_panel=GRIDS)
def site(
    config: GridFile,
    profile: Annotated[str, typer.Option(help="Profile of Snakemake.")] = "slurm",
    wait: Annotated[float, typer.Option(min=10, help="Seconds that a job may wait for free resources.")] = 300.0,
) -> None:
    """Ask a cluster with one tiny job of each kind and model whether the grid can run there.

    Example:
      ffp site --config config/grids/demo.yaml --profile slurm
    """
    from ffp.pipeline.site import check

    outcomes = []
    for outcome in check(Experiment(config), profile, wait_s=wait):
        outcomes.append(outcome)
        typer.echo(outcome)
    if not all(outcome.ok for outcome in outcomes):
        raise typer.Exit(1)


@app.command(hidden=True)
def probe(
    config: GridFile,
    model: Annotated[str, typer.Option(metavar="NAME", help="A model of the grid.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
) -> None:
    """Write what a job of `ffp site` finds on its node."""
    from ffp.pipeline.site import probe

    probe(Experiment(config).models[model]).write(out)


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
    format: options.Format = "transformers",
    quantize: options.Quantize = None,
    pad: options.Pad = None,
) -> None:
    r"""Write a cell's model as a folder that an engine loads.

    Example:
      ffp export --config config/grids/demo.yaml --out pruned \
          --cell smollm2-135m/structured/s0.20/fastforward-guided/seed0
    """
    experiment, point = open_cell(config, cell, computes=False)
    from ffp.models import formats
    from ffp.pipeline.export import export as write

    layout = Layout.from_grid(experiment.grid)
    model_dir, cut = model_dir or layout.model(point.model).folder, cut or layout.cell(point).folder
    saved = write(experiment, point, model_dir, cut, out, format=formats.create(format, quantize=quantize, pad=pad))
    print("\n".join([str(out), *saved.notes]))


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

    try:
        print(check(Experiment(config).at(results=results)))
    except ArtifactError as error:
        *faults, summary = str(error).splitlines()
        for fault in faults:
            print(one_line(fault), file=sys.stderr)
        raise ArtifactError(summary) from error


@app.command(rich_help_panel=RESULTS)
def count_bytes(config: GridFile) -> None:
    """Add bits per byte to cells that were evaluated by an older version; nothing is forwarded.

    Example:
      ffp count-bytes --config config/grids/demo.yaml
    """
    from ffp.pipeline.bits import add_bits

    print(add_bits(Experiment(config)))


@app.command(rich_help_panel=RESULTS)
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Results of one commit or machine: has cells/.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Results of another one.")],
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference to overlook.")] = 1e-4,
    json: Annotated[Path | None, typer.Option(help="File for the differences as JSON.")] = None,
) -> int:
    """Show what changed between two result folders; exit code 1 if a cell changed beyond noise or is gone.

    It names commits and settings that differ, methods that win now where another one won, and the cells that changed
    beyond noise, came, went, changed within noise, or in cost alone. Perplexities of the same windows are compared
    window by window.

    Example:
      ffp compare results-before results --json changes.json
    """
    from ffp.report import compare as comparing

    found = comparing.compare(before, after, tolerance=tolerance)
    print("\n".join(comparing.lines(found, before, after)))
    if json:
        comparing.write(found, json)
    return int(found.changed)
