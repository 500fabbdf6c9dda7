"""ffp (FastForward Pruning) prunes large language models and benchmarks how to do it.

With a model and a tokenizer of transformers:

    pruned = ffp.prune(model, tokenizer, sparsity=0.3)
    print(pruned.summary())       # perplexity, size and cost, before and after
    pruned.save("small")          # a checkpoint that transformers loads
    ffp.load_pruned("small")      # the same without running the checkpoint's own code

`ffp.allocate` gives the allocation alone, and `ffp.list_methods()` names the methods. `ffp.api` has the steps behind
both. On the command line: `ffp prune`, `ffp list methods`, `ffp --help`. What a name needs is imported when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffp.allocators import list_methods as list_methods
    from ffp.models.checkpoint import load_pruned as load_pruned
    from ffp.pipeline.prune import allocate as allocate
    from ffp.pipeline.prune import prune as prune
    from ffp.pipeline.result import Pruned as Pruned

__version__ = "0.1.0"
_HOMES = {
    "Pruned": "ffp.pipeline.result",
    "allocate": "ffp.pipeline.prune",
    "list_methods": "ffp.allocators",
    "load_pruned": "ffp.models.checkpoint",
    "prune": "ffp.pipeline.prune",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public function when it is used, since most of the package works without torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ffp' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names the public functions, for help() and for completion, which see only what is imported otherwise."""
    return [*__all__, "__version__"]
