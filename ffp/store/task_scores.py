"""What scores.json holds of a task."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from ffp.store.kinds import Part

# Metrics of lm-eval that are no share of 1, whatever their values are: of texts that are compared, of likelihoods, and
# SQuAD 2's, which are in percent.
NO_SHARES = re.compile(
    r"(bleu|bert|chrf|rouge)\w*(?<!_acc)|ter|\w*perplexity|bits_per_byte|(\w+_)?exact|(\w+Ans|best)_f1"
)


def _is_zero(value: object) -> bool:
    """Whether a figure is left out, so that files from before there was one stay as they were."""
    return value == 0


class Metric(Part):
    """A score with its standard error over documents."""

    value: float
    stderr: float | None
    higher_is_better: bool = Field(True, exclude_if=operator.truth)
    counts: bool = Field(True, exclude_if=operator.truth, description="whether a document counts 0 or 1")


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

    def is_share(self, metric: str) -> bool:
        """Returns whether a metric is a share, which tables show in percent and the mean over tasks counts."""
        found, name = self.metrics[metric], metric.partition(",")[0]
        return found.higher_is_better and found.value <= 1 and not NO_SHARES.fullmatch(name)


def scored_tasks(tasks: Mapping[str, Any]) -> dict[str, TaskScores]:
    """Returns tasks with figures of their own; what has none, as a tag, gives way to what is in it."""
    found: dict[str, TaskScores] = {}
    for name, scores in tasks.items():
        task = TaskScores.model_validate(scores)
        found |= {name: task} if task.metrics else scored_tasks(task.subtasks)
    return found
