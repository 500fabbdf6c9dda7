"""JSON schemas of all YAML files, for completion and checks in an editor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffp.allocators import METHODS
from ffp.config.assets import ModelConfig, TasksConfig, TextConfig
from ffp.config.grid import GridConfig
from ffp.config.published import PublishedConfig
from ffp.config.reading import Strict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PARTS: Mapping[str, type[Strict]] = {
    "grid": GridConfig,
    "model": ModelConfig,
    "text": TextConfig,
    "tasks": TasksConfig,
    "published": PublishedConfig,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Returns the JSON schema of each kind of file; the grid's knows the hyper-parameters of all built-in methods."""
    found = {name: {"$schema": DIALECT, **part.model_json_schema()} for name, part in PARTS.items()}
    _describe_methods(found["grid"])
    return found


def _describe_methods(grid: dict[str, Any]) -> None:
    """Says which hyper-parameters stand under `params` of a variant, by its `use` or else by its own name."""
    definitions, variants = grid["$defs"], grid["properties"]["variants"]
    variant = definitions["MethodConfig"]
    variant["allOf"], variants["properties"] = [], {}
    for name, method in METHODS.items():
        if method.__module__.startswith("ffp."):
            definitions[name] = {**method.model_json_schema(), "description": f"{method.summary} ({method.citation})"}
            params = {"properties": {"params": {"$ref": f"#/$defs/{name}"}}}
            named = {"properties": {"use": {"const": name}}, "required": ["use"]}
            variant["allOf"].append({"if": named, "then": params})
            variants["properties"][name] = {"if": {"not": {"required": ["use"]}}, "then": params}
