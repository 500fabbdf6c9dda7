# What the rules look up: paths, settings and resources, all from the grid file. No rule is defined here.
import functools
import gc
import json
import os
import re
from pathlib import Path

from ffp.pipeline import cluster, locks
from ffp.config import STEP_VERSIONS, Cell, Experiment, code_of

if workflow.is_main_process:
    locks.clear_stale()  # what kill -9 left behind; see ffp/pipeline/locks.py

# Planning thousands of cells makes millions of objects that stay; looking through them for garbage as often as Python
# does by default is a fifth of the time.
gc.set_threshold(1_000_000)

as_json = functools.partial(json.dumps, sort_keys=True)

EXPERIMENT = Experiment(config.get("grid", "config/grids/demo.yaml"))
GRID = EXPERIMENT.grid

# Paths; {{...}} are wildcards. A cell is one point of the grid, the dense model included.
CONFIG = EXPERIMENT.root
MODEL = f"{GRID.data}/models/{{model}}/asset.json"
TEXT = f"{GRID.data}/text/{{text}}/asset.json"
TASKS = f"{GRID.data}/tasks/{{tasks}}/asset.json"
CALIBRATION = f"{GRID.data}/calibration/{{model}}"
CELL = "{model}/{granularity}/s{sparsity}/{method}/seed{seed}"
CELLS = f"{GRID.results}/cells"
REPORT = f"{GRID.results}/report"
INDEX = f"{REPORT}/index.html"
ENV = "../../environment.yml"  # the software of every rule, which is that of Snakemake itself

TEXT_ASSET = TEXT.format(text=GRID.text)
TASKS_ASSET = [TASKS.format(tasks=GRID.tasks)] if GRID.tasks else []

SEARCHES = [name for name in GRID.methods if EXPERIMENT.method(name).is_search]
CHEAP = [name for name in GRID.methods if name not in SEARCHES]
ALL_CELLS = [cell.path for cell in EXPERIMENT.cells()]
PRUNED_CELLS = [cell.path for cell in EXPERIMENT.cells(dense=False)]
SEARCH_FILES = ["allocation.json", "trace.parquet", "search.cost.json"]
CELL_FILES = [
    *expand(f"{CELLS}/{{cell}}/scores.json", cell=ALL_CELLS),
    *expand(f"{CELLS}/{{cell}}/{{file}}", cell=PRUNED_CELLS, file=SEARCH_FILES),
]


def one_of(names):
    """A pattern for exactly these names; it matches nothing where there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def local_files(parts):
    """The files of this machine that an asset is made of, so that an edit is noticed."""
    paths = [Path(part.source.path).expanduser() for part in parts if part.source.kind == "local"]
    return [file for path in paths for file in (sorted(path.glob("[!.]*.*")) if path.is_dir() else [path])]


wildcard_constraints:
    model=one_of(GRID.models),
    text=one_of([GRID.text]),
    tasks=one_of([GRID.tasks] if GRID.tasks else []),
    granularity=one_of(GRID.granularities),
    sparsity=one_of(["0.00", *(f"{sparsity:.2f}" for sparsity in GRID.all_sparsities)]),
    method=one_of(["dense", *GRID.methods]),
    seed=one_of([0, *GRID.seeds]),


def settings(step):
    """All of the configuration that can change a step's numbers, as JSON: when it changes, the job runs again."""

    def of(wildcards):
        parts = {name: wildcards.get(name, "") for name in ("model", "granularity", "sparsity", "method", "seed")}
        return as_json(EXPERIMENT.settings(step, Cell(**parts)))

    return of


def asset_settings(part, **fields):
    """The same for an asset: not its title, nor what a model's jobs ask for."""
    return as_json(
        {"step_version": STEP_VERSIONS["asset"], "code": code_of("asset"), **part.model_dump(mode="json", **fields)}
    )


def report_settings():
    """The same for the report: the grid, the names that its tables print, and what others published."""
    parts = {**EXPERIMENT.models, "text": EXPERIMENT.text, "tasks": EXPERIMENT.tasks}
    titles = {name: part.title for name, part in parts.items() if part}
    known = {"titles": titles, "published": EXPERIMENT.published.model_dump(mode="json")}
    return as_json({"step_version": STEP_VERSIONS["report"], **known, "grid": GRID.model_dump(mode="json")})


def ask(resource):
    """What a job of this model asks of the machine, from config/models/."""
    return lambda wildcards: getattr(EXPERIMENT.models[wildcards.model].resources, resource)


def memory(wildcards, attempt):
    """MB of a job's memory: twice as much at each attempt, since a job that is killed for lack of it says no more."""
    return EXPERIMENT.models[wildcards.model].resources.mem_mb * 2 ** (attempt - 1)


def cut_files(wildcards):
    """What makes the dense model a cell's: nothing for the dense cell."""
    if wildcards.method == "dense":
        return []
    return [f"{CELLS}/{CELL}/{file}".format(**wildcards) for file in ("masks.safetensors", "updates.safetensors")]


def init_allocation(wildcards):
    """The cell that has to be searched first, because this one starts from its policy."""
    origin = EXPERIMENT.init_cell(
        Cell(*(wildcards[name] for name in ("model", "granularity", "sparsity", "method", "seed")))
    )
    return [f"{CELLS}/{origin.path}/allocation.json"] if origin else []


def folder_flag(name, key):
    """A params function: ["--name", folder of the input `key`], or [] where the job has no such input."""

    def of(wildcards, input):
        files = input.get(key)
        first = files if isinstance(files, str) else next(iter(files), "")
        return [f"--{name}", os.path.dirname(first)] if first else []

    return of
