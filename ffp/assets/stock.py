"""The tasks, groups and tags that the installed lm-eval ships: which YAML each one is in, and what a group is made of.

lm-eval's own index reads all keys of 14,000 files, for twenty seconds. This one reads the five keys that say what a
file is, in a few seconds and without importing lm-eval; a test compares the two.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ffp.config import TaskConfig, TasksConfig
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

KEYS = ("task", "group", "class", "tag", "include")
# A top-level key of KEYS with its value: the rest of the line, and the lines below that belong to it.
_BLOCK = re.compile(
    rb"^[\"']?(%s)[\"']?[ \t]*:([^\n]*(?:\n[ \t#-][^\n]*|\n\r?(?=\n))*)" % "|".join(KEYS).encode(), re.MULTILINE
)
_PLAIN = re.compile(rb"[ \t]*([\"']?)([A-Za-z_][\w.-]{2,})\1[ \t\r\n]*")  # a name that YAML reads as it stands
_NOT_NAMES = {"true", "false", "null", "yes", "off"}


@dataclass(frozen=True)
class StockEntry:
    """A task, a group or a tag of lm-eval.

    Attributes:
        kind: "task" (in Python, too), "group" or "tag".
        path: Its YAML; None for a tag.
        tagged: The tasks of a tag, in alphabetical order.
    """

    kind: str
    path: Path | None
    tagged: tuple[str, ...] = ()


class _Loader(yaml.CSafeLoader):
    """YAML that leaves lm-eval's functions unresolved."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def find_stock(name: str, *, task: str | None = None) -> StockEntry:
    """Returns what lm-eval ships under a name.

    Args:
        name: A task, a group or a tag.
        task: What our configuration calls it, for the error.

    Raises:
        ConfigError: lm-eval is not installed, or ships nothing of that name.
    """
    found = stock_index()
    if name not in found:
        raise ConfigError(f"task {task or name!r}: lm-eval has no stock task {name!r}: {did_you_mean(name, found)}")
    return found[name]


@functools.cache
def stock_index() -> Mapping[str, StockEntry]:
    """Returns every task, group and tag of the installed lm-eval by its name, as lm-eval's own index has them."""
    root = _tasks_folder()
    files = (path for path in root.glob("**/*.yaml") if "__pycache__" not in path.parts)
    found: dict[str, StockEntry] = {}
    tagged: dict[str, set[str]] = {}
    for path in sorted(files, key=lambda path: path.as_posix()):  # the first file of a name counts, as in lm-eval
        head = _head(path)
        kind = "task" if "class" in head else "group" if "group" in head else "task"
        name = head.get(kind)
        if isinstance(name, str) and name not in found:
            found[name] = StockEntry(kind, path)
            for tag in _names(head.get("tag")) if kind == "task" else ():
                if found.setdefault(tag, StockEntry("tag", None)).kind == "tag":
                    tagged.setdefault(tag, set()).add(name)
    return found | {tag: StockEntry("tag", None, tuple(sorted(names))) for tag, names in tagged.items()}


def _tasks_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError('lm_eval is not installed. Run: pip install "ffp[tasks]"')
    return Path(spec.submodule_search_locations[0]) / "tasks"


@functools.cache
def _head(path: Path) -> dict[str, Any]:
    """The keys of KEYS in a YAML file and in what it includes, without `include`."""
    own = {key.decode(): _value(text) for key, text in _BLOCK.findall(path.read_bytes())}
    found: dict[str, Any] = {}
    for other in _names(own.pop("include", None)):
        found |= _head(Path(os.path.normpath(path.parent / other)))
    return found | own


def _value(text: bytes) -> Any:
    plain = _PLAIN.fullmatch(text)
    if plain and (name := plain[2].decode()).lower() not in _NOT_NAMES:
        return name
    return yaml.load(b"key:" + text, _Loader)["key"]


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(name) for name in value or ()]


def members(name: str) -> set[str]:
    """Returns the names that lm-eval looks up to build a task or group: itself, and all that its groups name."""
    todo, seen = [name], set[str]()
    while todo:
        one = todo.pop()
        entry = stock_index().get(one)
        if entry is None or one in seen:  # a group may define a task of its own
            continue
        seen.add(one)
        todo += entry.tagged
        if entry.kind == "group" and entry.path:
            todo += _named(_head(entry.path).get("task"))
    return seen


def _named(value: Any) -> Iterator[str]:
    """Names of tasks and groups in the `task` of a group, whose items may be names or groups themselves."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            yield from (item[key] for key in ("task", "group") if isinstance(item.get(key), str))
            if isinstance(item.get("task"), list):
                yield from _named(item["task"])


def stock_body(name: str) -> dict[str, Any]:
    """Returns the YAML of a stock task or group with all that it includes, its functions as text; {} for a tag."""
    path = find_stock(name).path
    return _body(path) if path else {}


def _body(path: Path) -> dict[str, Any]:
    own: dict[str, Any] = yaml.load(path.read_bytes(), _Loader)
    found: dict[str, Any] = {}
    for other in _names(own.pop("include", None)):
        found |= _body(path.parent / other)
    return found | own


def shots(task: TaskConfig, body: Mapping[str, Any]) -> int:
    """Returns how many solved examples a task's prompts have: those that are asked for, else the stock task's own."""
    return int((body.get("num_fewshot") or 0) if task.num_fewshot is None else task.num_fewshot)


def is_installed() -> bool:
    """Returns whether lm-eval is installed, without importing it."""
    return importlib.util.find_spec("lm_eval") is not None


def check_tasks(tasks: TasksConfig) -> None:
    """Checks a set of tasks against the installed lm-eval, without their data.

    Raises:
        ConfigError: lm-eval is not installed or ships no such task, or a task cannot be asked as it is.
    """
    for name, task in tasks.tasks.items():
        entry = find_stock(task.stock, task=name)
        body = stock_body(task.stock) if entry.kind == "task" else {}
        if entry.kind != "task" and task.has_files:
            raise ConfigError(
                f"task {name!r}: {task.stock!r} is a {entry.kind}, for which one source of files cannot stand. "
                "Name one of its tasks, or give a folder of data sets with reader: dataset."
            )
        if entry.kind == "group" and name != task.stock:
            raise ConfigError(
                f"task {name!r}: {task.stock!r} is a group, which keeps its name. Call it {task.stock!r}."
            )
        if body.get("num_fewshot") == 0 and task.num_fewshot:
            raise ConfigError(
                f"task {name!r}: {task.stock!r} is fixed to 0 examples in lm-eval. Leave num_fewshot out."
            )
        if task.gen_kwargs and entry.kind == "task" and body.get("output_type") not in (None, "generate_until"):
            raise ConfigError(f"task {name!r}: {task.stock!r} generates nothing. Leave gen_kwargs out.")
        given = task.fewshot or (body.get("fewshot_config") or {}).get("samples")
        if task.has_files and shots(task, body) and not given:
            raise ConfigError(
                f"task {name!r} is {shots(task, body)}-shot, and its source has one split, which is scored. Give other "
                "documents as fewshot, or set num_fewshot: 0."
            )
    _check_apart(tasks)


def _check_apart(tasks: TasksConfig) -> None:
    """Raises ConfigError where two tasks of a set have a task of lm-eval in common: it keeps one score by that name."""
    owners: dict[str, str] = {}
    for name, task in tasks.tasks.items():
        for one in sorted({name} if task.has_files else members(task.stock)):
            if owners.setdefault(one, name) != name:
                raise ConfigError(
                    f"tasks {owners[one]!r} and {name!r} both ask {one!r}, of which lm-eval keeps one score. Leave one "
                    "of them out, or give it to a grid of its own."
                )


def stub(name: str) -> dict[str, Any]:
    """Returns a YAML that stands for a stock task or group elsewhere: it includes the shipped one."""
    return {"include": str(find_stock(name).path)}


def stubs(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns the YAML files, by name, from which lm-eval can build stock tasks and groups without its own index."""
    wanted = sorted(set().union(*(members(name) for name in names)))
    return {name: stub(name) for name in wanted if stock_index()[name].path}
