"""Scores tasks by lm-eval, on a model in memory and fetched data: its prompts, examples, templates and metrics.

lm-eval is imported when tasks are scored and not before: it takes about ten seconds.
"""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ffp.config import TasksConfig
from ffp.core.errors import ConfigError
from ffp.core.extras import needs
from ffp.core.plain import one_line
from ffp.measure.bos import place_bos
from ffp.measure.language_model import language_model
from ffp.measure.task_loading import check_room, load_tasks, seeded

log = logging.getLogger(__name__)
NO_FILTER = "none"  # lm-eval's name for answers as they are


def sample_documents(task: str, n_total: int, *, documents: int, seed: int) -> list[int]:
    """Returns ascending indices of `documents` of a task's documents, by seed and task alone; all for 0."""
    if not 0 < documents < n_total:
        return list(range(n_total))
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    return sorted(generator.choice(n_total, size=documents, replace=False).tolist())


def check_chat_template(tokenizer: Any, *, asked: bool) -> None:
    """Raises ConfigError where a chat template is asked for and the tokenizer has none, or one that fails.

    transformers renders templates in jinja2's sandbox, which refuses those that reach for Python.
    """
    if not asked:
        return
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "the model's tokenizer has no chat template. Leave chat_template out, or take an Instruct model."
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "A question."}], tokenize=False)
    except Exception as error:  # a template may raise anything
        raise ConfigError(
            f"the chat template of the model's tokenizer fails: {one_line(str(error)).rstrip('.')}. Leave "
            "chat_template out, or take another model."
        ) from error


def score_tasks(
    model: Any, tokenizer: Any, tasks: TasksConfig, folder: Path, *, documents: int, seed: int, batch_tokens: int,
    bos: str = "auto", chat_template: bool = False, system_prompt: str = "", fewshot_as_multiturn: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Scores a model in memory with the stock prompts and metrics of lm-eval.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        tasks: Which tasks.
        folder: What fetch_tasks made of them; lm-eval loads documents from files only.
        documents: Size of the seeded sample of each task, the same for every model, 0 for all; lm-eval calls it limit.
        seed: Of the sample.
        batch_tokens: Tokens forwarded at once, which bounds the logits in memory; in place of lm-eval's batch_size.
        bos: Whether each request begins with a BOS: "auto" as the tokenizer does it, "always" and "once", or "never".
        chat_template: Ask as a chat, by the tokenizer's template; lm-eval: apply_chat_template.
        system_prompt: What comes before each prompt; lm-eval: system_instruction.
        fewshot_as_multiturn: In a chat, whether each solved example is a turn of its own.

    Returns:
        For each task `version`, `hash` (of the scored documents, prompts and targets, as lm-eval computes it), `n`,
        `n_total`, `num_fewshot` and `metrics`, {name: {value, stderr, higher_is_better, counts}}; stderr is over
        documents, and `counts` says whether the value is the mean of documents that count 0 or 1. A name is lm-eval's
        "metric,filter", without the filter where there is none. Groups and tags have `subtasks`.

    Raises:
        ConfigError: A stock task is unknown or cannot be asked as it is; lm-eval is not installed.
        ArtifactError: A file is missing, or lm-eval cannot read it.
    """
    with needs("tasks"):
        from lm_eval.evaluator import evaluate

    check_chat_template(tokenizer, asked=chat_template)
    with tempfile.TemporaryDirectory(prefix="ffp-tasks-") as scratch, seeded():
        loaded = load_tasks(tasks, Path(folder), Path(scratch))
        lm = language_model(model, tokenizer, batch_tokens, begins=place_bos(tokenizer, bos) != "never")
        check_room(loaded, lm.max_length)
        sizes = {name: len(task.eval_docs) for name, task in loaded.tasks.items()}
        samples = {
            name: sample_documents(name, size, documents=documents, seed=seed)
            for name, size in sizes.items()
            if 0 < documents < size
        }
        results = evaluate(
            lm=lm, task_dict=dict(loaded.parts), samples=samples, bootstrap_iters=1000, log_samples=True,
            apply_chat_template=chat_template, system_instruction=system_prompt or None,
            fewshot_as_multiturn=chat_template and fewshot_as_multiturn,
        )  # fmt: skip
        return {name: _entry(results, objects) for name, objects in loaded.entries.items()}


def _entry(results: Mapping[str, Any], objects: list[Any]) -> dict[str, Any]:
    """The scores of one of our tasks: of a task or group of lm-eval, or those of a tag's tasks."""
    if len(objects) == 1:
        return _scores(results, objects[0])
    return {"version": None, "metrics": {}, **_joined(results, objects)}


def _scores(results: Mapping[str, Any], one: Any) -> dict[str, Any]:
    """Reads the part of a task or group in lm-eval's results."""
    group = hasattr(one, "get_all_tasks")
    name = one.name if group else one.task_name
    samples, aggregations = ([], {}) if group else (results["samples"][name], one.aggregation())
    found = {"version": results["versions"].get(name), "metrics": _metrics(results, name, samples, aggregations)}
    if group:
        return {**found, **_joined(results, list(one))}
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]  # the same for every filter
    parts = "".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    return {
        **found,
        "hash": hashlib.sha256(parts.encode()).hexdigest(),
        "n": len(samples),
        "n_total": len(one.eval_docs),
        "num_fewshot": int(results["n-shot"][name]),
    }


def _joined(results: Mapping[str, Any], members: Iterable[Any]) -> dict[str, Any]:
    """What the members of a group or tag have in common, and their own scores."""
    found = {one.name if hasattr(one, "get_all_tasks") else one.task_name: _scores(results, one) for one in members}
    shots = {scores["num_fewshot"] for scores in found.values()}
    return {
        "hash": hashlib.sha256("".join(scores["hash"] for scores in found.values()).encode()).hexdigest(),
        "n": sum(scores["n"] for scores in found.values()),
        "n_total": sum(scores["n_total"] for scores in found.values()),
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        "subtasks": found,
    }


def _metrics(
    results: Mapping[str, Any], name: str, samples: list[dict[str, Any]], aggregations: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of a task or group, whose keys in lm-eval are "acc,none" and "acc_stderr,none".

    aggregations: by metric, the function that made a value of the samples; lm-eval takes the mean where there is none.
    """
    from lm_eval.api.metrics import mean

    figures, better = results["results"][name], results["higher_is_better"].get(name) or {}
    found = {}
    for key, value in figures.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr"):
            continue
        if not _is_number(value):
            log.warning("task %s: %s is %r, which is left out", name, key, value)
            continue
        stderr = figures.get(f"{metric}_stderr,{kept}")
        found[metric if kept == NO_FILTER else key] = {
            "value": float(value),
            "stderr": float(stderr) if _is_number(stderr) else None,
            "higher_is_better": better.get(metric) is not False,
            "counts": bool(samples)
            and aggregations.get(metric, mean) is mean
            and all(_is_count(s.get(metric)) for s in samples if s["filter"] == kept),
        }
    return found


def _is_count(value: Any) -> bool:
    """Whether a document counts 0 or 1."""
    return isinstance(value, int | float) and value in (0, 1)


def _is_number(value: Any) -> bool:
    """Whether lm-eval gave a figure; for a single document it gives "N/A"."""
    return isinstance(value, int | float) and math.isfinite(value)
