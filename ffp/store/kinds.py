"""The kinds of files that ffp writes: JSON and safetensors with their schemas' tags, and tables as parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from ffp.core.errors import ArtifactError
from ffp.store.files import read_header, read_json, read_table, read_tensors, write_json, write_table, write_tensors

Arrays = Mapping[str, npt.NDArray[Any]]


class Part(BaseModel):
    """Base of everything that stands in a file: no unknown keys, unchanged after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JsonFile(Part):
    """A JSON file with a schema tag."""

    tag: ClassVar[str]
    older_tags: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, path: Path, *, sealed: bool = False) -> Self:
        """Reads and checks a file.

        Args:
            path: The file.
            sealed: Refuse a file without a checksum too.

        Raises:
            ArtifactError: It is missing, damaged, of another schema, or lacks what its schema promises.
        """
        tag, body = read_json(path, (cls.tag, *cls.older_tags), sealed=sealed)
        try:
            return cls.model_validate(body if tag == cls.tag else cls.upgrade(body))
        except (ValidationError, LookupError, TypeError) as error:
            raise ArtifactError(f"{path} {_broken_promise(error)}. Delete it and run the rule again.") from error

    @classmethod
    def read_if_there(cls, path: Path) -> Self | None:
        """Reads a file, or returns None where there is none."""
        return cls.read(path) if path.exists() else None

    @classmethod
    def upgrade(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the content of a file of an older tag as today's tag has it."""
        return body

    def write(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        write_json(path, self.tag, self.model_dump(mode="json"))


M = TypeVar("M", bound=Part)


@dataclass(frozen=True)
class TensorFile(Generic[M]):
    """The description of a safetensors file: numpy arrays, and a model of its metadata.

    Attributes:
        tag: The schema's tag.
        origin: Class of the metadata.
    """

    tag: str
    origin: type[M]

    def read(self, path: Path, *, sealed: bool = False) -> tuple[dict[str, npt.NDArray[Any]], M]:
        """Reads (arrays, metadata); ArtifactError as JsonFile.read raises it."""
        arrays, meta = read_tensors(path, self.tag, sealed=sealed)
        return arrays, self._origin(path, meta)

    def read_origin(self, path: Path) -> M:
        """Reads the metadata alone, unchecked by the file's checksum; ArtifactError as JsonFile.read raises it."""
        return self._origin(path, read_header(path, self.tag)[0])

    def read_seal(self, path: Path) -> str | None:
        """Reads the checksum that a file holds of its content, without reading that; None in an older file."""
        return read_header(path, self.tag)[1]

    def _origin(self, path: Path, meta: dict[str, Any]) -> M:
        try:
            return self.origin.model_validate(meta)
        except ValidationError as error:
            raise ArtifactError(f"{path} {_broken_promise(error)}. Delete it and run the rule again.") from error

    def write(self, path: Path, arrays: Arrays, origin: M) -> None:
        """Writes the file whole or not at all."""
        write_tensors(path, self.tag, arrays, origin.model_dump(mode="json"))


@dataclass(frozen=True)
class TableFile:
    """The description of a parquet file: its columns."""

    columns: tuple[str, ...]

    def read(self, path: Path, *, sealed: bool = True) -> Any:
        """Reads a DataFrame, always by its checksums; ArtifactError if it is missing, damaged or lacks a column."""
        table = read_table(path)
        if lost := [name for name in self.columns if name not in table.columns]:
            raise ArtifactError(f"{path} lacks its column {lost[0]}. Delete it and run the rule again.")
        return table

    def write(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the file whole or not at all."""
        write_table(path, list(rows), list(self.columns))


def _broken_promise(error: Exception) -> str:
    """One line for the first fault of a file that its schema does not accept."""
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"lacks what its schema promises: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return f"lacks what its schema promises: {error!r}"
