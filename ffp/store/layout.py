"""Where every file of a grid lies. The workflow's rules read their paths here too, with wildcards for names.

- data/models/MODEL/, data/text/TEXT/, data/tasks/TASKS/: fetched and verified; asset.json is written last
- data/downloads/: wheels and hub files, shared by all assets
- data/calibration/MODEL/: token windows and statistics of the dense model
- results/cells/MODEL/GRANULARITY/sX.XX/METHOD/seedN/: what each step of a cell wrote
- results/report/: tables, plots and the page
- logs/STEP/...: one log a job; logs/RESULTS/STEP/... with results in another folder than results/
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ffp.config import Cell, GridConfig
from ffp.core.errors import ConfigError

ASSET = "asset.json"
DOWNLOADS = "downloads"
SPLITS = ("calibration", "search", "selection", "test")
FIGURES = ("overview", "quality_cost", "quality_time", "anytime", "allocation", "models")
FIGURE_KINDS = ("svg", "pdf", "png")
FIGURE_TABLES = ("comparison", "summary")  # every figure at full precision, as .csv and .parquet
TEXT_TABLES = ("winners", "comparison", "ranking", "tasks", "ablation")  # rounded for readers, as .md and .tex
LOGS = Path("logs")
WILDCARD_CELL = Cell("{model}", "{granularity}", "{sparsity}", "{method}", "{seed}")  # type: ignore[arg-type]


class File:
    """A file of a folder: read as an attribute, it is the path."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, files: Folder, owner: type[Folder]) -> Path:
        return files.folder / self.name


@dataclass(frozen=True)
class Folder:
    """A folder whose files have names of their own."""

    folder: Path


class AssetFiles(Folder):
    """The folder of a fetched model, text or set of tasks."""

    manifest = File(ASSET)  # digests of all files, written last
    datasets = File("datasets.json")  # which data sets of the hub tasks look at, at which commit, and in which files

    def documents(self, name: str) -> Path:
        """Returns the JSONL file of a split of a text ("test") or of a task ("piqa")."""
        return self.folder / f"{name}.jsonl"

    def examples(self, name: str) -> Path:
        """Returns the JSONL file of the solved examples of a task."""
        return self.folder / f"{name}.fewshot.jsonl"


class CalibrationFiles(Folder):
    """What `preflight`, `calibrate` and `grams` write for a model."""

    preflight = File("preflight.json")  # what was checked before anything was spent
    tokens = File("tokens.safetensors")  # windows of the texts, and the dense model's losses on them
    stats = File("stats.safetensors")  # moments of every linear's input, and the blocks' influence
    grams = File("grams.safetensors")  # moments of pairs of every output projection's inputs, where a cell needs them
    cost = File("calibrate.cost.json")
    grams_cost = File("grams.cost.json")


class CellFiles(Folder):
    """What the steps of a cell write into its folder."""

    allocation = File("allocation.json")  # kept units of each decision; written last by `allocate`
    trace = File("trace.parquet")  # a row for each evaluation of a search
    answers = File("answers.json")  # what the search would have answered after so many tokens
    search_cost = File("search.cost.json")
    policy = File("policy.safetensors")  # of methods that learn one
    units = File("units.safetensors")  # which units stay, of methods that choose them, and their scales
    journal = File("journal.txt")  # measurements of a search that is under way; removed at its end
    masks = File("masks.safetensors")  # which units or weights stay
    updates = File("updates.safetensors")  # new values of kept weights, and added biases
    recovered = File("recovered.safetensors")  # new values of weights after training; of cells that ask for it
    curve = File("recover.parquet")  # a row for each step of that training
    recover_cost = File("recover.cost.json")
    training = File("recover.state.safetensors")  # a training that is under way; removed at its end
    scores = File("scores.json")  # perplexity and task scores

    @property
    def searched(self) -> tuple[Path, ...]:
        """All that `allocate` writes for every method."""
        return self.allocation, self.trace, self.answers, self.search_cost

    @property
    def cut(self) -> tuple[Path, Path]:
        """All that `apply` writes."""
        return self.masks, self.updates

    @property
    def trained(self) -> tuple[Path, Path, Path]:
        """All that `recover` writes."""
        return self.recovered, self.curve, self.recover_cost


class ExportFiles(Folder):
    """A checkpoint that ffp wrote: its own files, and those of transformers' that it edits."""

    manifest = File("ffp.json")  # what was removed, and from what
    card = File("README.md")
    config = File("config.json")
    generation = File("generation_config.json")  # defaults of `generate`
    tokenizer_config = File("tokenizer_config.json")
    modeling = File("modeling_pruned.py")  # builds blocks of different sizes
    mask = File("mask.npz")  # which entries were kept; no safetensors, which engines would take for weights


class ReportFiles(Folder):
    """The report: its page, metrics, figures and tables."""

    page = File("index.html")
    metrics = File("metrics.json")  # flat figures of the finished cells, for `dvc metrics`

    def file(self, name: str, kind: str) -> Path:
        """Returns a figure of FIGURES as one of FIGURE_KINDS, or a table as csv, parquet, md or tex."""
        return self.folder / f"{name}.{kind}"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file of the report."""
        kinds = ((FIGURES, FIGURE_KINDS), (FIGURE_TABLES, ("csv", "parquet")), (TEXT_TABLES, ("md", "tex")))
        files = [self.file(name, kind) for names, each in kinds for name in names for kind in each]
        return self.page, self.metrics, *files


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

    @property
    def logs(self) -> Path:
        """The folder of all logs: a folder of their own for results elsewhere, since cells may have the same names."""
        parts = [part for part in self.results.parts if part not in (self.results.anchor, "..")]
        return LOGS if self.results == Path("results") else LOGS.joinpath(*parts)

    def probe(self, model: str, kind: str) -> Path:
        """Returns what a tiny job of a kind, "search" or "score", found on its node; beside its log."""
        return self.logs / "site" / model / f"{kind}.json"

    def log(self, step: str, name: str = "") -> Path:
        """Returns the log of a step, of a cell's path or an asset's name where it has one."""
        return self.logs / step / f"{name}.log" if name else self.logs / f"{step}.log"

    def benchmark(self, step: str, name: str) -> Path:
        """Returns Snakemake's own measurements of a job, beside its log."""
        return self.logs / step / f"{name}.benchmark.tsv"


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path with the home directory that a leading ~ or ~USER stands for.

    Raises:
        ConfigError: There is no such user, or neither $HOME nor the system says where the home directory is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"the home directory in {path} is not known. Write the path out, or set HOME.") from error


def named_folder(variable: str) -> Path | None:
    """Returns the folder that an environment variable names, with ~ and other variables in it; None where it is unset.

    Raises:
        ConfigError: It names a variable that is not set, or a home directory that is not known.
    """
    if not (named := os.environ.get(variable)):
        return None
    if "$" in (found := os.path.expandvars(named)):
        raise ConfigError(f"{variable} is {named!r}, and a variable in it is not set. Set it, or write the path out.")
    return expanded(found)


def default_data() -> Path:
    """Returns where `ffp prune` keeps fetched models and texts: data/ in a checkout, else a cache of the user's."""
    if Path("config/models").is_dir():
        return Path("data")
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "ffp"


def downloads_of(asset_folder: Path) -> Path:
    """Returns the folder of downloads that the assets of a data folder share: $FFP_DOWNLOADS where it is set."""
    if shared := named_folder("FFP_DOWNLOADS"):
        return shared.absolute()
    return Path(asset_folder).absolute().parent.parent / DOWNLOADS
