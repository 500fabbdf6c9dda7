"""How heavy the report's page is, and how fast it opens: the demo's, and that of a grid of 2,000 cells.

    python benchmarks/report_page.py

Needs what `make demo` leaves behind, and Chromium with chromedriver. The large grid holds copies of the demo's real
cells under other models, sparsities, methods and seeds, with noise in their losses; both pages are opened in turn.

- `demo_bytes`, `large_bytes`: size of index.html.
- `large_build_s`: time of `ffp report` on the large grid.
- `demo_open_s`, `large_open_s`: median time from the start of navigation to the end of the load event, by when the
  tables can be sorted and filtered; `large_cell_s`: from asking for a first cell to its commands on the screen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ffp import report
from ffp.config import Cell, Experiment
from ffp.store.files import read_json, write_json
from ffp.store.provenance import provenance
from tests.helpers import browser

SCHEMA = "ffp/benchmark/report_page/1"
MODELS, SPARSITIES, VARIANTS, SEEDS = 4, (0.1, 0.2, 0.3, 0.4, 0.5), 5, 10
READY = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"


def main() -> None:
    options = _options()
    if browser.missing():
        raise SystemExit(browser.missing())
    demo = options.page.resolve()
    with tempfile.TemporaryDirectory() as folder:
        project, count = _large_grid(Path(folder), options.config)
        os.chdir(folder)
        started = time.perf_counter()
        large = report.build(project, Path(folder) / "report")
        built = time.perf_counter() - started
        times = [(_open(demo), _open(large), _open_cell(large)) for _ in range(options.rounds)]
        sizes = [page.stat().st_size for page in (demo, large)]
    os.chdir(options.root)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    marks = {
        "demo_bytes": sizes[0], "large_bytes": sizes[1], "large_cells": count, "large_build_s": built,
        "demo_open_s": medians[0], "large_open_s": medians[1], "large_cell_s": medians[2],
    }  # fmt: skip
    write_json(options.out, SCHEMA, {"marks": marks, "provenance": provenance(settings={"rounds": options.rounds})})
    print(json.dumps(marks, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"))
    parser.add_argument("--page", type=Path, default=Path("results/report/index.html"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/report_page.json"))
    options = parser.parse_args()
    options.root = Path.cwd()
    return options


def _large_grid(folder: Path, config: Path) -> tuple[Experiment, int]:
    """A grid of 2,000 searches and its uniform cells below `folder`; the project and its number of cells."""
    demo = Experiment(config)
    shutil.copytree(demo.root, folder / "config")
    source = demo.grid.models[0]
    body = yaml.safe_load(config.read_text())
    searches = [name for name in demo.grid.methods if demo.method(name).is_search][:2]
    names = {f"{name}-{i}": {"use": demo.method(name).name} for name in searches for i in range(VARIANTS)}
    models = [f"{source}-{i}" for i in range(MODELS)]
    for name in models:
        shutil.copy(folder / f"config/models/{source}.yaml", folder / f"config/models/{name}.yaml")
    body |= {"models": models, "sparsities": list(SPARSITIES), "methods": ["uniform", *names], "variants": names}
    body |= {"seeds": list(range(SEEDS)), "results": str(folder / "results")}
    (folder / "config/large.yaml").write_text(yaml.safe_dump(body))
    project = Experiment(folder / "config/large.yaml")
    rng, cells = np.random.default_rng(0), list(project.cells())
    for cell in cells:
        method = next((name for name in searches if cell.method.startswith(name)), cell.method)
        target = "0.00" if cell.method == "dense" else f"{demo.grid.sparsities[0]:.2f}"
        original = Path(demo.grid.results) / "cells" / Cell(source, cell.granularity, target, method, 0).path
        _copy(original.resolve(), folder / "results/cells" / cell.path, rng)
    return project, len(cells)


def _copy(source: Path, target: Path, rng: np.random.Generator) -> None:
    """A cell's files, with noise on the losses behind its perplexity."""
    target.mkdir(parents=True)
    for name in ("allocation.json", "search.cost.json", "trace.parquet"):
        if (source / name).exists():
            os.symlink(source / name, target / name)
    body: dict[str, Any] = read_json(source / "scores.json", "ffp/scores/1")
    losses = np.array(body["ppl"]["loss_by_window"]) + rng.normal(0, 0.1)
    body["ppl"] |= {"loss_by_window": losses.tolist(), "value": math.exp(losses.mean())}
    write_json(target / "scores.json", body.pop("schema"), body)


def _open(page: Path) -> float:
    with browser.open_page(page) as driver:
        while not (seconds := float(driver.execute_script(READY))):
            time.sleep(0.01)
        return seconds


def _open_cell(page: Path) -> float:
    with browser.open_page(page) as driver:
        started = time.perf_counter()
        driver.execute_script("document.querySelector('#cells tbody a').click()")
        while not driver.execute_script("return document.querySelector('dialog[open] pre') !== null"):
            time.sleep(0.005)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
