"""What would fail a run is found before it spends a token: one list of checks, with what each of them needs.

`ffp validate`, the workflow's rule `preflight`, its calibrate job and `ffp prune` go through the same list, each as far
as it has what a check needs. Whether the dense model's numbers are finite is checked where they are measured, see
ffp.measure.calibration.check_finite, before the first search.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffp.allocators.base import Method
from ffp.assets.stock import check_tasks
from ffp.config import GridConfig, ModelConfig, TasksConfig
from ffp.config.pruning import PruneSettings
from ffp.core.errors import FfpError
from ffp.core.problem import PruningProblem
from ffp.measure.bos import place_bos
from ffp.measure.task_loading import check_room, load_tasks, seeded
from ffp.measure.tasks import check_chat_template
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import (
    Origin,
    check_context,
    check_disk,
    check_memory,
    check_not_offloaded,
    check_origin,
    check_problem,
    check_token_ids,
)

STEPS = ("calibrate", "grams", "allocate", "apply", "recover", "evaluate")


@dataclass(frozen=True)
class Planned:
    """One model of a run, as far as it is known; what is None is not known yet, or not asked for.

    Attributes:
        name: Of the model.
        config: How the model runs.
        settings: What is asked of it.
        prunables: Its modules, with or without weights: one for each kind of units that is asked for.
        problems: Every method with every problem that it will be asked.
        origins: Searches that start from another model's policy, where the sizes of both models are known.
        searches: Whether a search runs.
        trains: Whether it is trained after pruning.
        chats: Whether tasks are asked by the tokenizer's chat template.
        contexts: Tokens of a window by the key that sets them, where the model's positions are known.
        tokenizer: The model's.
        windows: Cuts every text into windows; raises where one is too short.
        tasks: What is scored beside perplexity.
        tasks_dir: The fetched data of these.
        memory: Bytes of the largest step, and the devices that share them.
        disk: What will be written, and its bytes.
    """

    name: str
    config: ModelConfig
    settings: GridConfig | PruneSettings
    prunables: Sequence[PrunableModel]
    problems: Sequence[tuple[Method, PruningProblem]] = ()
    origins: Sequence[Origin] | None = ()
    searches: bool = False
    trains: bool = False
    chats: bool = False
    contexts: Mapping[str, int] | None = None
    tokenizer: Any = None
    windows: Callable[[], Mapping[str, torch.Tensor]] | None = None
    tasks: TasksConfig | None = None
    tasks_dir: Path | None = None
    memory: tuple[int, Sequence[torch.device]] | None = None
    disk: tuple[Path, int] | None = None

    def tokens_before(self, step: str) -> int:
        """Returns what a cell forwards before a step, in tokens, without Gram matrices, compensation and recovery."""
        calibration, search = self.settings.calibration, self.settings.search
        spent = {"calibrate": calibration.windows * calibration.context}
        if self.searches:
            spent["calibrate"] += (search.windows + search.selection_windows) * search.context
            spent["allocate"] = search.budget().tokens(search.context)
        return sum(spent.get(earlier, 0) for earlier in STEPS[: STEPS.index(step)])


@dataclass(frozen=True)
class Check:
    """One thing that would fail a run.

    Attributes:
        about: What is checked, as a sentence.
        needs: Fields of Planned without which it cannot be checked.
        step: The step that would fail.
        run: Raises an FfpError with the remedy.
    """

    about: str
    needs: tuple[str, ...]
    step: str
    run: Callable[[Planned], None]

    def is_ready(self, planned: Planned) -> bool:
        """Returns whether all that the check needs is known."""
        return all(getattr(planned, name) is not None for name in self.needs)


def preflight(planned: Planned, *further: Check) -> list[str]:
    """Goes through all checks for which enough is known; computes nothing of the model.

    Args:
        planned: What is known of the run.
        *further: Checks of the caller's own.

    Returns:
        What was checked.

    Raises:
        FfpError: The first fault, its remedy, and what it would have cost to find it later.
    """
    ready = [check for check in (*CHECKS, *further) if check.is_ready(planned)]
    for check in ready:
        try:
            check.run(planned)
        except FfpError as error:
            raise type(error)(f"{error}{_saved(planned.tokens_before(check.step), check.step)}") from error
    return [check.about for check in ready]


def _saved(tokens: int, step: str) -> str:
    """What a fault would have cost, had its step found it."""
    return f" Nothing was spent: the step {step} would have failed, {tokens:,} tokens later." if tokens else ""


def _check_problems(planned: Planned) -> None:
    for method, problem in planned.problems:
        try:
            check_problem(method, problem)
        except FfpError as error:
            raise type(error)(f"{method.name} on {planned.name}: {error}") from error


def _check_origins(planned: Planned) -> None:
    for origin in planned.origins or ():
        check_origin(origin)


def _check_positions(planned: Planned) -> None:
    check_context(planned.prunables[0].config, planned.contexts or {})


def _check_training(planned: Planned) -> None:
    if planned.trains:
        check_not_offloaded(planned.config, planned.name)


def _check_tokenizer(planned: Planned) -> None:
    place_bos(planned.tokenizer, planned.config.bos)
    check_chat_template(planned.tokenizer, asked=planned.chats)


def _check_texts(planned: Planned) -> None:
    assert planned.windows is not None
    check_token_ids(planned.windows(), planned.prunables[0].model)


def _check_tasks(planned: Planned) -> None:
    assert planned.tasks is not None
    check_tasks(planned.tasks)


def _check_task_data(planned: Planned) -> None:
    assert planned.tasks is not None
    assert planned.tasks_dir is not None
    with tempfile.TemporaryDirectory(prefix="ffp-tasks-") as scratch, seeded():
        loaded = load_tasks(planned.tasks, planned.tasks_dir, Path(scratch))
        check_room(loaded, planned.prunables[0].config.max_position_embeddings)


def _check_memory(planned: Planned) -> None:
    assert planned.memory is not None
    check_memory(planned.memory[0], *planned.memory[1])


def _check_disk(planned: Planned) -> None:
    assert planned.disk is not None
    check_disk(*planned.disk)


CHECKS = (
    Check("every method can meet its sparsities", (), "allocate", _check_problems),
    Check("policies to start from fit the model", ("origins",), "allocate", _check_origins),
    Check("what is trained is not offloaded", (), "recover", _check_training),
    Check("windows fit the model's positions", ("contexts",), "calibrate", _check_positions),
    Check("lm-eval can ask every task", ("tasks",), "evaluate", _check_tasks),
    Check("the tokenizer has the BOS and the chat template asked for", ("tokenizer",), "evaluate", _check_tokenizer),
    Check("the device has the memory", ("memory",), "calibrate", _check_memory),
    Check("the disk has the space", ("disk",), "calibrate", _check_disk),
    Check("every text is long enough, of tokens that the model knows", ("windows",), "evaluate", _check_texts),
    Check("every task has its examples and room for its answers", ("tasks", "tasks_dir"), "evaluate", _check_task_data),
)
