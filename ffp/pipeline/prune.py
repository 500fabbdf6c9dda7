"""The front door: prunes one model in memory, with defaults for everything but the sparsity.

It calls the functions of ffp/api.py that the workflow's steps call, so that a model pruned here and a grid's cell with
the same settings, text and threads have equal allocations and equal weights.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ffp import api
from ffp.allocators.base import Method
from ffp.config.pruning import PruneSettings, prune_settings
from ffp.config.recover import RecoverSettings
from ffp.core.errors import ConfigError, check_whole
from ffp.core.problem import AttentionUnits
from ffp.core.suggest import did_you_mean
from ffp.measure.bos import place_bos
from ffp.measure.recovery import Recovery, check_trainable
from ffp.models.formats import DenseShape
from ffp.models.placement import for_inference
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import check_context, check_problem, check_token_ids
from ffp.pipeline.memory_plan import takes_gradients
from ffp.pipeline.phases import Phases, phase_tokens
from ffp.pipeline.result import Measures, Pruned, weight_bytes
from ffp.pipeline.texts import AnyText, SplitText, cut_recovery_windows, cut_test_windows, cut_windows, open_text
from ffp.pipeline.work import Work
from ffp.pruning.cuts import make_cut
from ffp.store.layout import default_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, sparsity: float, method: str | Method | None = None,
    compensate: str | None = None, text: AnyText | None = None, tokens: int | None = None, in_place: bool = True,
    granularity: str = "structured", params: Mapping[str, Any] | None = None, align: int = 1, min_keep: int = 1,
    keep_blocks: str = "", attention_units: AttentionUnits = "kv-groups", dense_shape: bool = False,
    seed: int = 0, evaluate: bool = True, speed: bool = False, batch_tokens: int = api.BATCH_TOKENS, **settings: Any,
) -> Pruned:  # fmt: skip
    """Prunes a model: chooses how much of each module goes, cuts it, and makes up for what is gone.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        sparsity: Share of the parameters of all attention and FFN modules to remove, in (0, 1).
        method: What chooses the share of each module: a name of `ffp.list_methods()`, or a method of your own. Default:
            "fastforward-guided" from "fisher-table"; "ffn-only" with `tokens=0`; "uniform" on single weights.
        compensate: What makes up for removed units: "none", "bias", "ridge" (the default) or "ridge-dense".
        text: Documents as strings, files (pathlib.Path), a name of config/texts, or lists of documents by part.
        tokens: Tokens that a search may forward. Default: 24,576.
        seed: Of the search.
        granularity: "structured" (heads and channels leave), or zeros: "unstructured", "n-of-4" or "n-of-8".
        params: Hyper-parameters of a method that is given by name.
        align: Keep FFN channels in multiples of this.
        min_keep: Units that every module keeps at least.
        keep_blocks: Blocks that stay whole, e.g. "0-3,-2:".
        attention_units: "kv-groups", "query-heads" or "single-query-heads"; see ffp.models.prunable.PrunableModel.
        dense_shape: Write zeros in the dense shapes instead of smaller weights.
        in_place: Cut `model` itself; False cuts a copy.
        evaluate: Measure perplexity on the test text before and after.
        speed: Time a prompt and generation, which takes the memory of both models.
        batch_tokens: Tokens in one forward; lower it to save memory.
        **settings: Further fields of ffp.config.pruning.PruneSettings, e.g. `bos="never"` or `recover="lora"`.

    Returns:
        The model, its allocation and figures; `.save(folder)` writes a checkpoint, `.summary()` is a table.

    Raises:
        FfpError: Something that is asked for cannot be done; one line with the remedy.
    """
    _check_call(prune, model, tokenizer, batch_tokens, settings)
    settings |= {"granularity": granularity, "compensate": compensate, "seed": seed, "params": params, "tokens": tokens}
    units: Any = {"min_keep": min_keep, "keep_blocks": keep_blocks, "attention_units": attention_units}
    asked = prune_settings(sparsity, method=method, units=_given_units(align, attention_units), **settings)
    dense = copy.deepcopy(model).eval() if in_place and speed else model
    with for_inference(model if in_place else copy.deepcopy(model)) as target:
        prunable = PrunableModel(target, align=align, **units)
        cut = cut_text(prunable, tokenizer, open_text(text, data=default_data()), asked, evaluate=evaluate)
        pruned = run(prunable, tokenizer, cut, asked, batch_tokens, dense_shape=dense_shape)
        if speed:
            pruned.time_against(lambda: dense)
        return pruned


def allocate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, sparsity: float, method: str | Method | None = None,
    text: AnyText | None = None, tokens: int | None = None, seed: int = 0, granularity: str = "structured",
    params: Mapping[str, Any] | None = None, align: int = 1, min_keep: int = 1, keep_blocks: str = "",
    attention_units: AttentionUnits = "kv-groups", batch_tokens: int = api.BATCH_TOKENS, **settings: Any,
) -> api.AllocationResult:  # fmt: skip
    """Chooses how much of each module stays, and leaves the model as it is.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        sparsity: Share of the parameters of all attention and FFN modules to remove, in (0, 1).
        method: A name of `ffp.list_methods()` or a method of your own; see `prune` for the default.
        text: See `prune`.
        tokens: Tokens that a search may forward. Default: 24,576.
        seed: Of the search.
        granularity: "structured", "unstructured", "n-of-4" or "n-of-8".
        params: Hyper-parameters of a method that is given by name.
        align: Keep FFN channels in multiples of this.
        min_keep: Units that every module keeps at least.
        keep_blocks: Blocks that stay whole, e.g. "0-3,-2:".
        attention_units: "kv-groups", "query-heads" or "single-query-heads"; see ffp.models.prunable.PrunableModel.
        batch_tokens: Tokens in one forward; lower it to save memory.
        **settings: Further fields of ffp.config.pruning.PruneSettings.

    Returns:
        `.keep` has the kept units by decision; `.trace` a row for each evaluation of a search.

    Raises:
        ConfigError: A value is not accepted, or the text is too short; one line with the remedy.
        BudgetError: The sparsity cannot be met.
    """
    _check_call(allocate, model, tokenizer, batch_tokens, settings)
    asked = prune_settings(
        sparsity, method=method, params=params, tokens=tokens, granularity=granularity, seed=seed,
        units=_given_units(align, attention_units), **settings,
    )  # fmt: skip
    opened = open_text(text, data=default_data())
    with for_inference(model):
        prunable = PrunableModel(
            model, min_keep=min_keep, align=align, keep_blocks=keep_blocks, attention_units=attention_units
        )
        windows = cut_text(prunable, tokenizer, opened, asked, evaluate=False).fitted
        _check_method(prunable, asked)
        calibration = api.calibrate(prunable, windows, batch_tokens=batch_tokens, grams=asked.needs_grams)
        return _allocate(prunable, calibration, asked, batch_tokens, Work(None))


def run(
    prunable: PrunableModel, tokenizer: Any, text: CutText, settings: PruneSettings, batch_tokens: int, *,
    dense_shape: bool = False, work: Work | None = None, score: Callable[[Any], dict[str, Any]] | None = None,
) -> Pruned:  # fmt: skip
    """Prunes a dense model in place, and returns what `prune` returns.

    Args:
        prunable: The dense model.
        tokenizer: Its tokenizer.
        text: What to calibrate, search and test on.
        settings: What is asked.
        batch_tokens: Tokens in one forward; at least one window.
        dense_shape: Write zeros in the dense shapes.
        work: Keeps what is finished, so that a killed run goes on where it was.
        score: Scores a model on tasks; None for no tasks.
    """
    work = work or Work(None)
    _check_method(prunable, settings)
    _check_biases(prunable, settings, dense_shape)
    windows, test, training = text.fitted, text.test, text.training
    phases = Phases(phase_tokens(windows, test, settings, tasks=score is not None))
    measuring = _Measuring(phases, work, test, place_bos(tokenizer, settings.bos), batch_tokens, score)
    calibration = phases.run(
        "calibrate",
        lambda: work.calibration(
            prunable, lambda: api.calibrate(prunable, windows, batch_tokens=batch_tokens, grams=settings.needs_grams)
        ),
    )
    dense = measuring.measure("dense", prunable.model)
    found = phases.run("allocate", lambda: _allocate(prunable, calibration, settings, batch_tokens, work))
    recovery, before = None, None
    if training is None:
        removed = phases.run(
            "prune", lambda: _cut(prunable, calibration, found, settings, batch_tokens, dense_shape)[1]
        )
    else:
        removed, recovery, before = _cut_and_train(
            prunable, calibration, found, settings, training, measuring, dense_shape
        )
    return Pruned(
        prunable, tokenizer, settings, found, removed, text=text.title,
        calibration_windows=len(windows.calibration), dense=dense,
        pruned=measuring.measure("pruned" if recovery is None else "recovered", prunable.model),
        seconds=phases.seconds, dense_shape=dense_shape or settings.granularity != "structured",
        recovery=recovery, before=before,
    )  # fmt: skip


def _given_units(align: int, attention_units: str) -> list[str]:
    """What is asked of the units beyond the defaults."""
    asked = {"align": align != 1, "attention_units": attention_units != "kv-groups"}
    return [name for name, given in asked.items() if given]


def _check_call(
    function: Callable[..., Any], model: Any, tokenizer: Any, batch_tokens: int, settings: Iterable[str]
) -> None:
    """Raises ConfigError for what is no model, tokenizer or number of tokens, and for an unknown argument."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ConfigError(
            f"the model is a {type(model).__name__}, not a causal language model. Load one by "
            "transformers.AutoModelForCausalLM.from_pretrained, or name it to the command `ffp prune`."
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise ConfigError(
            "the model has weights on torch's meta device, which are not in memory. Load it by "
            "AutoModelForCausalLM.from_pretrained, without a device_map that leaves weights on the disk."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"the tokenizer is a {type(tokenizer).__name__}. Load the model's own by "
            "transformers.AutoTokenizer.from_pretrained."
        )
    check_whole("batch_tokens", batch_tokens, 1, f"Give the tokens of one forward, e.g. {api.BATCH_TOKENS}.")
    own = [each.name for each in inspect.signature(function).parameters.values() if each.kind != each.VAR_KEYWORD]
    known = {*own, *PruneSettings.model_fields}
    for name in settings:
        if name not in known:
            raise ConfigError(f"unknown argument {name!r} of {function.__name__}: {did_you_mean(name, known)}")


def _check_method(prunable: PrunableModel, settings: PruneSettings) -> None:
    """Raises for a sparsity that cannot be met, and where the caller's context records no gradients that are needed."""
    check_problem(settings.method, prunable.problem(settings.sparsity, settings.granularity))
    if torch.is_inference_mode_enabled() and (takes_gradients(settings.method) or settings.recover.wanted):
        needed = "recovery" if settings.recover.wanted else settings.method.name
        raise ConfigError(
            f"{needed} needs gradients, which torch.inference_mode() does not record. Prune outside it; "
            "torch.no_grad() is no obstacle."
        )


def _check_biases(prunable: PrunableModel, settings: PruneSettings, dense_shape: bool) -> None:
    """Raises ConfigError where compensation would add biases to dense shapes that have none."""
    if dense_shape and settings.compensate == "bias" and not DenseShape().takes_biases(prunable):
        raise ConfigError(
            f"compensate = 'bias' adds biases, which the dense shapes of a {prunable.config.model_type} model have no "
            "place for. Compensate by ridge, or leave out dense_shape."
        )


@dataclass(frozen=True)
class _Measuring:
    """Measures models on the test text and on tasks, each as a part of the run."""

    phases: Phases
    work: Work
    test: torch.Tensor | None
    bos: str
    batch_tokens: int
    score: Callable[[Any], dict[str, Any]] | None

    def perplexity(self, name: str, model: Any) -> Mapping[str, Any] | None:
        """Perplexity of a model; None where it is not asked for."""
        if (test := self.test) is None:
            return None

        def compute() -> dict[str, Any]:
            return {**api.evaluate(model, test, batch_tokens=self.batch_tokens), "bos": self.bos}

        return self.phases.run(f"evaluate the {name} model", lambda: self.work.perplexity(name, compute))

    def measure(self, name: str, model: Any) -> Measures:
        """All figures of a model but its speed."""
        found = Measures(bytes=weight_bytes(model), ppl=self.perplexity(name, model))
        if (score := self.score) is not None:
            found.tasks = self.phases.run(f"score the {name} model on tasks", lambda: score(model))
        return found


def _cut_and_train(
    prunable: PrunableModel, calibration: api.Calibration, found: api.AllocationResult, settings: PruneSettings,
    windows: torch.Tensor, measuring: _Measuring, dense_shape: bool,
) -> tuple[api.PruningSummary, Recovery, Mapping[str, Any] | None]:  # fmt: skip
    """Prunes a model in place and trains it; returns how much left, the training, and the perplexity before it."""
    phases, batch = measuring.phases, measuring.batch_tokens
    target, teacher = _copies(prunable, settings.recover, dense_shape=dense_shape)
    masks, removed = phases.run("prune", lambda: _cut(prunable, calibration, found, settings, batch, False, target))
    before = measuring.perplexity("pruned", target.model)
    recovery = phases.run(
        "recover",
        lambda: api.recover(
            target, windows, settings.recover, seed=settings.seed, batch_tokens=batch, teacher=teacher,
            state=measuring.work.training,
        ),
    )  # fmt: skip
    if target is not prunable:
        masks = api.Masks(masks.kept, {**masks.updates, **recovery.updates})
        removed = api.install(prunable, found.problem, masks, _cut_of(settings), dense_shape=True)
    return removed, recovery, before


def _copies(prunable: PrunableModel, recover: RecoverSettings, *, dense_shape: bool) -> tuple[PrunableModel, Any]:
    """Returns the model that is cut and trained, and the dense model where the loss needs one.

    Zeros in the dense shapes are written at the end, into the model itself: a copy is cut and trained, since training
    would fill the zeros.
    """
    if not dense_shape:
        return prunable, copy.deepcopy(prunable.model) if recover.loss == "kl" else None
    return copy.deepcopy(prunable), prunable.model if recover.loss == "kl" else None


@dataclass(frozen=True)
class CutText:
    """A text as a model reads it, checked against the model.

    Attributes:
        title: Of the text.
        fitted: Windows that methods are fitted to.
        test: Windows of the test text; None where perplexity is not measured.
        training: Windows that recovery trains on; None where nothing is trained.
    """

    title: str
    fitted: api.Windows
    test: torch.Tensor | None
    training: torch.Tensor | None

    def windows(self) -> dict[str, torch.Tensor]:
        """Returns all windows that are needed, by what they are for."""
        others = {"test": self.test, "recovery": self.training}
        return dict(self.fitted.items()) | {name: ids for name, ids in others.items() if ids is not None}


def cut_text(
    prunable: PrunableModel, tokenizer: Any, text: SplitText, settings: PruneSettings, *, evaluate: bool
) -> CutText:
    """Returns the windows of all parts of a text that are needed, checked against the model.

    Args:
        prunable: The model, with or without weights.
        tokenizer: Its tokenizer.
        text: The text.
        settings: What is asked.
        evaluate: Cut the test text too.

    Raises:
        FfpError: A text is too short, the model lacks a position or an embedding, or it cannot be trained.
    """
    if settings.recover.wanted:
        check_trainable(prunable)
    found = CutText(
        title=text.title,
        fitted=cut_windows(tokenizer, text, settings),
        test=cut_test_windows(tokenizer, text, settings) if evaluate else None,
        training=cut_recovery_windows(tokenizer, text, settings),
    )
    sizes = {f"the context of the {name} text": ids.shape[1] for name, ids in found.windows().items()}
    check_context(prunable.config, sizes)
    check_token_ids(found.windows(), prunable.model)
    return found


def _cut_of(settings: PruneSettings) -> Any:
    return make_cut(
        settings.granularity, score=settings.calibration.score, compensation=settings.compensate,
        pruner=settings.pruner, compensated_search=settings.compensated_search,
    )  # fmt: skip


def _allocate(
    prunable: PrunableModel, calibration: api.Calibration, settings: PruneSettings, batch_tokens: int, work: Work
) -> api.AllocationResult:
    search = settings.search
    return api.allocate(
        prunable, calibration, settings.method, sparsity=settings.sparsity, cut=_cut_of(settings),
        granularity=settings.granularity, budget=search.budget(), seed=settings.seed,
        checkpoints=search.checkpoints, batch_tokens=batch_tokens, journal=work.journal,
    )  # fmt: skip


def _cut(
    prunable: PrunableModel, calibration: api.Calibration, found: api.AllocationResult, settings: PruneSettings,
    batch_tokens: int, dense_shape: bool, target: PrunableModel | None = None,
) -> tuple[api.Masks, api.PruningSummary]:  # fmt: skip
    """Prunes the model, or its copy `target`."""
    cut = _cut_of(settings)
    masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut, batch_tokens=batch_tokens)
    return masks, api.install(target or prunable, found.problem, masks, cut, dense_shape=dense_shape)
