"""What scoring tasks takes: documents, requests and tokens, counted on a few documents of each task."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ffp.config import TasksConfig
from ffp.measure.task_loading import MAX_GEN_TOKS, load_tasks, room, seeded
from ffp.measure.tasks import sample_documents

COUNTED = 16  # documents of a task whose tokens are counted


@dataclass(frozen=True)
class TaskCost:
    """What one task takes.

    Attributes:
        shots: Solved examples in a prompt.
        documents: Documents that are scored.
        requests: Prompts with an answer, or prompts to be answered.
        tokens: Of all requests, with what may be generated at most.
    """

    shots: int
    documents: int
    requests: int
    tokens: int


def task_costs(
    tasks: TasksConfig, folder: Path, tokenizer: Any, *, documents: int, seed: int, chat_template: bool = False,
    system_prompt: str = "", fewshot_as_multiturn: bool = True,
) -> dict[str, TaskCost]:  # fmt: skip
    """Estimates what tasks take from COUNTED documents of each one.

    Args:
        tasks: The set.
        folder: What fetch_tasks made of it.
        tokenizer: Of the model.
        documents: See score_tasks, as the rest.
        seed: See score_tasks.
        chat_template: See score_tasks.
        system_prompt: See score_tasks.
        fewshot_as_multiturn: See score_tasks.

    Returns:
        The cost of every single task by lm-eval's name for it, those of groups too.
    """
    template = partial(tokenizer.apply_chat_template, tokenize=False) if chat_template else None
    found = {}
    with tempfile.TemporaryDirectory(prefix="ffp-tasks-") as scratch, seeded():
        for name, task in load_tasks(tasks, Path(folder), Path(scratch)).tasks.items():
            total = len(task.eval_docs)
            scored = min(documents, total) if documents else total
            few = sample_documents(name, total, documents=min(COUNTED, scored), seed=seed)
            task.build_all_requests(
                samples=few, system_instruction=system_prompt or None, apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template and fewshot_as_multiturn, chat_template=template,
            )  # fmt: skip
            asked = [request.args for request in task.instances]
            more = room(task, MAX_GEN_TOKS)
            counted = sum(_tokens(tokenizer, arguments) + more for arguments in asked)
            scale = scored / len(few)
            shots = int(task.get_config("num_fewshot") or 0)
            found[name] = TaskCost(shots, scored, round(scale * len(asked)), round(scale * counted))
    return found


def _tokens(tokenizer: Any, arguments: tuple[Any, ...]) -> int:
    """Tokens of a request: of its prompt, and of the answer that is scored."""
    return sum(len(tokenizer(text)["input_ids"]) for text in arguments if isinstance(text, str))
