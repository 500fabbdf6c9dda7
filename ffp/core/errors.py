"""Errors that a user can correct. Each says what is wrong, its value, the limit and the remedy, in one line."""

from __future__ import annotations


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


def reason_of(error: BaseException) -> str:
    """Returns what an error of another library says, as part of a sentence: one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(" .")
