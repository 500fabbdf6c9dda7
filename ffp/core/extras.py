"""Packages that only a part of ffp needs, and that an extra of its installation brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ffp.core.errors import ConfigError


@contextmanager
def needs(extra: Literal["grid", "llama-cpp", "recover", "tasks"]) -> Iterator[None]:
    """Holds imports of packages that this extra brings.

    Raises:
        ConfigError: One of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f'{error.name} is not installed. Run: pip install "ffp[{extra}]"') from error
