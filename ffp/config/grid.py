"""A grid file: which cells there are, and what every step of them is given."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from ffp.allocators.base import Method, Search, SearchBudget
from ffp.config.assets import StockTask
from ffp.config.reading import (
    Context,
    Count,
    KeepBlocks,
    Name,
    Seed,
    Strict,
    Title,
    WorkflowPath,
    entry_name,
    is_none,
    like,
    percent,
)
from ffp.config.recover import GridRecover, GridRecoverSettings, Recover
from ffp.core.problem import AttentionUnits, Granularity

UnitScore = Literal["wanda", "wifv", "ifv", "pairwise", "obs"]
GRAM_SCORES = ("pairwise", "obs")  # scores that need Gram matrices of the calibration text
Pruner = Literal["wanda", "wanda-dense", "magnitude", "sparsegpt"]
Compensation = Literal["none", "bias", "ridge", "ridge-dense"]
ModelName = Annotated[Name, entry_name("models")]
TextName = Annotated[Name, entry_name("texts")]
Tasks = Annotated[
    Annotated[Name, entry_name("tasks"), Tag("file")]
    | Annotated[tuple[StockTask, ...], Field(min_length=1), Tag("list")],
    Discriminator(
        lambda value: {str: "file", list: "list", tuple: "list"}.get(type(value)),
        custom_error_type="not_tasks",
        custom_error_message="the name of a file in config/tasks/ or a list of lm-eval's tasks is wanted, such as "
        "[arc_easy, {task: mmlu, num_fewshot: 5}]",
    ),
]
Share = Annotated[float, Field(gt=0, le=1)]


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the values; ValueError if one stands there twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"{list(values)} names something twice")
    return values


def is_refitted(compensation: object) -> bool:
    """Returns whether a compensation solves for all weights of the output projections anew."""
    return compensation in ("ridge", "ridge-dense")


def scores_compensated(method: Method) -> bool:
    """Returns whether a method, with its parameters, measures candidates that can be compensated."""
    return isinstance(method, Search) and method.scores_compensated


def reads_grams(method: Method) -> bool:
    """Returns whether a method, with its parameters, asks for the costs of removals, which need Gram matrices."""
    return isinstance(method, Search) and method.needs_grams


class CalibrationConfig(Strict):
    """The one pass of the dense model over the calibration text."""

    windows: Count = Field(128, description="Number of token windows (llm-compressor: num_calibration_samples).")
    context: Context = Field(2048, description="Tokens in a window (llm-compressor: max_seq_length).")
    score: UnitScore = Field(
        "wanda",
        description="Score by which KV groups and FFN channels are removed, lowest first; pairwise and obs keep Gram "
        "matrices of the calibration text.",
    )


class SearchConfig(Strict):
    """The budget of every search, and the texts behind its reward.

    A search may forward evaluations x windows_per_evaluation x context tokens, whatever its method.
    """

    context: Context = Field(2048, description="Tokens in a window (llm-compressor: max_seq_length).")
    windows: Count = Field(32, description="Windows of the search text, from which each evaluation draws.")
    selection_windows: Count = Field(16, description="Windows of the selection text, on which finalists are scored.")
    evaluations: Count = Field(1000, description="Candidates that a search may evaluate at full fidelity.")
    windows_per_evaluation: Count = Field(
        4, validate_default=True, description="Windows of one evaluation at full fidelity, at most `windows`."
    )
    finalists: Count = Field(4, description="Candidates that are scored on the selection text at the end.")
    compensated: bool = Field(
        False,
        description="Whether candidates of a search are compensated, where its cell will be by ridge: on the dense "
        "model's statistics, in one product a module.",
    )
    checkpoints: tuple[Share, ...] = Field(
        (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0),
        min_length=1,
        description="Shares of the budget, ascending. What the search would have answered after each is scored on the "
        "selection text once it has ended, for the figure of quality over cost.",
    )

    @field_validator("windows_per_evaluation")
    @classmethod
    def _draws_from_enough(cls, count: int, info: ValidationInfo) -> int:
        if count > (windows := info.data.get("windows", count)):
            raise ValueError(f"more than the {windows} of search.windows. Lower the first or raise the second")
        return count

    @field_validator("checkpoints")
    @classmethod
    def _ascend(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if sorted(set(shares)) != list(shares):
            raise ValueError("shares of the budget must ascend, each named once")
        return shares

    def budget(self) -> SearchBudget:
        """Returns the budget as a method sees it."""
        return SearchBudget(self.evaluations, self.windows_per_evaluation, self.finalists)


class EvaluationConfig(Strict):
    """What every cell is scored on."""

    context: Context = Field(2048, description="Tokens in a window of the test text (lm-eval: max_length).")
    windows: int = Field(0, ge=0, description="Windows of the test text; 0 for all.")
    documents: int = Field(0, ge=0, description="Documents of each task, drawn at random; 0 for all (lm-eval: limit).")
    seed: Seed = Field(0, description="Seed of that draw.")
    chat_template: bool = Field(
        False,
        exclude_if=operator.not_,
        description="Ask tasks as a chat, by the template of the model's tokenizer (lm-eval: apply_chat_template).",
    )
    system_prompt: str = Field(
        "", exclude_if=operator.not_, description="What comes before each prompt (lm-eval: system_instruction)."
    )
    fewshot_as_multiturn: bool = Field(
        True,
        exclude_if=operator.truth,
        description="With a chat template, give each solved example as a turn of its own.",
    )

    def of_tasks(self) -> dict[str, Any]:
        """Returns how tasks are asked, by the names of score_tasks."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in ("context", "windows")}


class InitConfig(Strict):
    """The cell whose policy a search starts from; its method and seed are the search's own."""

    sparsity: Annotated[str, like(r"^s0\.\d\d$", "not a sparsity of a cell, such as s0.20")] = Field(
        alias="from", description="Sparsity of that cell, e.g. s0.20."
    )
    model: ModelName | None = Field(
        None, description="Model of that cell, with as many decisions as this one; the same model without it."
    )


class MethodConfig(Strict):
    """A variant: a registered method with other hyper-parameters, or another way to prune."""

    hint = "Hyper-parameters of the method belong under params."

    use: str | None = Field(None, description="The registered method; the variant's own name without it.")
    params: Mapping[str, Any] = Field(default_factory=dict, description="Hyper-parameters of the method.")
    init: InitConfig | None = Field(None, description="Where a method that learns a policy starts from.")
    score: UnitScore | None = Field(
        None, description="Score by which KV groups and FFN channels are removed; calibration.score without it."
    )
    compensate: Compensation = Field(
        "none", description="How what stays makes up for removed units: by a bias, or by new weights (least squares)."
    )
    pruner: Pruner | None = Field(
        None, description="How single weights are chosen and updated; the grid's pruner without it."
    )
    fitness: Literal["ppl", "kl"] = Field(
        "ppl", description="What a search minimises: perplexity, or the KL divergence from the dense model."
    )
    compensated: bool | None = Field(
        None, description="Whether candidates of the search are compensated; search.compensated without it."
    )
    recover: Recover | None = Field(
        None, description="How quality is won back by training after structured pruning; the grid's recover without it."
    )
    keep_blocks: KeepBlocks | None = Field(None, description="Blocks that lose nothing; the model's without it.")
    attention_units: AttentionUnits | None = Field(
        None, description="What is removed of an attention; the model's attention_units without it."
    )

    @model_validator(mode="after")
    def _fits(self) -> MethodConfig:
        if self.compensated and not is_refitted(self.compensate):
            raise ValueError("compensated: true needs compensate: ridge or ridge-dense")
        return self

    @property
    def units(self) -> dict[str, Any]:
        """What the variant changes in a model's configuration."""
        return self.model_dump(include={"keep_blocks", "attention_units"}, exclude_none=True)


class TextsConfig(Strict):
    """The texts of a grid that is tested on several, or on another one than it is calibrated on."""

    calibrate: TextName = Field(
        description="Text whose calibration, search and selection splits methods are fitted to: a file in texts/."
    )
    test: tuple[TextName, ...] = Field(
        min_length=1,
        description="Texts on whose test splits every cell is scored: files in texts/. Rankings, ablations and figures "
        "are of the first one.",
    )

    _distinct = field_validator("test")(distinct)


class GridConfig(Strict):
    """A grid: config/grids/NAME.yaml. It names models, texts and tasks of the configuration folder."""

    title: Title = Field(description="Title of the report.")
    models: tuple[ModelName, ...] = Field(min_length=1, description="Models: names of files in models/.")
    text: TextName | None = Field(
        None,
        exclude_if=is_none,
        description="Text: name of a file in texts/. Short for texts: {calibrate: NAME, test: [NAME]}.",
    )
    texts: TextsConfig | None = Field(
        None,
        exclude_if=is_none,
        description="Several test texts, or another one than that of the calibration; instead of text.",
    )
    tasks: Tasks | None = Field(
        None,
        description="Tasks: name of a file in tasks/, or a list of tasks and groups that lm-eval ships, e.g. "
        "[arc_easy, {task: mmlu, num_fewshot: 5}]; no task is scored without it.",
    )
    granularities: tuple[Granularity, ...] = Field(
        ("structured",),
        min_length=1,
        description="What is removed: KV groups and FFN channels (structured), single weights (unstructured), or "
        "single weights in N:M patterns (n-of-4, n-of-8).",
    )
    sparsities: tuple[float, ...] = Field(
        min_length=1, description="Shares of the prunable parameters to remove, in (0, 1), with two decimals."
    )
    own_sparsities: Mapping[Granularity, Annotated[tuple[float, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="Granularities that take other sparsities."
    )
    pruner: Pruner = Field("wanda", description="How single weights are chosen and updated.")
    methods: tuple[Name, ...] = Field(min_length=1, description="Methods: registered names, or names in `variants`.")
    seeds: tuple[Seed, ...] = Field(
        (0,), min_length=1, description="Seeds of every search; methods that draw nothing run with the first one only."
    )
    variants: Mapping[Name, MethodConfig] = Field(
        default_factory=dict, description="Methods with settings of their own, by the names that `methods` uses."
    )
    recover: GridRecover = Field(
        GridRecoverSettings(method="none"),
        description="How quality is won back by training after structured pruning, for methods without own settings.",
    )
    calibration: CalibrationConfig = CalibrationConfig()
    search: SearchConfig = SearchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    data: WorkflowPath = Field("data", description="Folder for models, texts, tasks and calibration.")
    results: WorkflowPath = Field("results", description="Folder for cells and the report.")

    @field_validator("sparsities", "own_sparsities")
    @classmethod
    def _two_decimals(cls, sparsities: Any) -> Any:
        """Cells are named by two decimals: what differs in the last bits, as 0.1 + 0.2 does, is the same sparsity."""
        if isinstance(sparsities, Mapping):
            return {name: distinct(cls._two_decimals(values)) for name, values in sparsities.items()}
        for value in sparsities:
            if not 0 < round(value, 9) < 1:
                raise ValueError(
                    f"{value} is outside (0, 1); the dense model is always part of the grid{percent(value)}"
                )
            if abs(value * 100 - round(value * 100)) > 1e-9:
                raise ValueError(f"{value} has more than the two decimals of a cell's path")
        return tuple(round(value, 2) for value in sparsities)

    _distinct = field_validator("models", "methods", "seeds", "sparsities", "granularities")(distinct)

    @model_validator(mode="after")
    def _names_a_text(self) -> GridConfig:
        if (self.text is None) == (self.texts is None):
            raise ValueError("give either text: NAME or texts: {calibrate: NAME, test: [NAME, ...]}")
        return self

    @field_validator("tasks")
    @classmethod
    def _distinct_tasks(cls, tasks: Any) -> Any:
        if isinstance(tasks, tuple):
            distinct(tuple(item.task for item in tasks))
        return tasks

    @field_validator("recover")
    @classmethod
    def _trains_dense(cls, recover: GridRecoverSettings) -> GridRecoverSettings:
        if recover.dense and recover.loss == "kl":
            raise ValueError("dense: true has nothing to learn with loss: kl, where the dense model is its own teacher")
        return recover

    @property
    def calibration_text(self) -> str:
        """Name of the text that methods are calibrated, searched and selected on."""
        return self.texts.calibrate if self.texts else str(self.text)

    @property
    def test_texts(self) -> tuple[str, ...]:
        """Names of the texts that cells are scored on; rankings and figures are of the first one."""
        return self.texts.test if self.texts else (str(self.text),)

    @property
    def all_texts(self) -> tuple[str, ...]:
        """Names of all texts, that of the calibration first."""
        return tuple(dict.fromkeys([self.calibration_text, *self.test_texts]))

    def sparsities_of(self, granularity: str) -> tuple[float, ...]:
        """Returns the sparsities of a granularity's cells."""
        return {str(name): own for name, own in self.own_sparsities.items()}.get(granularity, self.sparsities)

    @property
    def all_sparsities(self) -> tuple[float, ...]:
        """Sparsities of any granularity, ascending."""
        return tuple(sorted({s for granularity in self.granularities for s in self.sparsities_of(granularity)}))
