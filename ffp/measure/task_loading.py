"""lm-eval's tasks on fetched data, set as asked: how many solved examples a prompt has, how answers are generated."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ffp.assets.stock import check_tasks, shots, stock_body, stub
from ffp.assets.task_data import Stored, answered_by, build_stock, leaves, stock_objects
from ffp.config import TaskConfig, TasksConfig
from ffp.core.errors import ArtifactError, ConfigError, reason_of
from ffp.store.layout import AssetFiles

log = logging.getLogger(__name__)
MAX_GEN_TOKS = 256  # lm-eval's own, of a task that does not say


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks as lm-eval has them.

    Attributes:
        entries: For each of our names a task, a group, or the tasks of a tag.
        parts: lm-eval's flat view: `tasks`, `groups` and `group_map`.
    """

    entries: Mapping[str, list[Any]]
    parts: Mapping[str, Any]

    @property
    def tasks(self) -> dict[str, Any]:
        """Every single task by lm-eval's name for it, those of groups too."""
        return dict(self.parts["tasks"])


@contextmanager
def seeded() -> Iterator[None]:
    """Draws random numbers as `lm_eval run` does by default, and leaves the generators as they were."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    before, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(arrays)


def load_tasks(tasks: TasksConfig, folder: Path, scratch: Path) -> LoadedTasks:
    """Builds the tasks of a set on its fetched data.

    Args:
        tasks: The set.
        folder: What fetch_tasks made of it.
        scratch: An empty folder that lives as long as the tasks.

    Raises:
        ConfigError: A task cannot be asked as it is.
        ArtifactError: Data is missing, or lm-eval cannot read it.
    """
    check_tasks(tasks)
    own, shipped = scratch / "own", scratch / "shipped"
    own.mkdir()
    shipped.mkdir()
    entries = _from_files(tasks, folder, own)
    asking = {name: task for name, task in tasks.tasks.items() if not task.has_files}
    manager = build_stock(tasks, shipped) if asking else None
    for name, task in asking.items():
        with answered_by(Stored(folder, name, shipped)):
            entries[name] = stock_objects(manager, name, task)
    for name, task in tasks.tasks.items():
        for one in leaves(entries[name]):
            _set_up(one, task)
    return LoadedTasks({name: entries[name] for name in tasks.tasks}, merged(entries))


def merged(entries: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Returns what lm-eval makes of all tasks; ConfigError where two have one name, of which it would keep the last."""
    from lm_eval.tasks import TaskManager

    objects = [one for found in entries.values() for one in found]
    names = Counter(one.task_name for one in leaves(objects))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"the task {twice[0]!r} is asked twice. Leave one of what asks it out.")
    return dict(TaskManager(include_defaults=False).load(objects))


def _from_files(tasks: TasksConfig, folder: Path, scratch: Path) -> dict[str, list[Any]]:
    """The tasks whose documents are JSONL files: each a generated YAML that includes the stock one."""
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    files, names = AssetFiles(folder), []
    for name, task in tasks.tasks.items():
        if task.has_files:
            data = [files.documents(name), *([files.examples(name)] if task.fewshot else [])]
            if lost := [path for path in data if not path.is_file()]:
                raise ArtifactError(f"{lost[0]} is missing. Run the rule that makes it again.")
            body = local_task(name, task, *(path.resolve() for path in data), cache=scratch / "cache")
            (scratch / f"{name}.yaml").write_text(yaml.safe_dump(body))
            names.append(name)
    if not names:
        return {}
    try:
        found = TaskManager(include_path=str(scratch), include_defaults=False).load(names)
    except (DatasetsError, ValueError, KeyError, TypeError, OSError) as error:
        raise ArtifactError(
            f"tasks {', '.join(names)} in {folder} cannot be read by lm-eval: {reason_of(error)}."
        ) from error
    return {name: [found["tasks"][name]] for name in names}


def local_task(
    name: str, task: TaskConfig, documents: Path, examples: Path | None = None, *, cache: Path
) -> dict[str, Any]:
    """Returns the YAML of a stock task on local JSONL files.

    Args:
        name: Our name of the task.
        task: Its configuration.
        documents: Replaces the split that the stock task scores.
        examples: Replaces the split that it draws solved examples from; None leaves it without one.
        cache: Folder of the datasets library.
    """
    body = stock_body(task.stock)
    scored = body.get("test_split") or body["validation_split"]
    splits: dict[str, str | None] = {f"{kind}_split": None for kind in ("training", "validation", "test", "fewshot")}
    splits["test_split" if body.get("test_split") else "validation_split"] = scored
    data = {scored: str(documents)}
    if examples is not None and shots(task, body):
        splits["fewshot_split"] = drawn = "fewshot" if scored != "fewshot" else "examples"
        data[drawn] = str(examples)
    local = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data, "cache_dir": str(cache)},
    }
    return {**stub(task.stock), "task": name, "tag": None, **local, **splits}


def _set_up(one: Any, task: TaskConfig) -> None:
    """Sets a task of lm-eval as its simple_evaluate does: examples, generation and the seed of the draw of examples."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    own = one.get_config("num_fewshot")
    if own is None or (task.num_fewshot is not None and own != 0):  # 0 in lm-eval's YAML is meant
        one.set_config(key="num_fewshot", value=task.num_fewshot or 0)
    if task.gen_kwargs and one.get_config("output_type") == "generate_until":
        one.set_config(key="generation_kwargs", value=dict(task.gen_kwargs), update=True)
    one.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    _check_examples(one, asked=task.num_fewshot is not None)


def _check_examples(one: Any, *, asked: bool) -> None:
    """Raises ConfigError where examples are too few, or would be drawn among the scored documents with their answers.

    asked: whether the configuration gives their number; a task that lm-eval itself made so is reported as it is.
    """
    count, name = one.get_config("num_fewshot") or 0, one.task_name
    if not count or not hasattr(one, "sampler"):
        return
    test, validation = one.get_config("test_split"), one.get_config("validation_split")
    source, scored = one.fewshot_cfg.split, test or validation
    samples = source is None and one.fewshot_cfg.samples is not None
    source = source or one.get_config("training_split") or validation or test
    apart = samples or source != scored or one.fewshot_cfg.split == test  # then lm-eval leaves the document itself out
    if not apart and asked:
        raise ConfigError(
            f"task {name!r} has no split but the scored one to draw {count} examples from, among them the document "
            "itself. Set num_fewshot: 0, or give documents of your own as source and fewshot."
        )
    if not apart:
        log.warning("task %s draws its examples from the scored documents, as lm-eval has it", name)
    there = len(one.sampler.df) - (not samples and source == scored)
    if there < count:
        raise ConfigError(
            f"task {name!r} has {there} examples to draw {count} from. Set num_fewshot to {there} or less."
        )


def room(task: Any, default: int) -> int:
    """Returns how many tokens a task may generate for a document; 0 for one that generates nothing.

    Args:
        task: A task of lm-eval.
        default: Of a task that does not say.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    if task.get_config("output_type") != "generate_until":
        return 0
    arguments = json.loads(json.dumps(task.get_config("generation_kwargs") or {}, default=str))
    return int(normalize_gen_kwargs(arguments, default)["max_gen_toks"])


def check_room(loaded: LoadedTasks, max_length: int) -> None:
    """Checks that what tasks may generate fits into a model beside the prompt.

    Args:
        loaded: The tasks.
        max_length: Tokens that the model takes.

    Raises:
        ConfigError: A task may generate as many tokens as that, or more.
    """
    for name, task in loaded.tasks.items():
        if (more := room(task, MAX_GEN_TOKS)) >= max_length:
            raise ConfigError(
                f"task {name!r} may generate {more} tokens, and the model takes {max_length} with the prompt. Set "
                "gen_kwargs: {max_gen_toks: ...} of the task."
            )
