"""Methods by name: one file each in `heuristics/` and `searches/`, and those that other packages install.

A built-in method is found because its file is there. Another package offers one through the entry-point group
`ffp.allocators`, whose values are the classes:

    [project.entry-points."ffp.allocators"]
    by-size = "my_package.by_size:BySize"

Importing this package does not import torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ffp.allocators.base import Heuristic, Method, Search
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean

__all__ = [
    "METHODS",
    "Heuristic",
    "Method",
    "ParameterError",
    "Search",
    "accepted",
    "create",
    "find",
    "is_search",
    "list_methods",
    "package_of",
    "reads_weights",
]
GROUP = "ffp.allocators"
DECLARED = ("name", "version", "summary", "citation")


class ParameterError(ConfigError):
    """A hyper-parameter that the method does not have, or a value that it does not accept.

    Attributes:
        key: Name of the hyper-parameter; empty where several do not go together.
    """

    def __init__(self, message: str, key: str):
        super().__init__(message)
        self.key = key


def discover() -> dict[str, type[Method]]:
    """Returns all methods: built-in heuristics, built-in searches, then those of other packages, each by name.

    Raises:
        ConfigError: A package's method cannot be loaded, is no method, or has the name of another one.
    """
    found: dict[str, type[Method]] = {}
    for folder in ("heuristics", "searches"):
        found |= sorted((method.name, method) for method in _built_in(folder))
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        method = _load(entry)
        if method.name in found:
            taken = found[method.name].__module__
            raise ConfigError(f"{_package(entry)} names its method {method.name!r}, which {taken} has. Rename it.")
        found[method.name] = method
    return found


def _built_in(folder: str) -> Iterator[type[Method]]:
    for file in pkgutil.iter_modules([str(Path(__file__).parent / folder)]):
        module = importlib.import_module(f"{__name__}.{folder}.{file.name}")
        yield from (each for each in vars(module).values() if _is_method(each) and each.__module__ == module.__name__)


def _is_method(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Heuristic | Search) and not inspect.isabstract(value)


def _load(entry: EntryPoint) -> type[Method]:
    try:
        method = entry.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{_package(entry)} offers the method {entry.name!r}, but {entry.value} cannot be imported: {reason}. "
            "Repair or uninstall the package."
        ) from error
    lacking = [each for each in DECLARED if not isinstance(getattr(method, each, None), str)]
    if lacking or not _is_method(method):
        wrong = f"has no {lacking[0]}" if lacking else "is no complete Heuristic or Search"
        raise ConfigError(f"{_package(entry)}: {entry.value} {wrong}. Repair or uninstall the package.")
    loaded: type[Method] = method
    return loaded


def _package(entry: EntryPoint) -> str:
    return f"package {entry.dist.name if entry.dist else entry.module!r}"


class _Methods(Mapping[str, type[Method]]):
    """All methods by name, found at first use, so that a broken package is reported to whoever asks for a method."""

    @functools.cached_property
    def _found(self) -> dict[str, type[Method]]:
        return discover()

    def __getitem__(self, name: str) -> type[Method]:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


METHODS: Mapping[str, type[Method]] = _Methods()


def list_methods() -> list[str]:
    """Returns the names of all methods: heuristics, searches, then those of other packages."""
    return list(METHODS)


def find(name: str) -> type[Method]:
    """Returns the method of that name.

    Raises:
        ConfigError: There is none; the line gives near matches.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}: {did_you_mean(name, METHODS)}")
    return METHODS[name]


def is_search(method: type[Method]) -> bool:
    """Returns whether a method scores candidates, so that it needs a reward and draws from a seed."""
    return issubclass(method, Search)


def reads_weights(method: type[Method]) -> bool:
    """Returns whether a method needs the model's weights; some heuristics answer from the sizes of its modules."""
    return not issubclass(method, Heuristic) or method.reads_weights


def package_of(method: type[Method]) -> str:
    """Returns the package that a method comes from: "ffp", or the installed one whose entry point offers it."""
    others = (entry for entry in entry_points(group=GROUP) if entry.load() is method)
    return next((entry.dist.name for entry in others if entry.dist), "ffp")


def create(name: str, params: Mapping[str, Any]) -> Method:
    """Returns the method with these hyper-parameters, and its defaults for the others.

    Raises:
        ConfigError: There is no such method.
        ParameterError: A hyper-parameter is unknown or its value is not accepted; one line, with near matches.
    """
    method = find(name)
    try:
        return method.model_validate(dict(params))
    except ValidationError as error:
        raise _refusal(method, error) from error


def accepted(method: type[Method], key: str) -> str:
    """Returns what a hyper-parameter may be, e.g. "a number from 0 to 0.5"."""
    schema = method.model_json_schema()["properties"][key]
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kinds = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a text"}
    kind = kinds.get(schema.get("type", ""), "a list" if schema.get("type") == "array" else "a valid value")
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    kind += f" from {low}" if low is not None else f" above {above}" if above is not None else ""
    if high is None and below is None:
        return f"{kind} up" if low is not None else kind
    return f"{kind} to {high}" if high is not None else f"{kind} below {below}"


def _refusal(method: type[Method], error: ValidationError) -> ParameterError:
    """The first fault of the hyper-parameters, in one line."""
    fault = error.errors()[0]
    key, value = ".".join(str(part) for part in fault["loc"]), fault["input"]
    if fault["type"] == "extra_forbidden":
        known = method.model_fields
        hint = did_you_mean(key, known) if known else "it has no parameters."
        return ParameterError(f"method {method.name!r} has no parameter {key!r}: {hint}", key)
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return ParameterError(f"method {method.name!r} {message}", "")
    if fault["type"] == "value_error":
        return ParameterError(f"method {method.name!r}: {key} = {value!r}: {message}", key)
    if fault["type"] == "missing":
        return ParameterError(f"method {method.name!r} needs the parameter {key!r}. Give it.", key)
    if fault["type"] == "literal_error":
        options = method.model_json_schema()["properties"][key].get("enum", [])
        hint = did_you_mean(str(value), options)
        return ParameterError(f"method {method.name!r}: {key} = {value!r} is not known: {hint}", key)
    limit = accepted(method, key) if len(fault["loc"]) == 1 else fault["msg"].removeprefix("Input should be ")
    shown = repr(value)[:80]
    return ParameterError(f"method {method.name!r}: {key} = {shown} is not {limit}. Correct it.", key)
