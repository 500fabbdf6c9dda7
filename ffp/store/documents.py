"""Reads the documents of a fetched text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ffp.core.errors import ArtifactError
from ffp.core.json_lines import parse_line


def json_lines(path: Path) -> list[str]:
    """Returns the lines of a JSONL file; a document may hold U+2028, where str.splitlines would cut it."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def json_rows(path: Path) -> list[Any]:
    """Returns the rows of a JSONL file, whose lines end as those of json_lines do.

    Raises:
        ValueError: A line is damaged; the message names it.
    """
    lines = path.read_bytes().split(b"\n")
    return [parse_line(line, number) for number, line in enumerate(lines, 1) if line.strip()]


def read_documents(path: Path) -> list[str]:
    """Returns the documents of a JSONL file in the file's order.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        found = [str(row["text"]) for row in json_rows(path)]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Run `ffp asset text` for it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. Delete its folder and run `ffp asset text` again.") from error
    if not found:
        raise ArtifactError(f"{path} is damaged: it is empty. Delete its folder and run `ffp asset text` again.")
    return found
