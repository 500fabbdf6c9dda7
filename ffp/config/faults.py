"""One line for what is wrong with a section: the key as it was written, its value, and plain words."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from ffp.core.suggest import did_you_mean

PATTERNS: dict[str, str] = {}  # what each pattern asks for in words
KEY = "[key]"  # stands in pydantic's place of a fault after a key that is wrong itself
NO_KEYS = ("dict_type", "model_type", "model_attributes_type")
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
Section = type[BaseModel]


def first_fault(error: ValidationError, shape: Section) -> str:
    """Returns one line for the first fault: the key, its value, what is wrong, near matches for an unknown key.

    Args:
        error: What pydantic found.
        shape: The section's class.
    """
    fault, *others = error.errors()
    where, kind = _where(shape, fault), fault["type"]
    if kind == "extra_forbidden":
        return _unknown(fault, shape)
    if kind == "missing":
        beside = [
            each for each in others if each["type"] == "extra_forbidden" and each["loc"][:-1] == fault["loc"][:-1]
        ]
        return f"key {where!r} is missing" + (f", and there is an {_unknown(beside[0], shape)}" if beside else ".")
    if kind == "union_tag_not_found":
        return f"key {f'{where}.{_discriminator(fault)}'!r} is missing. Give one of {_tags(shape, fault)}."
    if kind == "union_tag_invalid":
        tag = str(fault["ctx"]["tag"])[:80]
        return f"{where}.{_discriminator(fault)} = {tag!r}: {did_you_mean(tag, _tags(shape, fault).split(', '))}"
    if fault["loc"][-1:] == (KEY,):
        return _wrong_key(fault, where)
    return f"{where} = {str(fault['input'])[:80]!r}: {_in_words(fault, shape)}." if where else f"{_in_words(fault)}."


def _unknown(fault: ErrorDetails, shape: Section) -> str:
    """A key that no section has, with near matches."""
    sections = _sections(_follow(shape, fault["loc"][:-1])[1])
    known = {field.alias or name for section in sections for name, field in section.model_fields.items()}
    hints = "".join(f" {hint}" for section in sections if (hint := getattr(section, "hint", "")))
    return f"unknown key {_where(shape, fault)!r}: {did_you_mean(str(fault['loc'][-1]), known)}{hints}"


def _wrong_key(fault: ErrorDetails, where: str) -> str:
    """A key of a mapping whose keys are names, or a few words."""
    if fault["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        return f"unknown key {where!r}: {did_you_mean(str(fault['input']), known)}"
    return f"key {where[:80]!r}: {_in_words(fault)}."


def _in_words(fault: ErrorDetails, shape: Section | None = None) -> str:
    """What is wrong with a value, in plain words where pydantic speaks of Python's types and patterns."""
    kind, value, given = fault["type"], fault["input"], fault.get("ctx", {})
    if kind in NO_KEYS:
        return "no key stands below it. Write some, or leave it out" if value is None else _keys_wanted(fault, shape)
    if kind == "tuple_type" and isinstance(value, str | int | float):
        return f"a list is wanted, such as [{value}]"
    if kind == "tuple_type":
        return "a list is wanted, such as [a, b]"
    if kind == "string_type":
        return "not a text" + (". Put it in quotes" if isinstance(value, bool | int | float | date) else "")
    if kind == "float_parsing" and (share := _PERCENT.fullmatch(value)):
        return f"not a number. Write {float(share[1]) / 100:g} for {float(share[1]):g} %"
    if kind in ("int_parsing", "float_parsing") and value in ("True", "False"):
        return "not a number. YAML reads yes, on and true as True, and no, off and false as False"
    if kind == "too_short" and not given["actual_length"]:
        return f"the list is empty, and needs at least {given['min_length']} item"
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(given["pattern"], fault["msg"])
    return re.sub(r"^Value error, ", "", fault["msg"])


def _keys_wanted(fault: ErrorDetails, shape: Section | None) -> str:
    """What stands where a section or a mapping has to."""
    sections = _sections(_follow(shape, fault["loc"])[1]) if shape else []
    if not sections or shape is None:
        return "keys with values are wanted, such as {a: b}"
    if sections[1:]:
        return f"keys with values are wanted, first of all kind, which is one of {_tags(shape, fault)}"
    fields = sections[0].model_fields
    needed = [field.alias or name for name, field in fields.items() if field.is_required()]
    return f"keys with values are wanted, such as {', '.join(needed or list(fields)[:3])}"


def _discriminator(fault: ErrorDetails) -> str:
    """The key by which one of several sections is chosen."""
    return str(fault["ctx"]["discriminator"]).strip("'")


def _tags(shape: Section, fault: ErrorDetails) -> str:
    """The values of that key."""
    return ", ".join(tag for inside in _follow(shape, fault["loc"])[1] for tag, _ in _options(inside) if tag)


def _where(shape: Section, fault: ErrorDetails) -> str:
    """The keys and indices that lead to a fault, as they were written."""
    return ".".join(map(str, _follow(shape, fault["loc"])[0]))


def _follow(shape: Section, loc: Sequence[int | str]) -> tuple[list[int | str], list[Any]]:
    """Follows the place of a fault through a section's types.

    Returns:
        The keys and indices in it, without what pydantic puts in between: which of several types it took a value for,
        and that a key itself is meant. Then the types that are allowed there.
    """
    keys, inside = list[int | str](), [shape]
    for part in loc:
        options = [option for each in inside for option in _options(each)]
        chosen = [kind for tag, kind in options if tag == part]
        inside = chosen or [child for _, kind in options for child in _children(kind, part)]
        keys += [] if chosen or part == KEY else [part]
    return keys, inside


def _options(annotation: Any) -> list[tuple[str | None, Any]]:
    """The types that an annotation allows, each with the tag by which pydantic chooses it from others."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        tag = next((part.tag for part in parts if isinstance(part, Tag)), None)
        return [(tag, parts[0])] if tag else _options(parts[0])
    if origin in (Union, types.UnionType):
        return [option for part in parts for option in _options(part)]
    if _is_section(annotation) and "kind" in annotation.model_fields:
        kind = annotation.model_fields["kind"].annotation
        return [(get_args(kind)[0] if get_origin(kind) is Literal else None, annotation)]
    return [(None, annotation)]


def _children(kind: Any, part: int | str) -> list[Any]:
    """The types of what stands under a key or an index."""
    if _is_section(kind):
        return [field.annotation for name, field in kind.model_fields.items() if part in (name, field.alias)]
    origin, parts = get_origin(kind), get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [parts[1]]
    return [each for each in parts if each is not Ellipsis] if origin is tuple else []


def _sections(inside: Sequence[Any]) -> list[Section]:
    """The sections among types."""
    kinds = [kind for each in inside for _, kind in _options(each)]
    return [kind for kind in kinds if _is_section(kind)]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
