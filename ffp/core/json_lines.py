"""Rows of JSONL: a fault names the line of the file, which the json module does not know."""

from __future__ import annotations

import json
from typing import Any


def parse_line(line: str | bytes, number: int) -> Any:
    """Returns what a line of a JSONL file holds.

    Args:
        line: The line; bytes are UTF-8.
        number: Of the line in its file, from 1.

    Raises:
        ValueError: It is no UTF-8 or no JSON; the message names line and column.
    """
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        return json.loads(text.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"line {number} is no utf-8 at byte {error.start + 1}: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON at column {error.colno}: {error.msg}") from error
