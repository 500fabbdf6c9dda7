"""Reads the documents of a fetched text."""

from __future__ import annotations

import json
from pathlib import Path

from ffp.core.errors import ArtifactError


def json_lines(path: Path) -> list[str]:
    """Returns the lines of a JSONL file; a document may hold U+2028, where str.splitlines would cut it."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_documents(path: Path) -> list[str]:
    """Returns the documents of a JSONL file in the file's order.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        found = [str(json.loads(line)["text"]) for line in json_lines(path)]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Run `ffp asset text` for it.") from error
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. Delete its folder and run `ffp asset text` again.") from error
    if not found:
        raise ArtifactError(f"{path} is damaged: it is empty. Delete its folder and run `ffp asset text` again.")
    return found
