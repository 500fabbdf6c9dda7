"""A grid with all that it names, its cells, and the settings and versions that each step of a cell depends on."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffp.allocators import registry
from ffp.config.assets import ModelConfig, TasksConfig, TextConfig
from ffp.config.grid import GridConfig
from ffp.config.published import PublishedConfig
from ffp.config.reading import S, read_part
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean
from ffp.store import code_version

# Raised whenever the numbers of a step can change; its cells run again. "reward" stands for the evaluator behind
# every search; methods and task sets have versions of their own.
STEP_VERSIONS = {
    "asset": "1",
    "calibrate": "1",
    "allocate": "1",
    "reward": "1",
    "apply": "3",
    "evaluate": "1",
    "report": "2",
}


def code_of(step: str, method: registry.Method | None = None) -> str:
    """What stands for the code of a step, and of the method that it calls; see ffp.code_version."""
    version = STEP_VERSIONS[step]
    if method is None:
        return code_version.key(step, version)
    return code_version.key(step, f"{version}.{STEP_VERSIONS['reward']}.{method.version}", method.target)


def accept_code() -> None:
    """Record that the code as it is gives the numbers of the present versions."""
    steps = [(step, STEP_VERSIONS[step], "") for step in code_version.ROOTS if step != "allocate"]
    version = f"{STEP_VERSIONS['allocate']}.{STEP_VERSIONS['reward']}"
    methods = [("allocate", f"{version}.{method.version}", method.target) for method in registry.METHODS.values()]
    code_version.accept([*steps, *methods])


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a model pruned at a granularity and sparsity by a method with a seed."""

    model: str
    granularity: str
    sparsity: str
    method: str
    seed: int

    @property
    def path(self) -> str:
        return f"{self.model}/{self.granularity}/s{self.sparsity}/{self.method}/seed{self.seed}"


class Experiment:
    """A grid with the models, texts and tasks that it names, all read and checked."""

    def __init__(self, grid_file: Path):
        """Read `grid_file`; its siblings models/, texts/ and tasks/ hold what it names.

        Raises ConfigError with one line that names the file, the key and the remedy.
        """
        self.file = Path(grid_file)
        folder = self.file.parent
        self.root = folder if (folder / "models").is_dir() else folder.parent
        self.grid = read_part(GridConfig, self.file)
        self.models = {name: self._part("models", name, ModelConfig) for name in self.grid.models}
        self.text = self._part("texts", self.grid.text, TextConfig)
        self.tasks = self._part("tasks", self.grid.tasks, TasksConfig) if self.grid.tasks else None
        published = self.root / "published.yaml"
        self.published = (
            read_part(PublishedConfig, published) if published.is_file() else PublishedConfig(models={}, sets=())
        )
        for name in self.grid.methods:
            reasons = [self.refusal(name, granularity) for granularity in self.grid.granularities]
            if all(reasons):
                raise ConfigError(
                    f"{self.file}: {reasons[0]}, and granularities are {list(self.grid.granularities)}. "
                    "Remove it or add one of its granularities."
                )

    def at(self, *, results: Path | None) -> Experiment:
        """The same experiment with its results in another folder; itself for None."""
        if results is None:
            return self
        other = copy.copy(self)
        other.grid = self.grid.model_copy(update={"results": str(results)})
        return other

    def _part(self, kind: str, name: str, shape: type[S]) -> S:
        path = self.root / kind / f"{name}.yaml"
        if not path.is_file():
            known = [p.stem for p in (self.root / kind).glob("*.yaml")]
            raise ConfigError(f"{self.file}: {path} does not exist: {did_you_mean(name, known)}")
        return read_part(shape, path)

    def method(self, name: str) -> registry.Method:
        """The registered method behind a name of the grid, which may be a variant."""
        variant = self.grid.variants.get(name)
        return registry.find(variant.use if variant and variant.use else name)

    def parameters(self, name: str) -> dict[str, Any]:
        """The hyper-parameters that the grid gives a method."""
        variant = self.grid.variants.get(name)
        return variant.parameters if variant else {}

    def refusal(self, name: str, granularity: str) -> str | None:
        """Why a method of the grid, which may be a variant, has no cells at a granularity; None where it has."""
        served, variant = set(self.method(name).granularities), self.grid.variants.get(name)
        if variant and (variant.compensate != "none" or variant.score):
            served &= {"structured"}
        if variant and variant.pruner:
            served -= {"structured"}
        return None if granularity in served else f"{name} serves {', '.join(sorted(served)) or 'no'} pruning only"

    def cells(self, *, dense: bool = True) -> Iterator[Cell]:
        """Every cell: for each model and granularity the dense one (unless told otherwise), then the grid.

        Methods that evaluate nothing and draw nothing get the first seed only.
        """
        grid = self.grid
        for model in grid.models:
            for granularity in grid.granularities:
                if dense:
                    yield Cell(model, granularity, "0.00", "dense", 0)
                for sparsity in grid.sparsities_of(granularity):
                    for name in grid.methods:
                        if self.refusal(name, granularity) is None:
                            for seed in grid.seeds if self.method(name).is_search else grid.seeds[:1]:
                                yield Cell(model, granularity, f"{sparsity:.2f}", name, seed)

    def cell(self, path: str) -> Cell:
        """The cell of that path, e.g. "smollm2-135m/structured/s0.20/owl/seed0"; ConfigError if the grid lacks it."""
        cells = {cell.path: cell for cell in self.cells()}
        if path not in cells:
            raise ConfigError(f"{self.file} has no cell {path!r}: {did_you_mean(path, cells)}")
        return cells[path]

    def settings(self, step: str, cell: Cell) -> dict[str, Any]:
        """Everything in the configuration that can change the numbers of one step of a cell.

        step: "calibrate", "allocate", "apply" or "evaluate". Rules pass it through `params`, so that exactly the
        steps whose settings or versions changed run again; artifacts keep it in their provenance.
        """
        method = self.method(cell.method) if step == "allocate" else None
        return {"step_version": STEP_VERSIONS[step], "code": code_of(step, method), **self._settings(step, cell)}

    def _settings(self, step: str, cell: Cell) -> dict[str, Any]:
        grid, model = self.grid, self.models[cell.model]
        arithmetic = {"dtype": model.dtype, "device": model.device, "threads": model.resources.threads}
        arithmetic |= {"offload": True} if model.offload else {}
        if step == "calibrate":
            texts = {k: getattr(grid.search, k) for k in ("context", "windows", "selection_windows")}
            return {**arithmetic, "calibration": grid.calibration.model_dump(), "search": texts}
        if step == "evaluate":
            tasks = self.tasks.version if self.tasks else None
            return {**arithmetic, "evaluation": grid.evaluation.model_dump(), "tasks": tasks}
        cut: dict[str, Any] = {"pruner": self.pruner(cell.method), "min_keep": model.min_keep}
        if cell.granularity == "structured":
            cut = {"score": self.score(cell.method), "min_keep": model.min_keep}
            cut |= {"align": model.align} if model.align > 1 else {}
        if step == "apply":
            own = {"compensate": self.compensation(cell.method)} if cell.granularity == "structured" else {}
            return {**arithmetic, **cut, **own}
        method = self.method(cell.method)
        parameters = self.parameters(cell.method)
        facts: dict[str, Any] = {"use": method.name, "version": method.version, "parameters": parameters}
        if files := [str(parameters[name]) for name in method.files if parameters.get(name)]:
            facts["files"] = {file: _digest(Path(file)) for file in files}
        if (origin := self.init_cell(cell)) is not None:
            facts["init"] = origin.path
        if not method.is_search:
            return {**cut, **facts}
        search = {"reward_version": STEP_VERSIONS["reward"], "search": grid.search.model_dump()}
        search |= {"fitness": "kl"} if self.fitness(cell.method) == "kl" else {}
        return {**cut, **facts, **arithmetic, **search}

    def init_cell(self, cell: Cell) -> Cell | None:
        """The cell whose policy a search starts from; None where it starts afresh, as the named cell itself does.

        ConfigError where the grid has no such cell, or the method learns no policy.
        """
        variant = self.grid.variants.get(cell.method)
        if variant is None or variant.init is None or cell.method == "dense":
            return None
        origin = dataclasses.replace(
            cell, model=variant.init.model or cell.model, sparsity=variant.init.sparsity.removeprefix("s")
        )
        if origin == cell:
            return None
        sparsities = {f"{sparsity:.2f}" for sparsity in self.grid.sparsities_of(cell.granularity)}
        made = origin.model in self.models and origin.sparsity in sparsities
        if not (made and self.method(cell.method).learns):
            learners = ", ".join(name for name, method in registry.METHODS.items() if method.learns)
            raise ConfigError(
                f"{self.file}: variants.{cell.method}.init asks for the policy of {origin.path}, which the grid does "
                f"not make. Name one of its models and sparsities, and a method that learns a policy ({learners})."
            )
        return origin

    def score(self, name: str) -> str:
        """Which units of a structured decision go first for a method of the grid."""
        variant = self.grid.variants.get(name)
        return (variant.score if variant else None) or self.grid.calibration.score

    def pruner(self, name: str) -> str:
        """Which single weights go for a method of the grid."""
        variant = self.grid.variants.get(name)
        return (variant.pruner if variant else None) or self.grid.pruner

    def fitness(self, name: str) -> str:
        """What the search of a method of the grid is rewarded for."""
        variant = self.grid.variants.get(name)
        return variant.fitness if variant else "ppl"

    def compensation(self, name: str) -> str:
        """What follows the cut for a method of the grid."""
        variant = self.grid.variants.get(name)
        return variant.compensate if variant else "none"


def _digest(path: Path) -> str | None:
    """sha256 of a file that a method reads; None where it cannot be read, which is told when the method runs."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
