"""Where the workflow runs: checks what a site must offer before the first job, and shares out GPUs."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from ffp.config import Experiment, LocalSource, ModelConfig, TasksConfig, TextConfig
from ffp.config.assets import AnySource, JobKind
from ffp.core.errors import ConfigError
from ffp.core.plain import fault_of_path
from ffp.core.suggest import did_you_mean
from ffp.pipeline.locks import try_lock
from ffp.store.files import visible_files
from ffp.store.layout import expanded

log = logging.getLogger("ffp")
# Keys of a model's resources, and what the plug-in of Snakemake calls them.
SLURM_RESOURCES = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "qos",
    "constraint": "constraint",
    "gres": "gres",
}
# What Slurm's programs print where a job is not taken: the answer to the plug-in's sbatch, or that there is no cluster.
REFUSED = re.compile(r"The error message was '?(.*?)'?\.?$", re.MULTILINE)
UNREACHED = re.compile(r"^(?:sacctmgr|sshare|sinfo|sbatch|squeue): (?:fatal|error): (.+)$", re.MULTILINE)
PREFIX = re.compile(r"^(sbatch: )?(error: )?(Batch job submission failed: )?")
DEMO = "config/grids/demo.yaml"  # the grid of a workflow that names none
_claimed: list[FileLock] = []  # released when this process ends


def submission_error(said: str) -> str:
    """Returns why Slurm did not take a job, by what Snakemake printed; empty if it took it."""
    if refused := REFUSED.search(said):
        return PREFIX.sub("", (refused[1].strip().splitlines() or ["sbatch failed and gave no reason"])[0])
    unreached = UNREACHED.findall(said)
    return f"Slurm does not answer: {unreached[-1]}" if unreached else ""


def grid_file(config: Mapping[str, object]) -> Path:
    """Returns the grid's file that `snakemake --config grid=FILE` names; that of the demo without it.

    Args:
        config: What Snakemake was given under --config or --configfile.

    Raises:
        ConfigError: There is another key, or the value is no path.
    """
    for key in config:
        if key != "grid":
            raise ConfigError(f"--config {key}=... is unknown: {did_you_mean(key, ['grid'])} Write --config grid=FILE.")
    given = config.get("grid", DEMO)
    if not (isinstance(given, str) and given.strip()):
        raise ConfigError(f"--config grid={given or ''} names no file. Write --config grid={DEMO}, for example.")
    return Path(given)


def check_paths(experiment: Experiment) -> None:
    """Checks that Snakemake takes the grid's file, and the files of this machine that assets come from, as they are.

    Raises:
        ConfigError: One of them has a character that Snakemake or a shell takes for something else.
    """
    parts: list[ModelConfig | TextConfig | TasksConfig] = [*experiment.models.values(), *experiment.texts.values()]
    parts += [experiment.tasks] if experiment.tasks else []
    for path in (experiment.file, *(file for part in parts for file in watched_files(part))):
        if fault := fault_of_path(path):
            raise ConfigError(f"path {str(path)!r} {fault}. Rename it, or move it into another folder.")


def watched_files(part: ModelConfig | TextConfig | TasksConfig) -> list[Path]:
    """Returns the files of this machine that an asset is made of, whose edits the workflow notices.

    Models consist of files with an ending. Beside them lie others, such as a license.
    """
    if isinstance(part, ModelConfig):
        return _files_of(part.source, ending=".*")
    if isinstance(part, TextConfig):
        return [file for corpus in part.sources for file in _files_of(corpus.source)]
    return [file for source in part.sources for file in _files_of(source, nested=source in part.data_sets)]


def _files_of(source: AnySource, *, nested: bool = False, ending: str = "") -> list[Path]:
    """The files of a local source that are fetched; what is missing is named, for Snakemake to complain of."""
    if not isinstance(source, LocalSource):
        return []
    path = expanded(source.path)
    return visible_files(path, nested=nested, ending=ending) if path.is_dir() else [path]


def check(executor: str, snakefile: str) -> None:
    """Checks that this machine can reach what a profile hands its jobs to, and that paths survive that.

    Args:
        executor: Name of Snakemake's executor, such as "local" or "slurm".
        snakefile: Path of the workflow's Snakefile.

    Raises:
        ConfigError: The executor is Slurm, and this machine has none; or jobs are sent elsewhere from a folder whose
            name a shell would take for something else.
    """
    for path in (os.getcwd(), snakefile) if executor != "local" else ():
        if fault := fault_of_path(path):
            raise ConfigError(f"path {path!r} {fault}, and jobs of {executor} are sent with it. Rename the folder.")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "profile slurm needs Slurm, but this machine has no sbatch. Run on a node from which jobs can be "
            "submitted, or run here with --profile profiles/local."
        )


def take_back() -> int:
    """Cancels the jobs that a killed run left in Slurm's queue, and returns their number.

    The run that calls this may submit them again, and both would compute the same. Searches go on from their journals.
    """
    command = ["squeue", "--noheader", "--me", "--format", "%A|%k|%Z"]  # number, comment, folder
    listed = subprocess.run(command, text=True, capture_output=True).stdout
    jobs = [line.split("|", 2) for line in listed.splitlines()]
    left = [job for job, comment, folder in jobs if comment.startswith("rule_") and folder == os.getcwd()]
    if left:
        subprocess.run(["scancel", *left])  # it complains of those that have ended meanwhile
    return len(left)


def slurm_options(models: Mapping[str, ModelConfig], kind: JobKind) -> dict[str, Callable[[str], str | None]]:
    """Returns what the models of a grid ask of Slurm for one kind of jobs: functions of the model's name, by resource.

    Args:
        models: The grid's models by name.
        kind: Of the jobs.

    Raises:
        ConfigError: One model names what another leaves to the profile, which a rule's resources cannot tell apart; or
            two ask differently for scores, although their cells share jobs.
    """
    found: dict[str, Callable[[str], str | None]] = {}
    for key, resource in SLURM_RESOURCES.items():
        named = {name: model.resources.of(kind)[key] for name, model in models.items()}
        missing = [name for name, value in named.items() if value is None]
        if missing and len(missing) < len(named):
            other = next(name for name in named if name not in missing)
            raise ConfigError(
                f"model {other} has resources.{key} for {kind} jobs, and model {missing[0]} has none. "
                "Name it for both, or for neither and put it into the profile."
            )
        if kind == "score" and len(set(named.values())) > 1:
            raise ConfigError(
                f"models ask for resources.{key} {' and '.join(dict.fromkeys(map(str, named.values())))} for cuts and "
                f"scores, and cells of several models share such a job. Name one for all under resources.score.{key}."
            )
        if not missing:
            found[resource] = named.__getitem__
    return found


def gpus() -> list[str]:
    """Returns the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all of the machine without it."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number, _ in enumerate(re.findall(r"^GPU \d+:", listed, re.MULTILINE))]


def claim_gpus(wanted: int) -> None:
    """Takes GPUs that no other job of this user has, until the process ends; waits until enough are free.

    Sets CUDA_VISIBLE_DEVICES, so it has to run before CUDA starts. Does nothing where this process sees no more GPUs
    than it wants: then Slurm or the user has chosen already, or there is no choice.

    Args:
        wanted: Number of GPUs.
    """
    known = gpus() if wanted > 0 else []
    if not 0 < wanted < len(known):
        return
    mine = _lock_free(known, wanted)
    if not mine:
        what = "a GPU" if wanted == 1 else f"{wanted} GPUs"
        log.info("waiting for %s: other jobs of this user hold too many of %s", what, ", ".join(known))
    while not mine:
        time.sleep(1)
        mine = _lock_free(known, wanted)
    _claimed.extend(mine.values())
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order of nvidia-smi
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)


def _lock_free(known: list[str], wanted: int) -> dict[str, FileLock]:
    """Locks GPUs that no other process has: `wanted` of them, or none if fewer are free."""
    mine: dict[str, FileLock] = {}
    for name in known:
        if len(mine) < wanted and (lock := try_lock(Path(tempfile.gettempdir(), f"ffp-{os.getuid()}-gpu-{name}.lock"))):
            mine[name] = lock
    if len(mine) == wanted:
        return mine
    for lock in mine.values():
        lock.release()
    return {}
