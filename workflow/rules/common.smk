# What the rules share: paths, settings and resources. All of it comes from the grid file; no rule is defined here.
import functools
import gc
import inspect
import json
import os
import re
from pathlib import Path

from ffp.allocators import is_search, reads_weights
from ffp.config import Cell, Experiment
from ffp.core.plain import shell_line
from ffp.pipeline import cluster, links, locks
from ffp.store.identity import asset_settings, preflight_settings, report_settings, step_settings
from ffp.store.layout import WILDCARD_CELL, Layout
from ffp.store.shared import replaced

if workflow.is_main_process:
    locks.clear_stale()  # a killed run leaves Snakemake's lock files behind; see ffp/pipeline/locks.py
    links.unlink_from_cache()  # DVC's cache may share files with logs and records

# A grid of thousands of cells makes millions of objects that stay. Python's default would look through all of them
# so often that it took a fifth of the planning time.
gc.set_threshold(1_000_000)

as_json = functools.partial(json.dumps, sort_keys=True)

EXPERIMENT = Experiment(cluster.grid_file(config))
GRID = EXPERIMENT.grid
cluster.check_paths(EXPERIMENT)
ENV = "../../environment.yml"  # the packages of every rule; the same as Snakemake's own

# Files and folders with wildcards in their names; ffp/store/layout.py says what they hold.
LAYOUT = Layout.from_grid(GRID)
MODEL, TEXT, TASKS = LAYOUT.model("{model}"), LAYOUT.text("{text}"), LAYOUT.tasks("{tasks}")
CALIBRATION, CELL, REPORT = LAYOUT.calibration("{model}"), LAYOUT.cell(WILDCARD_CELL), LAYOUT.report

# The texts and tasks of this grid: the one that methods are fitted to, and those that cells are scored on.
TEXT_DIR = LAYOUT.text(GRID.calibration_text)
TEST_MANIFESTS = [LAYOUT.text(name).manifest for name in GRID.test_texts]
TASKS_DIR = LAYOUT.tasks(EXPERIMENT.tasks_name) if EXPERIMENT.tasks else None

# Inputs that several rules have.
CALIBRATED_MODEL = {"model": MODEL.manifest, "tokens": CALIBRATION.tokens, "stats": CALIBRATION.stats}


def asks_the_site():
    """Whether this run is one of `ffp site`: it computes no cell, and leaves the jobs of other runs alone."""
    probes = {str(LAYOUT.probe(model, kind)) for model in GRID.models for kind in ("search", "score")}
    return bool(workflow.dag_settings.targets) and probes.issuperset(workflow.dag_settings.targets)


def begin():
    """What a run does before its first job."""
    cluster.check(workflow.executor_plugin.name, workflow.main_snakefile)
    locks.hold()
    for sentence in [] if asks_the_site() else replaced(EXPERIMENT):
        print(f"warning: {sentence}", flush=True)
    if workflow.executor_plugin.name == "slurm" and not asks_the_site() and (left := cluster.take_back()):
        print(f"Jobs of a killed run cancelled in Slurm's queue: {left}. This run submits again what it needs of them;")
        print("a run of the whole grid does so with the rest.")


def one_of(names):
    """A pattern for exactly these names; it matches nothing if there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def asked_often(function):
    """A function of wildcards with its signature, which Snakemake would work out again for every job and resource."""
    function.__signature__ = inspect.signature(function)
    return function


def uncompared(path_of):
    """A params function of a file of config/: under another name with the same `settings` no job runs again.

    Snakemake does not compare params that functions of a job's inputs give.
    """
    return asked_often(lambda wildcards, input: str(path_of(wildcards)))


# Params that several rules have.
MODEL_PARAMS = {"grid": uncompared(lambda wildcards: EXPERIMENT.file), "model_dir": subpath(input.model, parent=True)}
CELL_PARAMS = {**MODEL_PARAMS, "cell": WILDCARD_CELL.path}
CALIBRATED_CELL_PARAMS = {
    **CELL_PARAMS,
    "calibration": subpath(input.stats, parent=True),
    "out": subpath(output[0], parent=True),
}

SEARCHES = [name for name in GRID.methods if is_search(EXPERIMENT.method(name))]
FROM_SIZES = [name for name in GRID.methods if not reads_weights(EXPERIMENT.method(name))]
HEURISTICS = [name for name in GRID.methods if name not in (*SEARCHES, *FROM_SIZES)]
# Cells that are trained after pruning, and their methods; the trained dense model is one of them.
TRAINED = [cell for cell in EXPERIMENT.cells() if EXPERIMENT.recover(cell).wanted]
RECOVERED = list(dict.fromkeys(cell.method for cell in TRAINED))
TRAINED_ONLY = {"granularity": "structured", "method": one_of(RECOVERED)}  # wildcards of the rules for them
# All files of all cells, so that a deleted one is noticed; the report reads all but the cuts.
CUT_FILES = [file for cell in EXPERIMENT.cells(dense=False) for file in LAYOUT.cell(cell).cut]
CELL_FILES = [
    *(LAYOUT.cell(cell).scores for cell in EXPERIMENT.cells()),
    *(file for cell in EXPERIMENT.cells(dense=False) for file in LAYOUT.cell(cell).searched),
    *(file for cell in TRAINED for file in (LAYOUT.cell(cell).curve, LAYOUT.cell(cell).recover_cost)),
]


wildcard_constraints:
    model=one_of(GRID.models),
    text=one_of(GRID.all_texts),
    tasks=one_of([EXPERIMENT.tasks_name] if EXPERIMENT.tasks else []),
    granularity=one_of(GRID.granularities),
    sparsity=one_of(["0.00", *(f"{sparsity:.2f}" for sparsity in GRID.all_sparsities)]),
    method=one_of(dict.fromkeys(["dense", *GRID.methods, *RECOVERED])),
    seed=one_of([0, *GRID.seeds]),


def cell_of(wildcards):
    """The cell of a job; a job of a whole model names only the model."""
    return Cell(*(wildcards.get(name, "") for name in ("model", "granularity", "sparsity", "method", "seed")))


def settings(step):
    """All settings that can change a step's numbers, as JSON: when they change, the job runs again."""
    return asked_often(lambda wildcards: as_json(step_settings(EXPERIMENT, step, cell_of(wildcards))))


def log_of(step, name=WILDCARD_CELL.path):
    """The log of a job."""
    return str(LAYOUT.log(step, name))


def benchmark_of(step, name=WILDCARD_CELL.path):
    """Snakemake's own measurements of a job."""
    return str(LAYOUT.benchmark(step, name))


def asked_of(model, kind, key):
    """What a job of this kind asks the machine for; from the model's file in config/models/."""
    return EXPERIMENT.models[model].resources.of(kind)[key]


def asked(kind, key):
    """The same as a resource: the value itself where the models agree, which spares Snakemake a call for every job."""
    values = {asked_of(model, kind, key) for model in GRID.models}
    if len(values) == 1:
        return values.pop()
    return asked_often(lambda wildcards: asked_of(wildcards.model, kind, key))


def memory(kind):
    """Megabytes for a job, doubled at each attempt: a job that is killed for lack of memory gives no other sign."""
    return asked_often(lambda wildcards, attempt: asked_of(wildcards.model, kind, "mem_mb") * 2 ** (attempt - 1))


def gpus(kind):
    """GPUs for a job; none where Slurm gives them by gres."""
    if not any(asked_of(model, kind, "gres") for model in GRID.models):
        return asked(kind, "gpu")

    def count(wildcards):
        by_gres = asked_of(wildcards.model, kind, "gres") and "slurm" in workflow.executor_plugin.name
        return 0 if by_gres else asked_of(wildcards.model, kind, "gpu")

    return asked_often(count)


def resources_of(kind):
    """What jobs of a kind, "search" or "score", ask for."""
    options = cluster.slurm_options(EXPERIMENT.models, kind)
    return {
        "cpus_per_task": THREADS,
        "mem_mb": memory(kind),
        "gpu": gpus(kind),
        "runtime": asked(kind, "runtime_min"),
        **{name: asked_often(lambda wildcards, of=of: of(wildcards.model)) for name, of in options.items()},
    }


THREADS = asked("search", "threads")
SEARCH_RESOURCES, SCORE_RESOURCES = resources_of("search"), resources_of("score")
HOST_RESOURCES = {**{name: value for name, value in SEARCH_RESOURCES.items() if name != "gres"}, "gpu": 0}


@asked_often
def mask_files(wildcards):
    """What turns the dense model into the cell's pruned one; nothing for the dense cells."""
    return [] if cell_of(wildcards).is_dense else [str(file).format(**wildcards) for file in CELL.cut]


@asked_often
def cut_files(wildcards):
    """The same, and the weights of the cell's recovery."""
    trained = [CELL.recovered] if EXPERIMENT.recover(cell_of(wildcards)).wanted else []
    return mask_files(wildcards) + [str(file).format(**wildcards) for file in trained]


@asked_often
def init_allocation(wildcards):
    """The allocation of the cell whose policy this cell's search starts from, if the grid names one."""
    origin = EXPERIMENT.init_cell(cell_of(wildcards))
    return [LAYOUT.cell(origin).allocation] if origin else []


@asked_often
def needed_grams(wildcards):
    """The Gram matrices of the model, if this cell needs them."""
    needed = wildcards.granularity == "structured" and EXPERIMENT.needs_grams(wildcards.method)
    return [LAYOUT.calibration(wildcards.model).grams] if needed else []


@asked_often
def same_search(wildcards):
    """The allocation of a cell that makes the same search, if the grid has one before this cell."""
    done = EXPERIMENT.same_search(cell_of(wildcards))
    return [LAYOUT.cell(done).allocation] if done else []


def shown(file):
    """A file of the report; the page, tables of figures and plots also appear in the output of snakemake --report."""
    category = {".html": "Results", ".csv": "Results", ".svg": "Plots"}.get(file.suffix)
    if category is None:
        return str(file)
    return report(str(file), caption=f"../report/{file.stem}.rst", category=category)


def folder_option(option, key):
    """A params function: [option, folder of the input `key`], or [] if the job has no such input."""

    def words(wildcards, input):
        files = input.get(key)
        first = files if isinstance(files, str) else next(iter(files), "")
        return [option, os.path.dirname(first)] if first else []

    return asked_often(words)


def folders(key, option):
    """A params function: the folders of the inputs `key` as values of an option, named again before all but the first."""

    def words(wildcards, input):
        return [word for file in input.get(key) for word in (option, os.path.dirname(file))][1:]

    return asked_often(words)


def failures(snakemake_logs):
    """The last line of every failed job's log, the error message of its command, or why Slurm did not take the job."""

    def read(path):
        return Path(path).read_text("utf-8", errors="replace")  # a program may have written anything

    text = "\n".join(read(path) for path in snakemake_logs)
    logs = re.findall(r"^ +log: (.+) \(check log file", text, re.MULTILINE)
    for path in dict.fromkeys(path for paths in logs for path in paths.split(", ")):
        lines = read(path).splitlines() if os.path.exists(path) else []
        yield f"  {lines[-1] if lines else cluster.submission_error(text) or 'no message'}  [{path}]"
