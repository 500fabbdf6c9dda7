"""Reads JSONL: rows, whose faults name the line of the file, and the documents of a fetched text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ffp.core.errors import ArtifactError

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair that stands for one character; alone it is none
ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # what stands in JSON for one


def parse_line(line: bytes, number: int) -> Any:
    """Returns what a line of a JSONL file holds.

    Args:
        line: The line, in UTF-8.
        number: Of the line in its file, from 1.

    Raises:
        ValueError: It is no UTF-8 or no JSON, or it has half of a surrogate pair, which no file can hold; the message
            names the line, and the column of what is no JSON.
    """
    try:
        text = line.decode("utf-8")
        found = json.loads(text.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"line {number} is no utf-8 at byte {error.start + 1}: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON at column {error.colno}: {error.msg}") from error
    if ESCAPED.search(text) and (half := SURROGATE.search(json.dumps(found, ensure_ascii=False))):
        raise ValueError(f"line {number} has {half[0]!a}, half of a surrogate pair, which is no character")
    return found


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
