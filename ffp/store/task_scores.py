"""What scores.json holds of a task."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from ffp.store.kinds import Part


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

    def by_filter(self, metric: str) -> list[str]:
        """Returns the names of a metric, one for each filter that lm-eval applies to the answers."""
        return [name for name in self.metrics if name.partition(",")[0] == metric.partition(",")[0]]


def scored_tasks(tasks: Mapping[str, Any]) -> dict[str, TaskScores]:
    """Returns tasks with figures of their own; what has none, as a tag, gives way to what is in it."""
    found: dict[str, TaskScores] = {}
    for name, scores in tasks.items():
        task = TaskScores.model_validate(scores)
        found |= {name: task} if task.metrics else scored_tasks(task.subtasks)
    return found
