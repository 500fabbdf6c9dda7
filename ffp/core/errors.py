"""Errors that a user can correct. Each says what is wrong, its value, the limit and the remedy, in one line."""

from __future__ import annotations

import errno
import re
from numbers import Integral
from typing import Any

# What torch, CUDA, cuBLAS, safetensors and numpy say where an allocation fails; they share no type of error.
NO_MEMORY = re.compile(r"out of memory|not enough memory|allocate.*memory|ALLOC_FAILED", re.IGNORECASE)


class FfpError(Exception):
    """Base of all errors that a user can correct. Exit code 2."""

    exit_code = 2


class ConfigError(FfpError):
    """The configuration or the command line asks for something that does not exist or cannot be done."""


class BudgetError(FfpError):
    """An allocation or a sparsity lies outside what the model allows."""


class AssetError(FfpError):
    """A model, text or task could not be fetched, or is not what was asked for."""


class ArtifactError(FfpError):
    """A file is damaged, has another schema, or does not belong to the files beside it. Exit code 3."""

    exit_code = 3


def check_whole(name: str, value: Any, least: int, remedy: str) -> int:
    """Returns an argument as an int: numpy's whole numbers are some too, but torch and JSON take none of them.

    Raises:
        ConfigError: It is no whole number, or below `least`.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r} is no whole number. {remedy}")
    if value < least:
        raise ConfigError(f"{name} = {value} is below {least}. {remedy}")
    return int(value)


def reason_of(error: BaseException) -> str:
    """Returns what an error of another library says, as part of a sentence: one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(" .")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of any library says that the machine or a GPU has no memory left."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, FfpError) and bool(NO_MEMORY.search(str(error)))
