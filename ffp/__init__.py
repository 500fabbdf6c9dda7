"""ffp (FastForward Pruning) prunes large language models and benchmarks how to do it.

In memory, with a model of transformers and token windows of a text:

    prunable = PrunableModel(model)                       # ffp.models.prunable
    calibration = ffp.calibrate(prunable, windows)
    found = ffp.allocate(prunable, calibration, create("owl", {}), sparsity=0.3, cut=cut)
    masks = ffp.make_masks(prunable, calibration, found.problem, found.allocation, cut)
    ffp.prune(prunable, found.problem, masks, cut)        # `model` is smaller now
    ffp.evaluate(model, test_windows)["value"]            # its perplexity

`ffp.list_methods()` names the methods, and `ffp.load_pruned(folder)` loads a model that `ffp export` wrote. On the
command line: `ffp --help`, `ffp list methods`. What a name needs is imported when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffp.allocators import list_methods as list_methods
    from ffp.api import allocate as allocate
    from ffp.api import calibrate as calibrate
    from ffp.api import evaluate as evaluate
    from ffp.api import make_masks as make_masks
    from ffp.api import prune as prune
    from ffp.models.checkpoint import load_pruned as load_pruned

__version__ = "0.1.0"
_HOMES = {
    "allocate": "ffp.api",
    "calibrate": "ffp.api",
    "evaluate": "ffp.api",
    "list_methods": "ffp.allocators",
    "load_pruned": "ffp.models.checkpoint",
    "make_masks": "ffp.api",
    "prune": "ffp.api",
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
