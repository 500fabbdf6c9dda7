"""What a grid's tasks take: counted where their data and a model's tokenizer are there, guessed elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ffp.assets.stock import is_installed
from ffp.config import Experiment
from ffp.measure.task_cost import TaskCost, task_costs
from ffp.models.checkpoint import load_tokenizer
from ffp.store.layout import Layout

# (tokens of a document with all its answers, documents of the scored split) of each task, zero-shot, by the tokenizer
# of SmolLM2; OTHER_TASK stands for tasks that are not listed.
TASK_TOKENS = {
    "boolq": (297, 3270), "piqa": (68, 1838), "hellaswag": (316, 10042), "winogrande": (45, 1267),
    "arc_easy": (128, 2376), "arc_challenge": (148, 1172), "openbookqa": (60, 500),
}  # fmt: skip
OTHER_TASK = (300, 3000)


def plan_tasks(experiment: Experiment, name: str) -> dict[str, TaskCost]:
    """Counts what a grid's tasks take for a model, where all that it needs is fetched; preflight has checked them.

    Args:
        experiment: The grid.
        name: One of its models.

    Returns:
        The cost of every single task; nothing where data or model are not there.
    """
    layout, tasks = Layout.from_grid(experiment.grid), experiment.tasks
    if tasks is None or experiment.tasks_name is None or not is_installed():
        return {}
    files, model = layout.tasks(experiment.tasks_name), layout.model(name)
    if not (model.manifest.is_file() and files.manifest.is_file()):
        return {}
    return task_costs(tasks, files.folder, load_tokenizer(model.folder), **experiment.grid.evaluation.of_tasks())


def task_tokens(experiment: Experiment, costs: Mapping[str, TaskCost]) -> int:
    """Returns the tokens of all the grid's task documents, with each of their answers.

    Args:
        experiment: The grid.
        costs: From plan_tasks.
    """
    if costs:
        return sum(cost.tokens for cost in costs.values())
    tasks, limit = (experiment.tasks.tasks if experiment.tasks else {}), experiment.grid.evaluation.documents
    sizes = [TASK_TOKENS.get(task.stock, OTHER_TASK) for task in tasks.values()]
    return sum(tokens * (min(limit, documents) if limit else documents) for tokens, documents in sizes)


def lines(experiment: Experiment, costs: Mapping[str, Mapping[str, TaskCost]]) -> Iterator[str]:
    """Yields what tasks take for a cell, a line each; where their data is not there, how to fetch it.

    Args:
        experiment: The grid.
        costs: From plan_tasks, by model.
    """
    name, found = next(((name, found) for name, found in costs.items() if found), ("", {}))
    if experiment.tasks is None:
        return
    if not found:
        yield "Tasks: their data or the models are not here, so that what they take is a guess.\n"
        return
    yield f"Tasks of a cell, in tokens of {name}:\n"
    for task, cost in found.items():
        yield (
            f"  {task}: {cost.shots}-shot, {cost.documents:,} documents, {cost.requests:,} requests, about "
            f"{cost.tokens:,} tokens"
        )
    yield ""
