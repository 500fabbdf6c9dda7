"""Rows of JSONL: a fault names the line of the file, which the json module does not know."""

from __future__ import annotations

import json
import re
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair that stands for one character; alone it is none
ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # what stands in JSON for one


def parse_line(line: str | bytes, number: int) -> Any:
    """Returns what a line of a JSONL file holds.

    Args:
        line: The line; bytes are UTF-8.
        number: Of the line in its file, from 1.

    Raises:
        ValueError: It is no UTF-8 or no JSON, or it has half of a surrogate pair, which no file can hold; the message
            names the line, and the column of what is no JSON.
    """
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        found = json.loads(text.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"line {number} is no utf-8 at byte {error.start + 1}: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON at column {error.colno}: {error.msg}") from error
    if ESCAPED.search(text) and (half := SURROGATE.search(json.dumps(found, ensure_ascii=False))):
        raise ValueError(f"line {number} has {half[0]!a}, half of a surrogate pair, which is no character")
    return found
