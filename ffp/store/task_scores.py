"""What scores.json holds of a task."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from ffp.store.kinds import Part

# Metrics of lm-eval that are no share of 1, whatever their values are: of texts that are compared, of likelihoods, and
# those of SQuAD 2 and EQ-Bench, which end at 100.
NO_SHARES = re.compile(
    r"\w*(bleu|bert|chrf|rouge)\w*(?<!_acc)|ter|\w*perplexity|bits_per_byte|(\w+_)?exact|(\w+Ans|best)_f1"
    r"|eqbench|percent_parseable"
)


def _is_zero(value: object) -> bool:
    """Whether a figure is left out, so that files from before there was one stay as they were."""
    return value == 0


class Metric(Part):
    """A score with its standard error over documents."""

    value: float
    stderr: float | None
    higher_is_better: bool = Field(True, exclude_if=operator.truth)
    counts: bool = Field(
        True, exclude_if=operator.truth, description="whether it is a mean of documents that count 0 or 1"
    )


class TaskScores(Part):
    """The scores of one lm-eval task, or of a group or tag and of what is in it."""

    version: Any
    hash: str = Field(description="of the documents, prompts and targets that were scored")
    n: int
    n_total: int
    num_fewshot: int | None = Field(0, exclude_if=_is_zero, description="null where those of a group differ")
    metrics: dict[str, Metric] = Field(description='by "metric,filter" of lm-eval, or "metric" without a filter')
    subtasks: dict[str, TaskScores] = Field(default_factory=dict, exclude_if=operator.not_)

    @property
    def main_metric(self) -> str:
        """What counts in a mean over tasks: acc_norm if the task has it, otherwise acc, otherwise its first metric."""
        return next(name for name in ("acc_norm", "acc", *self.metrics) if name in self.metrics)

    @property
    def shown_metrics(self) -> list[str]:
        """What tables show: the one that counts in the mean, by each filter that lm-eval applies to the answers."""
        metric = self.main_metric.partition(",")[0]
        return [name for name in self.metrics if name.partition(",")[0] == metric]


def is_share(name: str, figures: Iterable[Metric]) -> bool:
    """Returns whether a metric of a task is a share of 1, which tables show in percent and the mean over tasks counts.

    Args:
        name: The metric's, with or without a filter.
        figures: The metric in all cells that are shown together. One outside [0, 1] says that it is a share in none.
    """
    if NO_SHARES.fullmatch(name.partition(",")[0]):
        return False
    return all(figure.higher_is_better and 0 <= figure.value <= 1 for figure in figures)


def scored_tasks(tasks: Mapping[str, Any]) -> dict[str, TaskScores]:
    """Returns tasks with figures of their own; what has none, as a tag, gives way to what is in it."""
    found: dict[str, TaskScores] = {}
    for name, scores in tasks.items():
        task = TaskScores.model_validate(scores)
        found |= {name: task} if task.metrics else scored_tasks(task.subtasks)
    return found
