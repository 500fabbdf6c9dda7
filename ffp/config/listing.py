"""What a user can name: methods, their hyper-parameters, models, texts, tasks and granularities, one row each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ffp.allocators import METHODS, Method, accepted, is_search, package_of
from ffp.config.assets import AnySource, HubSource, ModelConfig, TextConfig, WheelPartsSource, WheelSource
from ffp.config.catalog import KINDS, Entry, Kind, entries
from ffp.config.reading import read_part
from ffp.core.errors import ConfigError
from ffp.core.problem import Granularity
from ffp.core.suggest import did_you_mean

Row = dict[str, str]
GRANULARITIES: Mapping[Granularity, str] = {
    "structured": "KV groups and FFN channels are cut out, so that the model becomes smaller and faster",
    "unstructured": "single weights become zero, and shapes stay; each linear has its own share",
    "n-of-4": "N of every 4 adjacent weights of a row become zero; each block has its own N",
    "n-of-8": "N of every 8 adjacent weights of a row become zero; each block has its own N",
}


def rows(kind: str) -> list[Row]:
    """Returns a row for each method, hyper-parameter, model, text, set of tasks or granularity.

    Args:
        kind: A key of LISTS.

    Returns:
        The name and what belongs to it, by key. An entry whose file is wrong has the line that says so as its `error`.

    Raises:
        ConfigError: There is no such kind, or the method of another package cannot be loaded.
    """
    if kind not in LISTS:
        raise ConfigError(f"there is no list of {kind!r}: {did_you_mean(kind, LISTS)}")
    return LISTS[kind]()


def lines(found: Sequence[Row]) -> list[str]:
    """Returns a line for each row, in columns, without an entry's file and without a method's package if it is ffp."""
    table = [
        [text for key, text in row.items() if key != "file" and (key, text) != ("package", "ffp")] for row in found
    ]
    widths = defaultdict[int, int](int)
    for cells in table:
        for column, text in enumerate(cells[:-1]):
            widths[column] = max(widths[column], len(text))
    return ["  ".join(text.ljust(widths[column]) for column, text in enumerate(cells)).rstrip() for cells in table]


def _method(method: type[Method]) -> Row:
    kind = "search" if is_search(method) else "heuristic"
    about = {"kind": kind, "summary": method.summary, "citation": method.citation}
    return {"name": method.name, **about, "package": package_of(method)}


def _parameters(method: type[Method]) -> list[Row]:
    return [
        {
            "method": method.name,
            "name": name,
            "default": str(field.default),
            "accepts": accepted(method, name),
            "summary": field.description or "",
        }
        for name, field in method.model_fields.items()
    ]


def _entry(kind: Kind, name: str, file: Path) -> Row:
    try:
        entry: Entry = read_part(KINDS[kind], file)
    except ConfigError as error:
        return {"name": name, "error": str(error), "file": str(file)}
    return {"name": name, "title": entry.title, "source": ", ".join(dict.fromkeys(_origins(entry))), "file": str(file)}


def _origins(entry: Entry) -> list[str]:
    """Where each part of an entry comes from."""
    if isinstance(entry, ModelConfig):
        return [_origin(entry.source)]
    parts = entry.sources if isinstance(entry, TextConfig) else entry.tasks.values()
    return [_origin(part.source) if part.source else "hub, as lm-eval names it" for part in parts]


def _origin(source: AnySource) -> str:
    if isinstance(source, WheelPartsSource):
        names = [f"{part.package} {part.version}" for part in source.parts]
        return f"wheels {names[0]} to {names[-1]}"
    if isinstance(source, WheelSource):
        return f"wheel {source.package} {source.version}"
    return f"{source.kind} {source.repo if isinstance(source, HubSource) else source.path}"


def _entries(kind: Kind) -> list[Row]:
    return [_entry(kind, name, file) for name, file in entries(kind).items()]


LISTS: Mapping[str, Callable[[], list[Row]]] = {
    "methods": lambda: [_method(method) for method in METHODS.values()],
    "parameters": lambda: [row for method in METHODS.values() for row in _parameters(method)],
    "models": partial(_entries, "models"),
    "texts": partial(_entries, "texts"),
    "tasks": partial(_entries, "tasks"),
    "granularities": lambda: [{"name": name, "summary": summary} for name, summary in GRANULARITIES.items()],
}
