"""What a step's numbers depend on. A step runs again exactly when this changes.

It is the part of the configuration that can change the step's numbers, and a digest of the code that the step can
reach (code_version.py). Rules hand it to Snakemake as `params`, results keep it, `ffp verify` compares the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ffp.allocators import METHODS, is_search
from ffp.allocators.base import Method
from ffp.config import Cell, Experiment, ModelConfig, TasksConfig, TextConfig
from ffp.config.grid import is_refitted
from ffp.store import code_version

# Increase a version when a step's numbers change; the changelog says why. "reward" is the evaluator behind every
# search. Methods and task sets have versions of their own.
STEP_VERSIONS: Mapping[str, str] = {
    "asset": "1",
    "calibrate": "1",
    "grams": "1",
    "allocate": "1",
    "reward": "1",
    "apply": "4",
    "recover": "1",
    "evaluate": "1",
    "report": "8",
}

CODE = ("step_version", "code")  # settings that say which code, not what was asked for


def code_of(step: str, method: type[Method] | None = None) -> str:
    """Returns the digest that identifies the code of a step, and of the method that it calls."""
    if method is None:
        return code_version.key(step, STEP_VERSIONS[step])
    return code_version.key(step, _allocate_version(method), _target(method))


def accept_code() -> None:
    """Records that the code as it is gives the numbers of the present versions, so that results stay valid."""
    steps = [(step, STEP_VERSIONS[step], "") for step in code_version.ROOTS if step != "allocate"]
    own = [method for method in METHODS.values() if method.__module__.startswith("ffp.")]
    code_version.accept([*steps, *(("allocate", _allocate_version(method), _target(method)) for method in own)])


def _allocate_version(method: type[Method]) -> str:
    return f"{STEP_VERSIONS['allocate']}.{STEP_VERSIONS['reward']}.{method.version}"


def _target(method: type[Method]) -> str:
    return f"{method.__module__}:{method.__qualname__}"


def step_settings(experiment: Experiment, step: str, cell: Cell) -> dict[str, Any]:
    """Returns everything that can change the numbers of one step of a cell.

    Args:
        experiment: The grid and what it names.
        step: "calibrate", "grams", "allocate", "apply", "recover" or "evaluate".
        cell: The cell; `calibrate` and `grams` look at its model alone.
    """
    method = experiment.method(cell.method) if step == "allocate" else None
    return {"step_version": STEP_VERSIONS[step], "code": code_of(step, method), **_SETTINGS[step](experiment, cell)}


def changed_settings(experiment: Experiment, step: str, cell: Cell, then: Mapping[str, Any]) -> list[str]:
    """Returns the settings of a step that were others when a file was made.

    A setting that stands on one side alone is at its default on the other; see step_settings.
    """
    now = json.loads(json.dumps(step_settings(experiment, step, cell)))
    return [key for key in dict.fromkeys([*now, *then]) if now.get(key) != then.get(key)]


def asset_settings(part: ModelConfig | TextConfig | TasksConfig) -> dict[str, Any]:
    """Returns everything that can change an asset: not its title, nor what a model's jobs ask for."""
    version = {"step_version": STEP_VERSIONS["asset"], "code": code_of("asset")}
    if not isinstance(part, ModelConfig):
        return {**version, **part.model_dump(mode="json", exclude={"title"})}
    lm_head = {"lm_head": part.lm_head} if part.lm_head != "auto" else {}
    return {**version, **part.model_dump(mode="json", include={"source"}), **lm_head}


def preflight_settings(experiment: Experiment, model: str) -> dict[str, Any]:
    """Returns everything that the checks of a model look at: its settings, and the grid's but for seeds and names."""
    cell = Cell.dense_of(model)
    outside = {"title", "resources"}
    partners = {n: experiment.models[n].model_dump(mode="json", exclude=outside) for n in experiment.partners(model)}
    return {
        **({"partners": partners} if partners else {}),
        "steps": [step_settings(experiment, step, cell) for step in ("calibrate", "evaluate")],
        "model": experiment.models[model].model_dump(mode="json", exclude=outside),
        "grid": experiment.grid.model_dump(mode="json", exclude={"title", "models", "seeds", "data", "results"}),
    }


def report_settings(experiment: Experiment) -> dict[str, Any]:
    """Returns everything that can change the report: the grid, the names in its tables, and what others published."""
    parts = {**experiment.models, "text": experiment.text, "tasks": experiment.tasks}
    titles = {name: part.title for name, part in parts.items() if part}
    return {
        "step_version": STEP_VERSIONS["report"],
        "titles": titles | {f"text {name}": title for name, title in _further(experiment).items()},
        "published": experiment.published.model_dump(mode="json"),
        "grid": experiment.grid.model_dump(mode="json"),
    }


def _arithmetic(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Settings on which the last bits of every sum depend."""
    model = experiment.models[cell.model]
    found = {"dtype": model.dtype, "device": model.device, "threads": model.resources.threads}
    return found | ({"offload": True} if model.offload else {})


def _ranking(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Settings that say which units go first, and which ones stay in any case."""
    model = experiment.model(cell)
    least = {"min_keep": model.min_keep, **({"keep_blocks": model.keep_blocks} if model.keep_blocks else {})}
    if cell.granularity != "structured":
        return {"pruner": experiment.pruner(cell.method), **least}
    found = {"score": experiment.score(cell.method), **least}
    found |= {"align": model.align} if model.align > 1 else {}
    return found | ({"attention_units": model.attention_units} if model.attention_units != "kv-groups" else {})


def _calibrate(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    grid = experiment.grid
    texts = {name: getattr(grid.search, name) for name in ("context", "windows", "selection_windows")}
    found = {**_arithmetic(experiment, cell), "calibration": grid.calibration.model_dump(), "search": texts}
    return found | _bos(experiment, cell)


def _grams(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    used = experiment.grid.calibration.model_dump(include={"windows", "context"})
    return {**_arithmetic(experiment, cell), "calibration": used} | _bos(experiment, cell)


def _bos(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Where windows have a BOS; nothing where they have none, as in all results before there was this setting."""
    asked = experiment.models[cell.model].bos
    return {} if asked == "never" else {"bos": asked}


def _allocate(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    method, parameters = experiment.method(cell.method), experiment.parameters(cell.method)
    found: dict[str, Any] = {"use": method.name, "version": method.version, "parameters": parameters}
    found |= named_files(method, parameters)
    if (origin := experiment.init_cell(cell)) is not None:
        found["init"] = origin.path
    found = {**_ranking(experiment, cell), **found}
    if not is_search(method):
        return found
    found |= _arithmetic(experiment, cell)
    search = experiment.grid.search.model_dump(mode="json", exclude={"compensated"})
    found |= {"reward_version": STEP_VERSIONS["reward"], "search": search}
    found |= {"compensated": True} if experiment.compensated_search(cell.method) else {}
    if experiment.learns_scales(cell.method) and is_refitted(experiment.compensation(cell.method)):
        found["scales"] = "not learned"  # where ridge follows, which leaves them out; they were, once
    return found | ({"fitness": "kl"} if experiment.fitness(cell.method) == "kl" else {})


def _apply(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    found = {**_arithmetic(experiment, cell), **_ranking(experiment, cell)}
    if cell.granularity != "structured":
        return found
    found["compensate"] = compensation = experiment.compensation(cell.method)
    # a bias left out the scales that a search had learned; other cells are as they were
    return found | ({"scales": "kept"} if compensation == "bias" and experiment.learns_scales(cell.method) else {})


def _recover(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    used = experiment.grid.calibration.model_dump(include={"windows", "context"})
    found = {**_arithmetic(experiment, cell), **_recovery(experiment, cell), "calibration": used, "seed": cell.seed}
    return found | _bos(experiment, cell)


def _recovery(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """The settings of recovery; nothing for cells without it, whose results stay valid."""
    settings = experiment.recover(cell)
    return {"recover": settings.model_dump(mode="json", exclude={"dense", "checkpoint"})} if settings.wanted else {}


def _evaluate(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    tasks = experiment.tasks.version if experiment.tasks else None
    evaluation = experiment.grid.evaluation.model_dump()
    found = {**_arithmetic(experiment, cell), "evaluation": evaluation, "tasks": tasks}
    found |= {"prompts": "stems"} if tasks else {}  # cells without tasks are as they were before prompts were shared
    if tasks and not cell.is_dense and cell.granularity == "structured" and experiment.model(cell).min_keep == 0:
        found["caches"] = "counted"  # where a whole attention was gone, masks could miss the length of the past
    texts = {"texts": list(experiment.test_titles)} if _further(experiment) else {}
    return {**found, **texts, **_recovery(experiment, cell), **_bos(experiment, cell)}


def _further(experiment: Experiment) -> dict[str, str]:
    """Titles of the test texts by name; none where cells are tested on the text of the calibration alone.

    So a grid's `text: NAME`, and all results before there were several, are what they were.
    """
    titles = experiment.test_titles
    return {} if list(titles) == [experiment.grid.calibration_text] else titles


_SETTINGS: Mapping[str, Callable[[Experiment, Cell], dict[str, Any]]] = {
    "calibrate": _calibrate,
    "grams": _grams,
    "allocate": _allocate,
    "apply": _apply,
    "recover": _recover,
    "evaluate": _evaluate,
}


def named_files(method: type[Method], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"files": sha256 by path} of the files that hyper-parameters name; nothing where they name none."""
    files = [str(parameters[name]) for name in method.file_parameters if parameters.get(name)]
    return {"files": {file: _digest(Path(file)) for file in files}} if files else {}


def _digest(path: Path) -> str | None:
    """Returns a file's sha256; None where it cannot be read, which the method reports when it runs."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
