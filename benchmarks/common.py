"""What benchmarks and experiments share: the command line, a grid's model and calibration, and the JSON of figures."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffp.config import Experiment
from ffp.store.files import write_json
from ffp.store.layout import Layout
from ffp.store.provenance import provenance

if TYPE_CHECKING:
    from ffp.api import Calibration
    from ffp.models.prunable import PrunableModel


def make_parser(module: str, doc: str | None, *, grid: str) -> argparse.ArgumentParser:
    """Returns a parser with --config and --out.

    Args:
        module: Name of the module, such as "benchmarks.latency"; its JSON is benchmarks/results/latency.json.
        doc: The module's docstring, the text of --help.
        grid: Name of the default grid, a file of config/grids.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder, _, name = module.partition(".")
    config, out = Path(f"config/grids/{grid}.yaml"), Path(folder, "results", f"{name}.json")
    parser.add_argument("--config", type=Path, default=config, metavar="PATH", help="grid file (%(default)s)")
    parser.add_argument("--out", type=Path, default=out, metavar="PATH", help="JSON file (%(default)s)")
    return parser


def open_model(experiment: Experiment, name: str) -> tuple[PrunableModel, Calibration]:
    """Loads a grid's model and its calibration, which `make demo` or an earlier run left in the data folder."""
    from ffp.pipeline import steps  # torch, which readers of results do without

    layout = Layout.from_grid(experiment.grid)
    prunable = steps.load_prunable(experiment, name, layout.model(name).folder)
    folder, grams = layout.calibration(name).folder, experiment.keeps_grams
    return prunable, steps.read_calibration(prunable, folder, grams=grams)


def write_marks(out: Path, schema: str, body: Mapping[str, Any], settings: Any) -> None:
    """Writes figures with what stands behind them as JSON, and prints body["marks"].

    Args:
        out: The file.
        schema: Its tag.
        body: The figures; the main ones under "marks".
        settings: Plain data that the figures depend on.
    """
    origin = provenance(settings=settings).model_dump(mode="json")
    write_json(out, schema, {**body, "provenance": origin})
    print(json.dumps(body["marks"], indent=1))


def seconds(action: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns how long an action takes by a clock."""
    started = clock()
    action()
    return clock() - started
