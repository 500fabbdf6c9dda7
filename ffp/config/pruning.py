"""What is asked when one model is pruned: sparsity, method, sizes of texts. The defaults stand here alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from pydantic import Field, InstanceOf, ValidationError, field_serializer, field_validator, model_validator

from ffp.allocators import Method, Search, create
from ffp.config.bos import Bos
from ffp.config.faults import first_fault
from ffp.config.grid import (
    GRAM_SCORES,
    CalibrationConfig,
    Compensation,
    EvaluationConfig,
    Pruner,
    SearchConfig,
    is_refitted,
    reads_grams,
    scores_compensated,
)  # fmt: skip
from ffp.config.reading import Seed, Strict, fault_of_share
from ffp.config.recover import NO_RECOVERY, Recover
from ffp.core.errors import ConfigError, check_whole
from ffp.core.problem import Granularity

CONTEXT = 256
TOKENS = 24_576
# The best of our measurements (docs/search.md, docs/baselines.md): with a search, without one, and on single weights.
SEARCHED, UNSEARCHED, SINGLE_WEIGHTS = "fastforward-guided", "ffn-only", "uniform"
START = {"start": "fisher-table"}  # of the search, where no method is named
CALIBRATION = CalibrationConfig(windows=128, context=CONTEXT)
SEARCH = SearchConfig(
    context=CONTEXT, windows=32, selection_windows=8, evaluations=TOKENS // CONTEXT, windows_per_evaluation=1,
    finalists=3, checkpoints=(1.0,),
)  # fmt: skip
EVALUATION = EvaluationConfig(context=2 * CONTEXT, windows=12, documents=100)
SECTIONS: Mapping[str, CalibrationConfig | SearchConfig | EvaluationConfig] = {
    "calibration": CALIBRATION, "search": SEARCH, "evaluation": EVALUATION,
}  # fmt: skip


class PruneSettings(Strict):
    """Everything that decides which parts of a model go, apart from the model and the text."""

    sparsity: float = Field(description="Share of the prunable parameters to remove, in (0, 1).")
    method: InstanceOf[Method] = Field(description="The method with its hyper-parameters.")
    granularity: Granularity = "structured"
    compensate: Compensation = Field("none", description="How what stays makes up for removed units.")
    pruner: Pruner = Field("wanda", description="How single weights are chosen and updated.")
    recover: Recover = Field(NO_RECOVERY, description="How quality is won back by training after structured pruning.")
    seed: Seed = Field(0, description="Seed of a search, and of recovery.")
    bos: Bos = Field("auto", description="Where a BOS stands in the windows of every text; see the model's `bos`.")
    calibration: CalibrationConfig = CALIBRATION
    search: SearchConfig = SEARCH
    evaluation: EvaluationConfig = EVALUATION

    @field_validator("sparsity")
    @classmethod
    def _is_share(cls, sparsity: float) -> float:
        if fault := fault_of_share(sparsity):
            raise ValueError(fault)
        return sparsity

    @property
    def compensated_search(self) -> bool:
        """Whether candidates of the search are compensated as the result will be."""
        return self.search.compensated and is_refitted(self.compensate) and scores_compensated(self.method)

    @property
    def needs_grams(self) -> bool:
        """Whether calibration keeps Gram matrices."""
        needed = reads_grams(self.method) or self.calibration.score in GRAM_SCORES or self.compensated_search
        return self.granularity == "structured" and needed

    @field_serializer("method")
    def _describe(self, method: Method) -> dict[str, Any]:
        return {"use": method.name, "version": method.version, "params": method.model_dump(mode="json")}

    @model_validator(mode="after")
    def _fit(self) -> PruneSettings:
        served = self.method.served
        if self.granularity not in served:
            raise ValueError(f"{self.method.name} serves {', '.join(sorted(served))} pruning only")
        if self.granularity != "structured" and self.compensate != "none":
            raise ValueError("compensation serves structured pruning only; leave it out")
        if self.granularity != "structured" and self.calibration.score != "wanda":
            raise ValueError("a score of heads and channels serves structured pruning only; leave it out")
        if self.search.compensated and isinstance(self.method, Search) and not scores_compensated(self.method):
            name = self.method.name
            raise ValueError(
                f"a compensated search has no effect with {name}, which scores gates on units alone; leave it out"
            )
        if self.search.compensated and not self.compensated_search:
            raise ValueError("a compensated search needs a method that searches, and compensation by ridge")
        if self.granularity != "structured" and self.recover.wanted:
            raise ValueError("recovery serves structured pruning only; leave it out")
        return self


def prune_settings(
    sparsity: float, *, method: str | Method | None = None, params: Mapping[str, Any] | None = None,
    tokens: int | None = None, granularity: str = "structured", compensate: str | None = None,
    units: Collection[str] = (), spell: Callable[[str], str] = str, **others: Any,
) -> PruneSettings:  # fmt: skip
    """Completes what a user asks for by the defaults.

    Args:
        sparsity: Share of the prunable parameters to remove, in (0, 1).
        method: A method or its name. Default: "fastforward-guided" from "fisher-table"; "ffn-only" with `tokens=0`;
            "uniform" on single weights.
        params: Hyper-parameters of a method that is given by name.
        tokens: Tokens that a search may forward. Default: 24,576. Without a method, 0 means that nothing is searched.
        granularity: "structured", "unstructured", "n-of-4" or "n-of-8".
        compensate: "none", "bias", "ridge" or "ridge-dense". Default: "ridge" where units are removed.
        units: Those of "align" and "attention_units" that are asked of the model besides.
        spell: Returns how the caller's user writes an argument.
        **others: Further fields of PruneSettings. What a section's mapping leaves out has the default of `ffp prune`;
            an object of the section's class is taken as it is. Where no method is named and one searches, units are
            removed in the order of `score: obs` and the search is compensated, if the result is by ridge; else in that
            of `score: pairwise`.

    Raises:
        ConfigError: A value is not accepted or would have no effect, or two do not go together; one line with the
            remedy.
    """
    structured = granularity == "structured"
    given = _named(params)
    if given and isinstance(method, Method):
        raise ConfigError(f"params have no effect on a method that is made already. Give them to {method.name} itself.")
    tokens = None if tokens is None else check_whole("tokens", tokens, 0, "Give the tokens of a search, unquoted.")
    compensate = ("ridge" if structured else "none") if compensate is None else compensate
    counted = "evaluations" in _given(others.get("search"))
    others = _completed(others)
    if method is None and structured and tokens != 0:
        method, given = SEARCHED, {**START, **given}
        others |= _second_order(is_refitted(compensate), others)
    elif method is None:
        method = UNSEARCHED if structured else SINGLE_WEIGHTS
    if isinstance(method, str):
        method = create(method, given)
    asked = {"sparsity": sparsity, "method": method, "granularity": granularity, "compensate": compensate}
    try:
        settings = PruneSettings.model_validate({"pruner": "sparsegpt", **asked, **others})
        _check_effects(settings, {*units, *others, *(("tokens",) if tokens else ())}, spell)
    except ValidationError as error:
        raise ConfigError(first_fault(error, PruneSettings)) from error
    if tokens is None or not isinstance(method, Search):
        return settings
    return settings.model_copy(update={"search": _budget(settings.search, method.name, tokens, counted)})


def _named(params: Any) -> dict[str, Any]:
    """Hyper-parameters by name, with Python's own numbers in place of numpy's; ConfigError where they have no names."""
    if params is None:
        return {}
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        shown = " ".join(repr(params).split())[:60]
        raise ConfigError(f"params = {shown} are not hyper-parameters by name. Write them as {{'start': 'uniform'}}.")
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in params.items()}


def _check_effects(settings: PruneSettings, given: Collection[str], spell: Callable[[str], str]) -> None:
    """Refuses what is given and changes nothing with these settings."""
    structured, method, recover = settings.granularity == "structured", settings.method, settings.recover
    only_units = f"on single weights. Take {spell('granularity')} structured"
    idle = [
        ("pruner", structured, f"with structured pruning. Add {spell('granularity')} unstructured"),
        ("align", not structured, only_units),
        ("attention_units", not structured, only_units),
        ("tokens", not isinstance(method, Search),
         f"with {method.name}, which searches nothing. Take a method that searches"),
        ("recover", not recover.wanted and recover != NO_RECOVERY, "with the method none. Take lora"),
    ]  # fmt: skip
    if isinstance(method, Search) and method.learns_policy and getattr(method, "zero_shot", False):
        raise ConfigError(
            f"zero_shot = true of {method.name} has no effect without another search's policy, which only a grid "
            "gives. Leave it out, or name that policy's cell under init of a variant."
        )
    for name, is_idle, reason in idle:
        if name in given and is_idle:
            raise ConfigError(f"{spell(name)} has no effect {reason}, or leave it out.")


def _completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Gives sections that are mappings the default of each key that they leave out.

    Where the length of windows is given and not their number, calibration reads and a search forwards as many tokens as
    by default. What stays unset is decided later: the order of units, and whether a search is compensated.
    """
    found = dict(given)
    for name, default in SECTIONS.items():
        if isinstance(section := given.get(name), Mapping):
            try:
                full = type(default).model_validate({**default.model_dump(exclude_unset=True), **section})
            except ValidationError:
                continue  # PruneSettings says what is wrong
            found[name] = full.model_copy(update=_as_many_tokens(full, section))
    return found


def _given(section: Any) -> Collection[str]:
    """The keys that a section names: a mapping, or an object of the section's class."""
    if isinstance(section, Strict):
        return section.model_fields_set
    return section if isinstance(section, Mapping) else ()


def _as_many_tokens(full: Strict, given: Collection[str]) -> dict[str, int]:
    """How often a section reads a window so that it takes the default's tokens, unless that is given."""
    if isinstance(full, CalibrationConfig) and "windows" not in given:
        return {"windows": max(1, CALIBRATION.windows * CONTEXT // full.context)}
    if isinstance(full, SearchConfig) and "evaluations" not in given:
        return {"evaluations": max(1, TOKENS // (full.windows_per_evaluation * full.context))}
    return {}


def _second_order(ridge: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The order of units and the kind of search that go with the default method, unless they are given."""
    try:
        calibration = CalibrationConfig.model_validate(given.get("calibration", CALIBRATION))
        search = SearchConfig.model_validate(given.get("search", SEARCH))
    except ValidationError:
        return {}  # PruneSettings says what is wrong
    compensated = search.compensated if "compensated" in search.model_fields_set else ridge
    order = {} if "score" in calibration.model_fields_set else {"score": "obs" if compensated else "pairwise"}
    return {
        "calibration": calibration.model_copy(update=order),
        "search": search.model_copy(update={"compensated": compensated}),
    }


def _budget(search: SearchConfig, method: str, tokens: int, counted: bool) -> SearchConfig:
    """The search with so many tokens; counted: whether evaluations are given too."""
    each = search.windows_per_evaluation * search.context
    if tokens < each:
        raise ConfigError(
            f"tokens = {tokens} pays for no evaluation of {each} tokens by {method}. Give more, or take a method "
            f"without a search, such as {UNSEARCHED}."
        )
    if counted:
        raise ConfigError("tokens and search.evaluations both say what a search may spend. Give one.")
    return search.model_copy(update={"evaluations": tokens // each})
