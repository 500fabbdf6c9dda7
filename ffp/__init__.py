"""Layer-wise sparsity allocation for pruning large language models, measured at equal cost."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`ffp.load_pruned`, imported when it is used: most of the package works without torch."""
    if name == "load_pruned":
        return import_module("ffp.models.checkpoint").load_pruned
    raise AttributeError(f"module 'ffp' has no attribute {name!r}")
