"""Zero-shot tasks by lm-eval, on a model in memory and documents in local files.

lm-eval is imported when tasks are scored and not before: it takes about ten seconds.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import re
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ffp.config import TasksConfig
from ffp.core.errors import ArtifactError, ConfigError
from ffp.core.extras import needs
from ffp.core.suggest import did_you_mean
from ffp.measure.bos import adds_bos, place_bos

log = logging.getLogger(__name__)
OUTPUT_TYPES = ("multiple_choice", "loglikelihood")


def sample_documents(task: str, n_total: int, *, documents: int, seed: int) -> list[int]:
    """Returns ascending indices of `documents` of a task's documents, by seed and task alone; all for 0."""
    if not 0 < documents < n_total:
        return list(range(n_total))
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    return sorted(generator.choice(n_total, size=documents, replace=False).tolist())


def score_tasks(
    model: Any, tokenizer: Any, tasks: TasksConfig, folder: Path, *, documents: int, seed: int, batch_tokens: int,
    bos: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Scores a model in memory with the stock prompts and metrics of lm-eval.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        tasks: Which tasks.
        folder: Holds {task}.jsonl with the columns of the stock task; lm-eval loads documents from files only.
        documents: Size of the seeded sample of each task, the same for every model, 0 for all; lm-eval calls it limit.
        seed: Of the sample.
        batch_tokens: Tokens forwarded at once, which bounds the logits in memory; in place of lm-eval's batch_size.
        bos: Whether each request begins with a BOS: "auto" as the tokenizer does it, "always" and "once", or "never".

    Returns:
        For each task `version`, `hash` (of the scored documents, prompts and targets, as lm-eval computes it), `n`,
        `n_total` and `metrics`, {name: {value, stderr}}; stderr is over documents.

    Raises:
        ConfigError: A stock task is unknown, or is not zero-shot and scored by likelihoods; lm-eval is not installed.
        ArtifactError: A file is missing, or lm-eval cannot read it.
    """
    with needs("tasks"):
        from lm_eval.evaluator import evaluate

    with tempfile.TemporaryDirectory(prefix="ffp-tasks-") as scratch:
        loaded = _load(tasks, Path(folder), Path(scratch))
        samples = {
            name: sample_documents(name, len(task.eval_docs), documents=documents, seed=seed)
            for name, task in loaded["tasks"].items()
        }
        lm = _language_model(model, tokenizer, batch_tokens, begins=place_bos(tokenizer, bos) != "never")
        results = evaluate(lm=lm, task_dict=loaded, samples=samples, bootstrap_iters=1000, log_samples=True)
        return {name: _scores(results, name, task) for name, task in loaded["tasks"].items()}


def _scores(results: Mapping[str, Any], name: str, task: Any) -> dict[str, Any]:
    """Reads one task's part of lm-eval's results, whose keys are "acc,none" and "acc_stderr,none"."""
    samples, figures = results["samples"][name], results["results"][name]
    parts = "".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    metrics = {}
    for key, value in figures.items():
        metric, _, kept = key.partition(",")
        if kept and not metric.endswith("_stderr"):
            stderr = figures.get(f"{metric}_stderr,{kept}")
            metrics[metric] = {"value": float(value), "stderr": float(stderr) if _is_number(stderr) else None}
    return {
        "version": results["versions"][name],
        "hash": hashlib.sha256(parts.encode()).hexdigest(),
        "n": len(samples),
        "n_total": len(task.eval_docs),
        "metrics": metrics,
    }


def _is_number(value: Any) -> bool:
    """Whether lm-eval gave a figure; for a single document it gives "N/A"."""
    return isinstance(value, int | float) and math.isfinite(value)


def _load(tasks: TasksConfig, folder: Path, scratch: Path) -> dict[str, Any]:
    """lm-eval's task objects on the local files: each a generated YAML that includes the stock one."""
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    stock = stock_files({name: task.stock for name, task in tasks.tasks.items()})
    for name, path in stock.items():
        data = (folder / f"{name}.jsonl").resolve()
        body = local_task(name, path, data, cache=scratch / "cache")
        if not data.is_file():
            raise ArtifactError(f"{data} is missing. Run the rule that makes it again.")
        (scratch / f"{name}.yaml").write_text(yaml.safe_dump(body))
    manager = TaskManager(include_path=str(scratch), include_defaults=False)
    try:
        loaded: dict[str, Any] = dict(manager.load(list(stock)))
    except (DatasetsError, ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"tasks {', '.join(stock)} in {folder} cannot be read by lm-eval: {reason}.") from error
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    return loaded


def stock_files(stock: Mapping[str, str]) -> dict[str, Path]:
    """Returns the YAML of each stock task in the installed lm-eval, by our task's name.

    Raises:
        ConfigError: lm-eval has no task of that name.
    """
    found = _stock_index()
    for task, name in stock.items():
        if name not in found:
            raise ConfigError(f"task {task!r}: lm-eval has no stock task {name!r}: {did_you_mean(name, found)}")
    return {task: found[name] for task, name in stock.items()}


@functools.cache
def _stock_index() -> dict[str, Path]:
    """Stock tasks by name, from their line "task: NAME": lm-eval's own index parses 14,000 files for 18 seconds."""
    import lm_eval.tasks

    line = re.compile(rb"^task:[ \t]*[\"']?([\w.-]+)[\"']?[ \t]*\r?$", re.M)
    found: dict[str, Path] = {}
    for path in sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")):
        if match := line.search(path.read_bytes()):
            found.setdefault(match[1].decode(), path)
    return found


def local_task(name: str, stock: Path, data: Path, *, cache: Path) -> dict[str, Any]:
    """Returns the YAML of a stock task on a local JSONL file, which replaces the split that the stock task scores.

    Raises:
        ConfigError: The stock task is not zero-shot and scored by likelihoods: only those can be compared here.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    body = load_yaml(stock, resolve_func=False)
    if body.get("output_type") not in OUTPUT_TYPES or body.get("num_fewshot"):
        kind = f"{body.get('num_fewshot') or 0}-shot {body.get('output_type')}"
        raise ConfigError(
            f"task {name!r}: stock task {body['task']!r} is {kind}; "
            f"only zero-shot {' and '.join(OUTPUT_TYPES)} tasks are supported. Name another stock task."
        )
    split = body.get("test_split") or body["validation_split"]
    splits = {f"{kind}_split": None for kind in ("training", "validation", "test", "fewshot")}
    splits["test_split" if body.get("test_split") else "validation_split"] = split
    files = {"data_files": {split: str(data)}, "cache_dir": str(cache)}
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    return {"include": str(stock), "task": name, "tag": None, **local, **splits}


def _language_model(model: Any, tokenizer: Any, batch_tokens: int, *, begins: bool) -> Any:
    """Wraps the model for lm-eval, with batches bounded by tokens instead of by requests; begins: with a BOS."""
    from lm_eval.models.huggingface import HFLM

    unlike = begins != adds_bos(tokenizer)  # what lm-eval does by default

    class TokenBatches(HFLM):  # type: ignore[misc, unused-ignore]
        """HFLM in groups of similar length, each with the largest batch that batch_tokens allows."""

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
            if add_special_tokens is not None or not unlike:
                return list(super().tok_encode(string, add_special_tokens, **others))
            ids, begin = list(super().tok_encode(string, False, **others)), [tokenizer.bos_token_id] * begins
            return ids if ids[:1] == begin else begin + ids

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty()))

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            answers: dict[int, tuple[float, bool]] = {}
            lengths = [len(context) + len(continuation) for _, context, continuation in requests]
            longest, limit = max(lengths), self.max_length
            if longest > limit + 1:
                log.warning("requests of up to %d tokens lose their beginning: the model takes %d", longest, limit)
            for size, group in sorted(groups_by_length(lengths, batch_tokens)):
                self.batch_size_per_gpu = size
                part = [requests[index] for index in group]
                answers.update(zip(group, super()._loglikelihood_tokens(part, disable_tqdm=disable_tqdm), strict=True))
            return [answers[index] for index in range(len(requests))]

    return TokenBatches(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")


def groups_by_length(lengths: Sequence[int], batch_tokens: int) -> list[tuple[int, list[int]]]:
    """Groups indices of requests by batch size: a power of two with size * length <= batch_tokens, or 1."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[1 << (max(1, batch_tokens // max(1, length)).bit_length() - 1)].append(index)
    return list(groups.items())
