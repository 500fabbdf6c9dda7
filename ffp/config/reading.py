"""A YAML file as a checked section: no unknown or repeated keys, no aliases, one line for what is wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
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

from ffp.allocators.base import MAX_SEED
from ffp.config.faults import PATTERNS, first_fault
from ffp.core.blocks import check_blocks
from ffp.core.errors import ConfigError
from ffp.core.plain import fault_of_path, one_line


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
