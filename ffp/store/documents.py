"""Reads the documents of a fetched text."""

from __future__ import annotations

import json
from pathlib import Path

from ffp.core.errors import ArtifactError


def read_documents(path: Path) -> list[str]:
    """Returns the documents of a JSONL file in the file's order.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        return [str(json.loads(line)["text"]) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Run `ffp asset text` for it.") from error
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. Delete its folder and run `ffp asset text` again.") from error
