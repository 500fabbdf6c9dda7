"""The page keys.md, made while the site is built: every key of the YAML files, from the schemas that editors use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ffp.config.schema import schemas

Schema = Mapping[str, Any]
FILES = {
    "grid": "A grid: `config/grids/NAME.yaml`",
    "model": "A model: `config/models/NAME.yaml`",
    "text": "A text: `config/texts/NAME.yaml`",
    "tasks": "A set of tasks: `config/tasks/NAME.yaml`",
    "published": "Published numbers: `config/published.yaml`",
}
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the page."""
    files.append(File.generated(config, "keys.md", content=keys_page()))
    return files


def keys_page() -> str:
    """Returns a table for each file, and for each section in it."""
    parts = [
        "# Every key\n\nWhich keys may a YAML file have, and what do they mean? An empty default means that the key "
        "has to be there. Hyper-parameters, which stand under `params`, are on the [method's page](methods/index.md)."
    ]
    shown: set[str] = set()
    for name, schema in schemas().items():
        parts += [f"## {FILES[name]}", *_sections(schema, schema.get("$defs", {}), "", shown)]
    return "\n\n".join(parts) + "\n"


def _sections(schema: Schema, definitions: Schema, path: str, shown: set[str]) -> Iterator[str]:
    """The table of a section, then those of the sections in it that no other file has shown."""
    rows, inner = ["| key | value | default | meaning |", "|---|---|---|---|"], []
    for key, field in schema["properties"].items():
        value, default = field.get("default"), "-"
        if key in schema.get("required", ()):
            default = ""
        elif value is not None and not isinstance(value, Mapping):
            default = f"`{', '.join(f'{v}' for v in value)}`" if isinstance(value, list) and value else f"`{value}`"
        rows.append(f"| `{key}` | {_kind(field, definitions)} | {default} | {field.get('description', '')} |")
        inner += [(f"{path}{key}{suffix}", name) for suffix, name in _references(field, definitions)]
    yield "\n".join(rows)
    for where, name in inner:
        if name not in shown:
            shown.add(name)
            yield f"### `{where}`"
            yield definitions[name].get("description", "")
            yield from _sections(definitions[name], definitions, f"{where}.".replace(" ", ""), shown)


def _references(field: Schema, definitions: Schema) -> Iterator[tuple[str, str]]:
    """(what follows the key, name of the definition) of each section in a field."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        if "properties" in definitions[name]:
            kind = definitions[name]["properties"].get("kind", {}).get("const")
            yield (f" ({kind})" if kind else "", name)
    for each in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _references(each, definitions)
    for values, suffix in ((field.get("items"), "[]"), (_values(field), ".NAME")):
        if values:
            yield from ((f"{suffix}{rest}", name) for rest, name in _references(values, definitions))


def _values(field: Schema) -> Schema | None:
    """The schema of the values of a mapping whose keys are free."""
    values = next(iter(field.get("patternProperties", {}).values()), field.get("additionalProperties"))
    return values if isinstance(values, Mapping) else None


def _kind(field: Schema, definitions: Schema) -> str:
    """What a value may be, in words."""
    if "$ref" in field:
        target = definitions[field["$ref"].rpartition("/")[2]]
        return "section" if "properties" in target else _kind(target, definitions)
    if choices := field.get("enum") or ([field["const"]] if "const" in field else None):
        return ", ".join(f"`{choice}`" for choice in choices)
    if either := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(each, definitions) for each in either if each.get("type") != "null"))
    if field.get("type") == "array":
        return f"list of: {_kind(field['items'], definitions)}" if "items" in field else "list"
    if field.get("type") == "object" or "type" not in field:
        return f"names, each with: {_kind(values, definitions)}" if (values := _values(field)) else "any"
    return " ".join([WORDS[field["type"]], *(f"{word} {field[key]:g}" for key, word in LIMITS.items() if key in field)])
