"""A grid with all that it names, and its cells."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffp.allocators import METHODS, Method, ParameterError, Search, create, find, is_search
from ffp.config.assets import ModelConfig, StockTask, TasksConfig, TextConfig
from ffp.config.catalog import Kind, entries, find_entry
from ffp.config.grid import GRAM_SCORES, GridConfig, MethodConfig, is_refitted, reads_grams, scores_compensated
from ffp.config.published import PublishedConfig
from ffp.config.reading import S, read_part
from ffp.config.recover import NO_RECOVERY, TUNED, RecoverSettings
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

LIST_NAME = 40  # characters of the names in the name of a list of tasks, at most
PLAIN = MethodConfig()  # of a method without a variant


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a model pruned at a granularity and sparsity by a method with a seed.

    Attributes:
        sparsity: Two decimals, as in the path: "0.20".
    """

    model: str
    granularity: str
    sparsity: str
    method: str
    seed: int

    @property
    def path(self) -> str:
        """The cell's folder below cells/, which is its name, e.g. "smollm2-135m/structured/s0.20/owl/seed0"."""
        return f"{self.model}/{self.granularity}/s{self.sparsity}/{self.method}/seed{self.seed}"

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed: the dense model as it is, or trained as pruned ones are."""
        return self.method in ("dense", TUNED)

    @classmethod
    def dense_of(cls, model: str) -> Cell:
        """Returns the cell of the dense model."""
        return cls(model, "structured", "0.00", "dense", 0)

    @classmethod
    def parse(cls, path: str) -> Cell:
        """Returns the cell of a path; ConfigError where it is none."""
        try:
            model, granularity, sparsity, method, seed = path.split("/")
            cell = cls(model, granularity, sparsity.removeprefix("s"), method, int(seed.removeprefix("seed")))
        except ValueError:
            cell = None
        if cell is None or cell.path != path:
            raise ConfigError(f"{path!r} is no cell. Name it MODEL/GRANULARITY/sSPARSITY/METHOD/seedN.")
        return cell

    def as_dict(self) -> dict[str, Any]:
        """Returns the cell's identity as files keep it, with the sparsity as a number."""
        return {**dataclasses.asdict(self), "sparsity": float(self.sparsity), "seed": int(self.seed)}


class Experiment:
    """A grid with the models, texts and tasks that it names, all read and checked.

    Attributes:
        file: The grid's file.
        root: The folder of models/, texts/ and tasks/.
        grid: The grid, with the folder in which its results are.
        as_written: The grid as its file says it: commands and logs name the folder in which results were made.
        models: Its models by name.
        texts: Its texts by name.
        tasks: Its tasks; None where it scores none.
        published: Numbers of others.
    """

    def __init__(self, grid_file: Path):
        """Reads a grid file, and what it names from models/, texts/ and tasks/ in its folder or the one above.

        What is not there is an entry of config/ in the current folder, or of the package.

        Raises:
            ConfigError: One line that names the file, the key and the remedy.
        """
        self.file = Path(grid_file)
        folder = self.file.parent
        self.root = folder if (folder / "models").is_dir() else Path(os.path.normpath(folder / ".."))
        self.as_written = self.grid = read_part(GridConfig, self.file)
        self.models = {name: self._part("models", name, ModelConfig) for name in self.grid.models}
        self.texts = {name: self._part("texts", name, TextConfig) for name in self.grid.all_texts}
        if self.text.test_only:
            raise ConfigError(
                f"{self.file}: all of the text {self.grid.calibration_text} is a test text, so that nothing can be "
                "calibrated on it. Name it under texts.test, and another one under texts.calibrate."
            )
        self.tasks = self._tasks()
        published = self.root / "published.yaml"
        self.published = (
            read_part(PublishedConfig, published) if published.is_file() else PublishedConfig(models={}, sets=())
        )
        self._methods = {name: self._create(name) for name in (*self.grid.methods, *self.grid.variants)}
        self._reading_grams = {name for name, method in self._methods.items() if reads_grams(method)}
        for name, row in {"dense": "the unpruned model", TUNED: "recover.dense"}.items():
            if name in (*self.grid.methods, *self.grid.variants):
                raise ConfigError(f"{self.file}: {name} is the row of {row}. Give the variant another name.")
        for name in self.grid.methods:
            reasons = [self.refusal(name, granularity) for granularity in self.grid.granularities]
            if all(reasons):
                raise ConfigError(
                    f"{self.file}: {reasons[0]}, and granularities are {list(self.grid.granularities)}. "
                    "Remove it or add one of its granularities."
                )
        if any(variant.init for variant in self.grid.variants.values()):
            for cell in self.cells(dense=False):
                self.init_cell(cell)

    def at(self, *, results: Path | None) -> Experiment:
        """Returns the same experiment with its results in another folder; itself for None."""
        if results is None:
            return self
        other = copy.copy(self)
        other.grid = self.grid.model_copy(update={"results": str(results)})
        return other

    def entry(self, kind: Kind, name: str) -> Path:
        """Returns the file of a model, text or tasks: that of the grid's folder, else the entry `ffp list` shows."""
        path = self.root / kind / f"{name}.yaml"
        found = path if path.is_file() else find_entry(kind, name)
        if found is None:
            known = {p.stem for p in (self.root / kind).glob("*.yaml")} | set(entries(kind))
            own = "To name one of your own, write that file, as docs/extend.md shows."
            raise ConfigError(f"{self.file}: {path} does not exist: {did_you_mean(name, known)} {own}")
        return found

    def _part(self, kind: Kind, name: str, shape: type[S]) -> S:
        return read_part(shape, self.entry(kind, name))

    def _tasks(self) -> TasksConfig | None:
        asked = self.grid.tasks
        if isinstance(asked, str):
            return self._part("tasks", asked, TasksConfig)
        return TasksConfig.of(asked) if asked else None

    @property
    def tasks_name(self) -> str | None:
        """The name of the tasks' folder: that of their file, or what tells a list from others."""
        asked = self.grid.tasks
        return asked if asked is None or isinstance(asked, str) else name_of_list(asked)

    def _create(self, name: str) -> Method:
        try:
            method = create(self.method(name).name, self.parameters(name))
            method.check_fitness(self.fitness(name))
        except ParameterError as error:
            where = ".".join(filter(None, ("variants", name, "params", error.key)))
            raise ConfigError(f"{self.file}: {where}: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{self.file}: {error}") from error
        if self._variant(name).compensated and not scores_compensated(method):
            reason = "scores gates on units alone" if isinstance(method, Search) else "searches nothing"
            raise ConfigError(
                f"{self.file}: variants.{name}.compensated has no effect with {method.name}, which {reason}. "
                "Leave it out."
            )
        return method

    @property
    def text(self) -> TextConfig:
        """The text that methods are calibrated, searched and selected on."""
        return self.texts[self.grid.calibration_text]

    @property
    def test_titles(self) -> dict[str, str]:
        """Titles of the test texts by name."""
        return {name: self.texts[name].title for name in self.grid.test_texts}

    def _variant(self, name: str) -> MethodConfig:
        return self.grid.variants.get(name, PLAIN)

    def model(self, of: str | Cell) -> ModelConfig:
        """Returns a model by its name, or as the variant of a cell prunes it."""
        if isinstance(of, str):
            return self.models[of]
        return self.models[of.model].model_copy(update=self._variant(of.method).units)

    def method(self, name: str) -> type[Method]:
        """Returns the registered method behind a name of the grid, which may be a variant."""
        return find(self._variant(name).use or name)

    def create(self, name: str) -> Method:
        """Returns a method with the hyper-parameters that the grid gives it."""
        return self._methods.get(name) or self._create(name)

    def parameters(self, name: str) -> dict[str, Any]:
        """Returns the hyper-parameters that the grid gives a method."""
        return dict(self._variant(name).params)

    def settings_of(self, name: str) -> dict[str, Any]:
        """Returns all that the grid sets for a method: hyper-parameters, then the other keys of its variant."""
        variant = self._variant(name)
        given = variant.model_dump(mode="json", exclude_defaults=True, exclude={"use", "params", "init", "recover"})
        init = {"init": " ".join(filter(None, (variant.init.model, variant.init.sparsity)))} if variant.init else {}
        recover = {"recover": self.recover_of(name).describe()} if self.recover_of(name).wanted else {}
        return {**self.parameters(name), **given, **init, **recover}

    def score(self, name: str) -> str:
        """Returns by which score a method of the grid removes KV groups and FFN channels."""
        return self._variant(name).score or self.grid.calibration.score

    def pruner(self, name: str) -> str:
        """Returns how single weights are chosen for a method of the grid."""
        return self._variant(name).pruner or self.grid.pruner

    def fitness(self, name: str) -> str:
        """Returns what the search of a method of the grid minimises."""
        return self._variant(name).fitness

    def compensation(self, name: str) -> str:
        """Returns how what stays makes up for removed units, for a method of the grid."""
        return self._variant(name).compensate

    def compensated_search(self, name: str) -> bool:
        """Returns whether a method of the grid searches among candidates that are compensated as its cells will be."""
        asked, variant = self.grid.search.compensated, self._variant(name)
        asked = asked if variant.compensated is None else variant.compensated
        return asked and is_refitted(variant.compensate) and scores_compensated(self.create(name))

    def learns_scales(self, name: str) -> bool:
        """Returns whether a method of the grid learns scales of the units that stay."""
        method = self.create(name)
        return isinstance(method, Search) and method.learns_scales

    def needs_grams(self, name: str) -> bool:
        """Returns whether structured cells of a method of the grid need the calibration text's Gram matrices."""
        needed = name in self._reading_grams or self.score(name) in GRAM_SCORES
        return needed or self.compensated_search(name)

    @property
    def keeps_grams(self) -> bool:
        """Whether calibration keeps Gram matrices for some cell of the grid."""
        structured = "structured" in self.grid.granularities
        return structured and any(self.needs_grams(name) for name in self.grid.methods)

    def recover(self, cell: Cell) -> RecoverSettings:
        """Returns how a cell's quality is won back by training."""
        if cell.method == "dense" or cell.granularity != "structured":
            return NO_RECOVERY
        return self.recover_of(cell.method)

    def recover_of(self, name: str) -> RecoverSettings:
        """Returns how quality is won back in the structured cells of a method of the grid."""
        return self._variant(name).recover or self.grid.recover

    def refusal(self, name: str, granularity: str) -> str | None:
        """Returns why a method of the grid has no cells at a granularity; None where it has."""
        served, variant = set(self.create(name).served), self._variant(name)
        trained = variant.recover and variant.recover.wanted
        if variant.compensate != "none" or variant.score or trained or variant.attention_units:
            served &= {"structured"}
        if variant.pruner:
            served -= {"structured"}
        return None if granularity in served else f"{name} serves {', '.join(sorted(served)) or 'no'} pruning only"

    def cells(self, *, dense: bool = True, only: str | None = None) -> Iterator[Cell]:
        """Yields every cell: for each model and granularity the dense ones, then the grid.

        Methods that evaluate nothing and draw nothing get the first seed only.

        Args:
            dense: Whether the dense cells are wanted.
            only: The model whose cells are wanted; None for all.
        """
        grid = self.grid
        for model in grid.models if only is None else (only,):
            for granularity in grid.granularities:
                if dense:
                    yield Cell(model, granularity, "0.00", "dense", 0)
                    if grid.recover.wanted and grid.recover.dense and granularity == "structured":
                        yield Cell(model, granularity, "0.00", TUNED, 0)
                for sparsity in grid.sparsities_of(granularity):
                    for name in grid.methods:
                        if self.refusal(name, granularity) is None:
                            for seed in grid.seeds if is_search(self.method(name)) else grid.seeds[:1]:
                                yield Cell(model, granularity, f"{sparsity:.2f}", name, seed)

    def cell(self, path: str) -> Cell:
        """Returns the cell of that path; ConfigError if the grid lacks it."""
        cells = {cell.path: cell for cell in self.cells()}
        if path not in cells:
            raise ConfigError(f"{self.file} has no cell {path!r}: {did_you_mean(path, cells)}")
        return cells[path]

    def init_cell(self, cell: Cell) -> Cell | None:
        """Returns the cell whose policy a search starts from; None where it starts afresh, as that cell itself does.

        Raises:
            ConfigError: The grid has no such cell, or the method learns no policy.
        """
        init = self._variant(cell.method).init
        if init is None or cell.is_dense:
            return None
        origin = dataclasses.replace(cell, model=init.model or cell.model, sparsity=init.sparsity.removeprefix("s"))
        if origin == cell:
            return None
        sparsities = {f"{sparsity:.2f}" for sparsity in self.grid.sparsities_of(cell.granularity)}
        made = origin.model in self.models and origin.sparsity in sparsities
        if not (made and _learns(self.method(cell.method))):
            learners = ", ".join(name for name, method in METHODS.items() if _learns(method))
            raise ConfigError(
                f"{self.file}: variants.{cell.method}.init asks for the policy of {origin.path}, which the grid does "
                f"not make. Name one of its models and sparsities, and a method that learns a policy ({learners})."
            )
        return origin

    def origins(self, name: str) -> list[tuple[Cell, Cell]]:
        """Returns the cells that start from another model's policy and those that learn it, where one is of `name`.

        Sparsities and seeds do not matter, and have the first one each.
        """
        found: dict[tuple[str, str, str, str], tuple[Cell, Cell]] = {}
        for cell in self.cells(dense=False):
            origin = self.init_cell(cell)
            if origin and origin.model != cell.model and name in (origin.model, cell.model):
                key = cell.model, origin.model, cell.method, cell.granularity
                found.setdefault(key, (cell, origin))
        return list(found.values())

    def partners(self, name: str) -> list[str]:
        """Returns the models whose policies a model's searches start from, or that start from its own."""
        models = [cell.model for pair in self.origins(name) for cell in pair]
        return [model for model in dict.fromkeys(models) if model != name]

    def same_search(self, cell: Cell) -> Cell | None:
        """Returns a cell of an earlier method of the grid that makes the same search; None where there is none.

        The two differ in what follows the search, as compensation and recovery do.
        """
        asked = None if cell.is_dense else self._search(cell.method)
        if asked is None:
            return None
        earlier = self.grid.methods[: self.grid.methods.index(cell.method)]
        same = (name for name in earlier if self._search(name) == asked and not self.refusal(name, cell.granularity))
        name = next(same, None)
        return dataclasses.replace(cell, method=name) if name else None

    def _search(self, name: str) -> tuple[Any, ...] | None:
        """All that a variant can change in a search; None where nothing is searched, or it starts from another cell."""
        variant = self._variant(name)
        if variant.init is not None or not is_search(self.method(name)):
            return None
        without_scales = self.learns_scales(name) and is_refitted(variant.compensate)
        given = (self.parameters(name), variant.units, self.compensated_search(name), without_scales)
        return self.method(name), self.score(name), self.pruner(name), self.fitness(name), *given


def name_of_list(tasks: Sequence[StockTask]) -> str:
    """Returns the folder's name of a list of tasks: their names, and a digest of all that was asked of them."""
    asked = "; ".join(map(str, tasks))
    return f"{'.'.join(task.task for task in tasks)[:LIST_NAME]}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def _learns(method: type[Method]) -> bool:
    return issubclass(method, Search) and method.learns_policy
