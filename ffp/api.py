"""Prunes and evaluates models in memory, step by step: what the command line, the workflow and experiments call.

Models, tensors and settings go in, results come out; no path, no provenance, no log set-up. In order:

    prunable = PrunableModel(model)
    calibration = calibrate(prunable, windows)
    found = allocate(prunable, calibration, create("owl", {}), sparsity=0.3, cut=cut)
    masks = make_masks(prunable, calibration, found.problem, found.allocation, cut)
    summary = install(prunable, found.problem, masks, cut)      # `model` is smaller now
    recovery = recover(prunable, more_windows, RecoverSettings(tokens=65536))   # optional, trains what is left
    scores = evaluate(model, test_windows)

`ffp.prune` and `ffp.allocate` (ffp/pipeline/prune.py) call them with a tokenizer, a text and defaults.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffp.allocators.base import Heuristic, Method, Search, SearchBudget
from ffp.allocators.shortage import shortage
from ffp.allocators.tracker import Tracker
from ffp.config.reading import fault_of_share
from ffp.config.recover import RecoverSettings
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.measure.calibration import check_finite, collect
from ffp.measure.cost import CostMeter
from ffp.measure.journal import Journal
from ffp.measure.loss import window_losses
from ffp.measure.perplexity import perplexity
from ffp.measure.recovery import Recovery, TrainingState
from ffp.measure.recovery import recover as train
from ffp.measure.reward import ModelReward
from ffp.measure.text import Text
from ffp.models.formats.transformers import let_save
from ffp.models.placement import for_inference
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import Arrays, Candidates, Cut
from ffp.pruning.statistics import ModelStatistics
from ffp.store.schemas import Answer

log = logging.getLogger("ffp")
Policy = Mapping[str, npt.NDArray[Any]]
BATCH_TOKENS = 4096  # tokens in one forward, unless the caller says otherwise


@dataclass(frozen=True)
class Windows:
    """Token windows of three texts that share no document, each (n, context) int64.

    Attributes:
        calibration: What statistics and compensation are taken from.
        search: What candidates of a search are rewarded on; a heuristic needs none.
        selection: What chooses among the finalists of a search; a heuristic needs none.
    """

    calibration: torch.Tensor
    search: torch.Tensor | None = None
    selection: torch.Tensor | None = None

    def items(self) -> list[tuple[str, torch.Tensor]]:
        """Returns (name, windows) of each text that is there."""
        texts = {"calibration": self.calibration, "search": self.search, "selection": self.selection}
        return [(name, ids) for name, ids in texts.items() if ids is not None]


@dataclass(frozen=True)
class Calibration:
    """What every method can know of a dense model, from one pass over its texts.

    Attributes:
        windows: The texts.
        dense_loss: The dense model's mean loss on each window, nats per token, under "search" and "selection" where
            these texts are there.
        statistics: Moments of every linear's input and the influence of the blocks.
    """

    windows: Windows
    dense_loss: Mapping[str, FloatArray]
    statistics: ModelStatistics


@dataclass(frozen=True)
class AllocationResult:
    """A method's answer and what led to it.

    Attributes:
        problem: What was asked.
        allocation: The answer.
        cost: Work and seconds of the search.
        trace: A row for each evaluation of a search; see tracker.TRACE_COLUMNS.
        policy: Arrays of a learned policy; empty where none is learned.
        answers: The search's answers at the checkpoints; empty for heuristics.
    """

    problem: PruningProblem
    allocation: Allocation
    cost: CostMeter
    trace: Sequence[Mapping[str, Any]] = ()
    policy: Policy = field(default_factory=dict)
    answers: Sequence[Answer] = ()

    @property
    def keep(self) -> dict[str, int]:
        """Kept units by the name of the decision."""
        return {decision.name: keep for decision, keep in self.allocation.items(self.problem)}


@dataclass(frozen=True)
class Masks:
    """What stays of a model.

    Attributes:
        kept: structured: for each decision, indices of the kept units, int32. Single weights: for each weight matrix by
            parameter name, one bit per entry, 1 = kept, packed as uint8.
        updates: New values of kept weights and added biases by parameter name, float32; empty where nothing changed.
    """

    kept: Arrays
    updates: Arrays


@dataclass(frozen=True)
class PruningSummary:
    """How much was removed.

    Attributes:
        block_sparsity: Removed share of the decisions' parameters.
        dense_params: Parameters of the model before.
        kept_params: Parameters left. Biases added by compensation count; zeroed single weights do not.
    """

    block_sparsity: float
    dense_params: int
    kept_params: int

    @property
    def model_sparsity(self) -> float:
        """Removed share of all parameters."""
        return 1 - self.kept_params / self.dense_params

    def as_dict(self) -> dict[str, Any]:
        """Returns `block_sparsity`, `model_sparsity` and `params`, as files have them."""
        params = {"dense": self.dense_params, "kept": self.kept_params}
        return {"block_sparsity": self.block_sparsity, "model_sparsity": self.model_sparsity, "params": params}


def calibrate(
    prunable: PrunableModel, windows: Windows, *, batch_tokens: int = BATCH_TOKENS, grams: bool = False
) -> Calibration:
    """Collects statistics of a dense model on its calibration text, and its losses on the other two.

    Args:
        prunable: The dense model.
        windows: Token windows of the texts.
        batch_tokens: Tokens in one forward; at least one window.
        grams: Whether to keep the Gram matrices that orders of ORDERS, compensated searches and `fisher-table` need.

    Raises:
        ConfigError: The model's numbers overflow.
    """
    dtype, losses = next(prunable.model.parameters()).dtype, dict[str, FloatArray]()
    with for_inference(prunable.model):
        statistics = collect(prunable, windows.calibration, batch_tokens=batch_tokens, grams=grams)
        check_finite(statistics.to_arrays(), dtype)
        for name, ids in windows.items()[1:]:
            log.info("calibrate: dense loss of the %s text", name)
            losses[name] = window_losses(prunable.model, ids, batch_tokens=batch_tokens).numpy()
            check_finite({f"loss on the {name} text": losses[name]}, dtype)
    return Calibration(windows, losses, statistics)


def allocate(
    prunable: PrunableModel, calibration: Calibration, method: Method, *, sparsity: float, cut: Cut,
    granularity: str = "structured", budget: SearchBudget | None = None, seed: int = 0, fitness: str = "ppl",
    checkpoints: Sequence[float] = (), batch_tokens: int = BATCH_TOKENS, journal: Journal | None = None,
    initial_policy: Policy | None = None,
) -> AllocationResult:  # fmt: skip
    """Runs a method: how many units of each decision stay.

    Args:
        prunable: The dense model, which stays as it is; its skeleton is enough for a heuristic that reads no weights.
        calibration: Of the same model, or of another copy of it.
        method: From ffp.allocators.create.
        sparsity: Share of the decisions' parameters to remove, in (0, 1).
        cut: How an allocation becomes a candidate model.
        granularity: One of ffp.core.problem.GRANULARITIES.
        budget: What a search may spend.
        seed: Of the method's random numbers.
        fitness: What a search is rewarded for: "ppl" or "kl".
        checkpoints: Shares of the budget, ascending, at which the search's answer is scored on the selection text.
        batch_tokens: Tokens in one forward; at least one window.
        journal: Keeps measurements, so that a killed search goes on where it was.
        initial_policy: A policy of the same method to start from.

    Raises:
        BudgetError: The sparsity cannot be met.
        ConfigError: The sparsity is no share, or model, calibration, method, texts and policy do not go together.
    """
    if fault := fault_of_share(sparsity):
        raise ConfigError(f"sparsity {sparsity:g}: {fault}")
    problem = prunable.problem(sparsity, granularity)
    method.check(problem)
    method.check_fitness(fitness)
    statistics = _statistics(calibration, prunable, problem)
    if isinstance(method, Search):
        with for_inference(prunable.model):
            candidates = cut.candidates(statistics)
            reward_of = functools.partial(_reward_of, candidates, calibration, batch_tokens, journal)
            try:
                tracker = Tracker(
                    problem, reward_of(fitness), budget or SearchBudget(1000, 4), method=method.name, seed=seed,
                    initial_policy=initial_policy, keeps_scales=cut.keeps_scales,
                )  # fmt: skip
                return _search(method, tracker, reward_of, checkpoints)
            finally:
                candidates.restore()  # the model is as it was, also where the search is refused or fails
    assert isinstance(method, Heuristic), f"{type(method).__name__} is neither a Heuristic nor a Search"
    with CostMeter() as cost:
        allocation = method.allocate(problem, statistics)
    allocation.check(problem)
    return AllocationResult(problem, allocation, cost)


def _statistics(calibration: Calibration, prunable: PrunableModel, problem: PruningProblem) -> ModelStatistics:
    """Returns a calibration's statistics, of this copy of the model; ConfigError where it is of other units."""
    prunable.check_units(problem, calibration.statistics.prunable)
    return calibration.statistics.of(prunable, problem.granularity)


def _reward_of(
    candidates: Candidates, calibration: Calibration, batch_tokens: int, journal: Journal | None, fitness: str,
    selection: str = "selection",
) -> ModelReward:  # fmt: skip
    """Returns the reward of candidates for a fitness; selection: name of the selection text in the journal."""
    windows, losses = dict(calibration.windows.items()), calibration.dense_loss
    if len(losses) < 2:
        raise ConfigError("a search needs windows of a search text and of a selection text. Give both to Windows.")
    searched = Text("search", windows["search"], losses["search"])
    selected = Text(selection, windows["selection"], losses["selection"])
    return ModelReward(candidates, searched, selected, batch_tokens=batch_tokens, journal=journal, fitness=fitness)


def _warn_of_shortage(method: Search, tracker: Tracker) -> None:
    """Warns where the budget is too small to search."""
    reward, has_policy = tracker.reward, bool(tracker.initial_policy)
    sizes = (reward.n_windows, reward.window_tokens)
    if found := shortage(method, tracker.problem, tracker.budget, *sizes, has_policy=has_policy):
        log.warning("%s", found)


def _search(
    method: Search, tracker: Tracker, reward_of: Callable[[str, str], ModelReward], checkpoints: Sequence[float]
) -> AllocationResult:
    """Runs a search and scores its answers."""
    reward = tracker.reward
    assert isinstance(reward, ModelReward)
    _warn_of_shortage(method, tracker)
    with CostMeter() as cost:
        allocation = method.run(tracker, np.random.default_rng(tracker.seed))
        cost.evaluations, cost.selection_tokens = reward.evaluations, reward.selection_tokens
        cost.n_tokens, cost.earlier_s = reward.spent_tokens + reward.selection_tokens, reward.earlier_s
    allocation.check(tracker.problem)
    if tracker.answers and (gates := tracker.answers[-1].gates) is not None:
        allocation = dataclasses.replace(allocation, units=reward.by_index(gates))
        allocation.check(tracker.problem)
    # answers are compared by loss, whatever the search was rewarded for
    scorer = reward if reward.fitness == "ppl" else reward_of("ppl", "selection:ppl")
    answers = _score_answers(tracker, scorer, checkpoints)
    return AllocationResult(tracker.problem, allocation, cost, tracker.rows, tracker.policy, answers)


def _score_answers(tracker: Tracker, reward: ModelReward, checkpoints: Sequence[float]) -> list[Answer]:
    """Scores on the selection text what the search would have answered at each checkpoint, if it had an answer."""
    total = tracker.budget.tokens(reward.window_tokens)
    found = []
    for share in checkpoints:
        if known := [answer for answer in tracker.answers if answer.tokens <= share * total]:
            _, keep, gates = known[-1]
            allocation = Allocation(tracker.problem.problem_id, keep)
            value = reward.select(allocation) if gates is None else reward.select_gated(gates)
            found.append(Answer(tokens=round(share * total), share=share, keep=keep, loss=-math.log(value)))
    return found


def make_masks(
    prunable: PrunableModel, calibration: Calibration, problem: PruningProblem, allocation: Allocation, cut: Cut, *,
    batch_tokens: int = BATCH_TOKENS,
) -> Masks:  # fmt: skip
    """Chooses which units or weights stay, and computes what compensates for the others.

    Args:
        prunable: The dense model; pruners of single weights change it, so load it again afterwards.
        calibration: Of the same model, or of another copy of it.
        problem: What the allocation answers.
        allocation: How many units of each decision stay.
        cut: Which ones, and what compensates.
        batch_tokens: Tokens that pass a block at once.

    Raises:
        ConfigError: The calibration or the problem is of a model with other units.
    """
    statistics, windows = _statistics(calibration, prunable, problem), calibration.windows.calibration
    with for_inference(prunable.model):
        return Masks(*cut.make(problem, allocation, statistics, windows, batch_tokens=batch_tokens))


def install(
    prunable: PrunableModel, problem: PruningProblem, masks: Masks, cut: Cut, *, dense_shape: bool = False,
    source: object = "the masks",
) -> PruningSummary:  # fmt: skip
    """Installs masks in a model: prunes it in place. Its `save_pretrained` then writes what loads it again.

    Args:
        prunable: The dense model.
        problem: What the masks answer.
        masks: From make_masks.
        cut: The one that made them.
        dense_shape: Write zeros in the parent's shapes, also where weights could be removed physically.
        source: What the masks were read from, for errors.

    Raises:
        ArtifactError: The masks belong to another model.
        ConfigError: The problem is of a model with other units, or the dense shapes have no place for a bias.
    """
    prunable.check_units(problem)
    dense = prunable.model_params()
    sparsity, kept = cut.install(prunable, problem, masks.kept, masks.updates, source=source, dense_shape=dense_shape)
    if problem.granularity == "structured" and not dense_shape:
        let_save(prunable)
    return PruningSummary(sparsity, dense, kept)


def recover(
    prunable: PrunableModel, windows: torch.Tensor, settings: RecoverSettings, *, seed: int = 0,
    batch_tokens: int = BATCH_TOKENS, teacher: Any = None, state: TrainingState | None = None,
) -> Recovery:  # fmt: skip
    """Trains what is left of a model in place, so that it makes up for what is gone.

    Args:
        prunable: The pruned model; the dense one can be trained too.
        windows: Token windows of a text that no search and no test uses, (n, context) int64.
        settings: What is trained, and how.
        seed: Of the first values and of the order of the windows.
        batch_tokens: Tokens in one forward; at least one window.
        teacher: The dense model, for `loss: kl`.
        state: Keeps the training, so that a killed one goes on where it was.

    Returns:
        The new weights, the loss of each step, and the cost.

    Raises:
        ConfigError: The model is offloaded, peft is not installed, or `loss: kl` has no teacher.
        FfpError: The loss is not finite.
    """
    with ExitStack() as undo:
        for model in (prunable.model, *(() if teacher is None else (teacher,))):
            undo.enter_context(for_inference(model))
        return train(prunable, windows, settings, seed=seed, batch_tokens=batch_tokens, teacher=teacher, state=state)


def evaluate(
    model: Any, windows: torch.Tensor, *, batch_tokens: int = BATCH_TOKENS, n_bytes: int | None = None
) -> dict[str, Any]:
    """Measures the perplexity of a model, dense or pruned, on a test text.

    Zero-shot tasks are scored by ffp.measure.tasks.score_tasks, which needs files for lm-eval's readers.

    Args:
        model: A causal language model of transformers, or its PrunableModel.
        windows: Token windows of the text, (n, context) int64.
        batch_tokens: Tokens in one forward; at least one window.
        n_bytes: From ffp.measure.spelled.predicted_bytes, for `bits_per_byte`.

    Returns:
        See ffp.measure.perplexity.perplexity.
    """
    model = model.model if isinstance(model, PrunableModel) else model
    with for_inference(model):
        return perplexity(model, windows, batch_tokens=batch_tokens, n_bytes=n_bytes)
