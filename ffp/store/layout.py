"""Where every file of a grid lies. The workflow's rules read their paths here too, with wildcards for names.

    data/models/MODEL/, data/text/TEXT/, data/tasks/TASKS/       fetched and verified, asset.json is written last
    data/downloads/                                              wheels and hub files, shared by all assets
    data/calibration/MODEL/                                      token windows and statistics of the dense model
    results/cells/MODEL/GRANULARITY/sX.XX/METHOD/seedN/          what each step of a cell wrote
    results/report/                                              tables, plots and the page
    logs/STEP/...                                                one log a job
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ffp.config import Cell, GridConfig

ASSET = "asset.json"
DOWNLOADS = "downloads"
SPLITS = ("calibration", "search", "selection", "test")
FIGURES = ("quality_cost", "quality_time", "anytime", "allocation")
FIGURE_KINDS = ("svg", "pdf", "png")
FIGURE_TABLES = ("comparison", "summary")  # every figure at full precision, as .csv and .parquet
TEXT_TABLES = ("comparison", "tasks", "ablation")  # rounded for readers, as .md and .tex
LOGS = Path("logs")
WILDCARD_CELL = Cell("{model}", "{granularity}", "{sparsity}", "{method}", "{seed}")  # type: ignore[arg-type]


@dataclass(frozen=True)
class AssetFiles:
    """The folder of a fetched model, text or set of tasks."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """asset.json: digests of all files, written last."""
        return self.folder / ASSET

    def documents(self, name: str) -> Path:
        """The JSONL file of a split of a text ("test") or of a task ("piqa")."""
        return self.folder / f"{name}.jsonl"


@dataclass(frozen=True)
class CalibrationFiles:
    """The files that `calibrate` writes for a model."""

    folder: Path

    @property
    def tokens(self) -> Path:
        """Token windows of the texts, and the dense model's losses on them."""
        return self.folder / "tokens.safetensors"

    @property
    def stats(self) -> Path:
        """Input moments of every linear, and the blocks' influence."""
        return self.folder / "stats.safetensors"

    @property
    def cost(self) -> Path:
        """What calibration cost."""
        return self.folder / "calibrate.cost.json"


@dataclass(frozen=True)
class CellFiles:
    """The files that the steps of a cell write into its folder."""

    folder: Path

    @property
    def allocation(self) -> Path:
        """Kept units of each decision; written last by `allocate`."""
        return self.folder / "allocation.json"

    @property
    def trace(self) -> Path:
        """A row for each evaluation of a search."""
        return self.folder / "trace.parquet"

    @property
    def answers(self) -> Path:
        """What the search would have answered after so many tokens, scored on the selection text."""
        return self.folder / "answers.json"

    @property
    def search_cost(self) -> Path:
        """What the search cost."""
        return self.folder / "search.cost.json"

    @property
    def policy(self) -> Path:
        """The learned policy; only of methods that learn one."""
        return self.folder / "policy.safetensors"

    @property
    def journal(self) -> Path:
        """Measurements of a search that is under way; removed at its end."""
        return self.folder / "journal.txt"

    @property
    def masks(self) -> Path:
        """Which units or weights stay."""
        return self.folder / "masks.safetensors"

    @property
    def updates(self) -> Path:
        """New values of kept weights, and added biases."""
        return self.folder / "updates.safetensors"

    @property
    def scores(self) -> Path:
        """Perplexity and task scores."""
        return self.folder / "scores.json"

    @property
    def searched(self) -> tuple[Path, ...]:
        """All that `allocate` writes for every method."""
        return self.allocation, self.trace, self.answers, self.search_cost

    @property
    def cut(self) -> tuple[Path, Path]:
        """All that `apply` writes."""
        return self.masks, self.updates


@dataclass(frozen=True)
class ReportFiles:
    """The files of the report."""

    folder: Path

    @property
    def page(self) -> Path:
        """The page that shows everything."""
        return self.folder / "index.html"

    @property
    def metrics(self) -> Path:
        """Flat figures of the finished cells, for `dvc metrics`."""
        return self.folder / "metrics.json"

    def figure(self, name: str, kind: str) -> Path:
        """A figure of FIGURES as one of FIGURE_KINDS."""
        return self.folder / f"{name}.{kind}"

    def table(self, name: str, kind: str) -> Path:
        """A table of FIGURE_TABLES as csv or parquet, or of TEXT_TABLES as md or tex."""
        return self.folder / f"{name}.{kind}"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file of the report."""
        figures = [self.figure(name, kind) for name in FIGURES for kind in FIGURE_KINDS]
        tables = [self.table(name, kind) for name in FIGURE_TABLES for kind in ("csv", "parquet")]
        texts = [self.table(name, kind) for name in TEXT_TABLES for kind in ("md", "tex")]
        return self.page, self.metrics, *figures, *tables, *texts


@dataclass(frozen=True)
class Layout:
    """The paths of a grid.

    Names may be wildcards of Snakemake, such as "{model}".

    Attributes:
        data: Folder of assets and calibration.
        results: Folder of cells and the report.
    """

    data: Path
    results: Path

    @classmethod
    def from_grid(cls, grid: GridConfig) -> Layout:
        """Returns the layout that a grid file asks for."""
        return cls(Path(grid.data), Path(grid.results))

    def model(self, name: str) -> AssetFiles:
        """Returns the folder of a fetched model."""
        return AssetFiles(self.data / "models" / name)

    def text(self, name: str) -> AssetFiles:
        """Returns the folder of a fetched text."""
        return AssetFiles(self.data / "text" / name)

    def tasks(self, name: str) -> AssetFiles:
        """Returns the folder of a fetched set of tasks."""
        return AssetFiles(self.data / "tasks" / name)

    def calibration(self, model: str) -> CalibrationFiles:
        """Returns the calibration of a model."""
        return CalibrationFiles(self.data / "calibration" / model)

    @property
    def cells(self) -> Path:
        """The folder below which every cell has its own."""
        return self.results / "cells"

    def cell(self, cell: Cell) -> CellFiles:
        """Returns the files of a cell."""
        return CellFiles(self.cells / cell.path)

    @property
    def report(self) -> ReportFiles:
        """The files of the report."""
        return ReportFiles(self.results / "report")

    @staticmethod
    def log(step: str, name: str = "") -> Path:
        """Returns the log of a step, of a cell's path or an asset's name where it has one."""
        return LOGS / step / f"{name}.log" if name else LOGS / f"{step}.log"


def downloads_of(asset_folder: Path) -> Path:
    """Returns the folder of downloads that the assets of a data folder share."""
    return Path(asset_folder).absolute().parent.parent / DOWNLOADS
