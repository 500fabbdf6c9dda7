"""A YAML file as a checked section: no unknown or repeated keys, no aliases, one line for what is wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)  # fmt: skip
from pydantic_core import ErrorDetails

from ffp.allocators.base import MAX_SEED
from ffp.core.blocks import check_blocks
from ffp.core.errors import ConfigError
from ffp.core.plain import fault_of_path, one_line
from ffp.core.suggest import did_you_mean

PATTERNS: dict[str, str] = {}  # what each pattern asks for in words, for errors


def like(pattern: str, words: str, *, max_length: int | None = None) -> StringConstraints:
    """Returns the constraint of a text to a pattern.

    Args:
        pattern: A regular expression of the whole text.
        words: What an error says of a text that does not match.
        max_length: Characters that it has at most.
    """
    PATTERNS[pattern] = words
    return StringConstraints(pattern=pattern, max_length=max_length)


Name = Annotated[
    str,
    like(
        r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        "not a name: 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit",
    ),
]
Sha256 = Annotated[str, like(r"^[0-9a-f]{64}$", "not a SHA-256: 64 of the digits 0 to 9 and a to f")]
Count = Annotated[int, Field(ge=1)]
Context = Annotated[int, Field(ge=2)]  # tokens of a window, of which the first one is never predicted
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


Title = Annotated[str, AfterValidator(one_line)]  # free text that is shown to readers


def _is_path(path: str) -> str:
    if fault := fault_of_path(path):
        raise ValueError(f"a folder of the workflow {fault}. Give it another name")
    if path.startswith("~"):
        raise ValueError("~ stands for no folder in a workflow. Write the path out")
    return path


WorkflowPath = Annotated[str, AfterValidator(_is_path)]


def _names_blocks(text: Any) -> Any:
    if not isinstance(text, str):  # YAML reads 3 as a number, and 1:30 as 90
        raise ValueError("not a text. Put it in quotes")
    try:
        check_blocks(text)
    except ConfigError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return text


def _of_entry(name: Any, check: ValidatorFunctionWrapHandler, *, kind: str) -> Any:
    try:
        return check(name)
    except ValidationError as error:
        if error.errors()[0]["type"] != "string_pattern_mismatch":
            raise
        raise ValueError(
            f"a name of a file in config/{kind}/ is wanted. Write config/{kind}/NAME.yaml with that as its source, "
            "as docs/extend.md shows, and give its NAME"
        ) from error


def entry_name(kind: str) -> WrapValidator:
    """Returns what makes a Name the name of an entry of config/KIND/: the error says where the entry is written."""
    return WrapValidator(partial(_of_entry, kind=kind))


def is_none(value: object) -> bool:
    """Returns whether a key was not given: it is left out of files then, so that older ones stay as they were."""
    return value is None


KeepBlocks = Annotated[str, BeforeValidator(_names_blocks)]
MAX_YAML_BYTES = 1_000_000
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


class Strict(BaseModel):
    """Base of every section: no unknown keys, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hint: ClassVar[str] = ""  # added to the error about an unknown key

    @model_validator(mode="before")
    @classmethod
    def _count_no_truth(cls, given: Any) -> Any:
        """Hands yes and no on as texts where numbers are wanted: Python takes them for 1 and 0."""
        if not isinstance(given, Mapping):
            return given
        numbers = {field.alias or name for name, field in cls.model_fields.items() if _is_number(field.annotation)}
        return {key: _without_truth(value) if key in numbers else value for key, value in given.items()}


def _is_number(annotation: Any) -> bool:
    kinds = set(_kinds(annotation))
    return bool(kinds & {int, float}) and not kinds & {bool, Any}


def _without_truth(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_truth(each) for each in value]
    return str(value) if isinstance(value, bool) else value


def _kinds(annotation: Any) -> list[Any]:
    """All types in a field's type, e.g. that of the values of a mapping."""
    own = [annotation] if isinstance(annotation, type) or annotation is Any else []
    return own + [kind for part in get_args(annotation) for kind in _kinds(part)]


S = TypeVar("S", bound=Strict)


class _UniqueLoader(yaml.SafeLoader):
    """YAML without aliases (they can blow a small file up) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} appears twice")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Reads a number; YAMLError where YAML 1.1 takes it for another one, as 90 for 1:30 and 8 for 010."""
        text, is_whole = str(node.value), node.tag == "tag:yaml.org,2002:int"
        value: int | float = self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        if ":" in text or (is_whole and _OCTAL.fullmatch(text)):
            raise yaml.YAMLError(f"{text} is the number {value} in YAML. Write {value}, or put {text} in quotes")
        return value


for _kind in ("int", "float"):
    _UniqueLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _UniqueLoader.construct_number)


def _load(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ConfigError if it is missing, too large, or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"config file {path} cannot be read: {reason}. Give an existing YAML file.") from error
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(f"config file {path} has {len(text)} characters, over {MAX_YAML_BYTES}. Make it smaller.")
    try:
        stream = io.StringIO(text)
        stream.name = str(path)  # errors name it
        body = yaml.load(stream, _UniqueLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if body is None:
        raise ConfigError(f"config file {path} is empty. Write its keys, as the files beside it have them.")
    if not isinstance(body, dict):
        raise ConfigError(f"config file {path} holds a {type(body).__name__}, not a mapping of keys.")
    return body


def percent(share: float) -> str:
    """Returns what to write instead of a share that was meant as per cent, to end an error; "" if it was not."""
    return f". Write {share / 100:g} for {share:g} %" if 1 < share <= 100 else ""


def fault_of_share(share: float) -> str:
    """Returns what is wrong with a share of parameters to remove, and what to write instead; "" if nothing is."""
    return "" if 0 < share < 1 else f"a share is in (0, 1){percent(share)}"


def read_part(shape: type[S], path: Path) -> S:
    """Reads a config file as a checked section.

    Args:
        shape: Class of the section.
        path: A YAML file.

    Raises:
        ConfigError: One line that names the file, the key and the remedy.
    """
    body = _load(path)
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error, shape)}") from error


def first_fault(error: ValidationError, shape: type[Strict]) -> str:
    """Returns one line for the first fault: the key, its value, what is wrong, near matches for an unknown key."""
    fault, *others = error.errors()
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return _unknown(fault, shape)
    if fault["type"] == "missing":
        beside = [
            each for each in others if each["type"] == "extra_forbidden" and each["loc"][:-1] == fault["loc"][:-1]
        ]
        return f"key {where!r} is missing" + (f", and there is an {_unknown(beside[0], shape)}" if beside else ".")
    return f"{where} = {str(fault['input'])[:80]!r}: {_in_words(fault)}." if where else f"{_in_words(fault)}."


def _unknown(fault: ErrorDetails, shape: type[Strict]) -> str:
    """A key that no section has, with near matches."""
    sections = _sections(shape, fault["loc"][:-1])
    known = {field.alias or name for section in sections for name, field in section.model_fields.items()}
    hints = "".join(f" {section.hint}" for section in sections if section.hint)
    where = ".".join(str(part) for part in fault["loc"])
    return f"unknown key {where!r}: {did_you_mean(str(fault['loc'][-1]), known)}{hints}"


def _in_words(fault: ErrorDetails) -> str:
    """What is wrong with a value, in plain words where pydantic speaks of Python's types and patterns."""
    given = fault.get("ctx", {})
    if fault["type"] == "tuple_type" and isinstance(fault["input"], str | int | float):
        return f"a list is wanted, such as [{fault['input']}]"
    if fault["type"] == "tuple_type":
        return "a list is wanted, such as [a, b]"
    if fault["type"] == "string_type":
        return "not a text" + (". Put it in quotes" if isinstance(fault["input"], bool | int | float | date) else "")
    if fault["type"] == "float_parsing" and (share := _PERCENT.fullmatch(fault["input"])):
        return f"not a number. Write {float(share[1]) / 100:g} for {float(share[1]):g} %"
    if fault["type"] in ("int_parsing", "float_parsing") and fault["input"] in ("True", "False"):
        return "not a number. YAML reads yes, on and true as True, and no, off and false as False"
    if fault["type"] == "too_short" and not given["actual_length"]:
        return f"the list is empty, and needs at least {given['min_length']} item"
    if fault["type"] == "string_pattern_mismatch":
        return PATTERNS.get(given["pattern"], fault["msg"])
    return re.sub(r"^Value error, ", "", fault["msg"])


def _sections(shape: type[Strict], keys: Sequence[int | str]) -> list[type[Strict]]:
    """The classes that the section under these keys may have; names of a mapping and indices count for nothing."""
    found = [shape]
    for key in keys:
        fields = [section.model_fields[str(key)] for section in found if str(key) in section.model_fields]
        found = [section for field in fields for section in _kinds(field.annotation) if _is_section(section)] or found
    return found


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Strict)
