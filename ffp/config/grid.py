"""A grid file: which cells there are, and what every step of them is given."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from ffp.allocators.base import SearchBudget
from ffp.config.reading import Count, Name, Strict

Granularity = Literal["structured", "unstructured", "n-of-4", "n-of-8"]
UnitScore = Literal["wanda", "wifv", "ifv"]
Pruner = Literal["wanda", "wanda-dense", "magnitude", "sparsegpt"]


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


class InitConfig(Strict):
    """Where a search takes its first policy from: the same method's and seed's cell at sparsity `from`, e.g. "s0.20".

    model: another model of the grid with the same number of decisions (transfer); its own without it.
    """

    sparsity: Annotated[str, StringConstraints(pattern=r"^s0\.\d\d$")] = Field(alias="from")
    model: Name | None = None


class MethodConfig(BaseModel):
    """A named variant. use: the registered method; keys that are none of these are its parameters.

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
    """A grid file, e.g. config/grids/demo.yaml.

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
