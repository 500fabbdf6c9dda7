"""Measures how heavy the report's page is and how fast it opens: the demo's, and that of a grid of 2,000 cells.

    python -m benchmarks.report_page

Needs what `make demo` leaves behind, and Chromium with chromedriver. The large grid holds copies of the demo's real
cells under other models, sparsities, methods and seeds, with noise in their losses; both pages are opened in turn.

- `demo_bytes`, `large_bytes`: size of index.html.
- `large_cells`, `large_build_s`: cells of the large grid, and the time of `ffp report` on it.
- `demo_open_s`, `large_open_s`: median time from the start of navigation to the end of the load event, by when the
  tables can be sorted and filtered; `large_cell_s`: from asking for a first cell to its commands on the screen.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.common import make_parser, write_marks
from ffp import report
from ffp.allocators import is_search
from ffp.config import Cell, Experiment
from ffp.store.layout import CellFiles, Layout
from ffp.store.schemas import ScoresFile
from tests.helpers import browser

SCHEMA = "ffp/benchmark/report_page/1"
MODELS, SPARSITIES, VARIANTS, SEEDS = 4, (0.1, 0.2, 0.3, 0.4, 0.5), 5, 10
READY = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
OPEN_CELL = "document.querySelector('#cells tbody a').click()"
CELL_IS_OPEN = "return document.querySelector('dialog[open] pre') !== null"


def main() -> None:
    """Builds the large grid's page, opens both pages, and writes the JSON."""
    options = _options()
    if browser.missing():
        raise SystemExit(browser.missing())
    root, out = Path.cwd(), options.out.resolve()
    demo = options.page.resolve()
    with tempfile.TemporaryDirectory() as folder:
        experiment, count = _large_grid(Path(folder), options.config)
        os.chdir(folder)
        started = time.perf_counter()
        large = report.build(experiment, Path(folder) / "report")
        built = time.perf_counter() - started
        times = [(_open(demo), _open(large), _open_cell(large)) for _ in range(options.rounds)]
        sizes = [page.stat().st_size for page in (demo, large)]
    os.chdir(root)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    marks = {
        "demo_bytes": sizes[0], "large_bytes": sizes[1], "large_cells": count, "large_build_s": built,
        "demo_open_s": medians[0], "large_open_s": medians[1], "large_cell_s": medians[2],
    }  # fmt: skip
    write_marks(out, SCHEMA, {"marks": marks}, {"rounds": options.rounds})


def _options() -> argparse.Namespace:
    parser = make_parser("benchmarks.report_page", __doc__, grid="demo")
    page = Path("results/report/index.html")
    parser.add_argument("--page", type=Path, default=page, metavar="PATH", help="the demo's page (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each page is opened (%(default)s)")
    return parser.parse_args()


def _large_grid(folder: Path, config: Path) -> tuple[Experiment, int]:
    """A grid of 2,000 searches and its uniform cells below `folder`, and its number of cells."""
    demo = Experiment(config)
    shutil.copytree(demo.root, folder / "config")
    source = demo.grid.models[0]
    body = yaml.safe_load(config.read_text())
    searches = [name for name in demo.grid.methods if is_search(demo.method(name))][:2]
    names = {f"{name}-{i}": {"use": demo.method(name).name} for name in searches for i in range(VARIANTS)}
    models = [f"{source}-{i}" for i in range(MODELS)]
    for name in models:
        shutil.copy(folder / f"config/models/{source}.yaml", folder / f"config/models/{name}.yaml")
    body |= {"models": models, "sparsities": list(SPARSITIES), "methods": ["uniform", *names], "variants": names}
    body |= {"seeds": list(range(SEEDS)), "results": str(folder / "results")}
    (folder / "config/large.yaml").write_text(yaml.safe_dump(body))
    experiment = Experiment(folder / "config/large.yaml")
    originals, copies = Layout.from_grid(demo.grid), Layout.from_grid(experiment.grid)
    rng, cells = np.random.default_rng(0), list(experiment.cells())
    for cell in cells:
        method = next((name for name in searches if cell.method.startswith(name)), cell.method)
        target = "0.00" if cell.method == "dense" else f"{demo.grid.sparsities[0]:.2f}"
        original = Cell(source, cell.granularity, target, method, 0)
        _copy(originals.cell(original), copies.cell(cell), rng)
    return experiment, len(cells)


def _copy(source: CellFiles, target: CellFiles, rng: np.random.Generator) -> None:
    """A cell's files, with noise on the losses behind its perplexity."""
    target.folder.mkdir(parents=True)
    for path in source.searched:
        if path.exists():
            (target.folder / path.name).symlink_to(path.resolve())
    scores = ScoresFile.read(source.scores)
    losses = np.array(scores.ppl.loss_by_window) + rng.normal(0, 0.1)
    noisy = {"loss_by_window": tuple(losses.tolist()), "value": math.exp(losses.mean())}
    scores.model_copy(update={"ppl": scores.ppl.model_copy(update=noisy)}).write(target.scores)


def _open(page: Path) -> float:
    """Seconds until a page is ready."""
    with browser.open_page(page) as driver:
        while not (ready := float(driver.execute_script(READY))):
            time.sleep(0.01)
        return ready


def _open_cell(page: Path) -> float:
    """Seconds until the first cell that is asked for is shown."""
    with browser.open_page(page) as driver:
        started = time.perf_counter()
        driver.execute_script(OPEN_CELL)
        while not driver.execute_script(CELL_IS_OPEN):
            time.sleep(0.005)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
