"""Names to methods and scores: torch-free, importing a method only when it is used."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ffp.allocators.base import Allocator
from ffp.core.errors import ConfigError
from ffp.core.problem import GRANULARITIES
from ffp.core.suggest import did_you_mean


@dataclass(frozen=True)
class Method:
    """A registered allocator.

    version: raised whenever the method's numbers can change; its cells, and no others, run again.
    needs: what allocate() is given: "stats" (calibration), "reward" (a model to evaluate candidates on).
    learns: whether it leaves a policy that another search can start from (`init` in the grid's variants).
    files: the parameters that name files, whose content counts as a setting.
    """

    name: str
    target: str
    version: str
    needs: frozenset[str]
    granularities: frozenset[str]
    summary: str
    citation: str
    learns: bool = False
    files: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether the method evaluates candidates, and so wants a compute node."""
        return "reward" in self.needs


STRUCTURED = frozenset({"structured"})
MODULES = frozenset({"structured", "unstructured"})  # where attention and FFN are decisions apart
ALL = frozenset(GRANULARITIES)

_METHODS = (
    Method("uniform", "ffp.allocators.heuristics.uniform:Uniform", "1", frozenset(), ALL,
           "the same share of every module", "-"),
    Method("ffn-only", "ffp.allocators.heuristics.ffn_only:FfnOnly", "1", frozenset(), MODULES,
           "attention stays whole, FFNs share the cut", "-"),
    Method("owl", "ffp.allocators.heuristics.owl:Owl", "1", frozenset({"stats"}), ALL,
           "blocks with more outliers keep more", "Yin et al., arXiv:2310.05175"),
    Method("ramp", "ffp.allocators.heuristics.ramp:Ramp", "1", frozenset(), ALL,
           "later blocks lose more, in equal steps", "Huang et al., arXiv:2502.14770"),
    Method("alphapruning", "ffp.allocators.heuristics.alphapruning:AlphaPruning", "1", frozenset({"stats"}), ALL,
           "blocks with heavier-tailed spectra keep more", "Lu et al., arXiv:2410.10912"),
    Method("dlp", "ffp.allocators.heuristics.dlp:Dlp", "1", frozenset({"stats"}), ALL,
           "blocks with a smaller median saliency keep more", "Chen et al., arXiv:2505.23807"),
    Method("flap", "ffp.allocators.heuristics.flap:Flap", "1", frozenset({"stats"}), STRUCTURED,
           "one ranking of all units by their fluctuation", "An et al., arXiv:2312.11983"),
    Method("shortgpt", "ffp.allocators.heuristics.shortgpt:ShortGpt", "1", frozenset({"stats"}), ALL,
           "whole blocks go, the least influential first", "Men et al., arXiv:2403.03853"),
    Method("import", "ffp.allocators.heuristics.imported:Import", "1", frozenset(), ALL,
           "a published allocation, scored again", "-", files=("file",)),
    Method("error-table-dp", "ffp.allocators.searches.error_table_dp:ErrorTableDp", "2", frozenset({"reward"}), ALL,
           "each decision's own damage, summed, by exact knapsack", "Frantar and Alistarh, arXiv:2201.13096"),
    Method("evolutionary", "ffp.allocators.searches.evolutionary:Evolutionary", "1", frozenset({"reward"}), ALL,
           "elitist level switches, staged selection", "Sieberling et al., arXiv:2410.14649"),
    Method("random-search", "ffp.allocators.searches.random_search:RandomSearch", "1", frozenset({"reward"}), ALL,
           "the best of independent draws", "Bergstra and Bengio, JMLR 13 (2012)"),
    Method("cma-es", "ffp.allocators.searches.cma_es:CmaEs", "1", frozenset({"reward"}), ALL,
           "separable CMA-ES over logits", "Ros and Hansen, PPSN 2008"),
    Method("fastforward", "ffp.allocators.searches.fastforward:FastForward", "1", frozenset({"reward"}), STRUCTURED,
           "single-step PPO on whole allocations", "Yuan et al., arXiv:2511.18977",
           learns=True),
    Method("fastforward-guided", "ffp.allocators.searches.fastforward_guided:FastForwardGuided", "3", frozenset({"reward"}),
           STRUCTURED, "single-step policy led by gate gradients", "ours, after Yuan et al., arXiv:2511.18977",
           learns=True),
)  # fmt: skip

METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}




def find(name: str) -> Method:
    """The registered method of that name; ConfigError with near matches otherwise."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}: {did_you_mean(name, METHODS)}")
    return METHODS[name]


def create(name: str, parameters: Mapping[str, Any]) -> Allocator:
    """The allocator with these hyper-parameters; ConfigError names an unknown one and near matches.

    A policy to start from is handed to a method that learns by its `started_from`, not among the hyper-parameters.
    """
    module, _, attribute = find(name).target.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    known = {f.name for f in dataclasses.fields(factory) if f.init}
    for key in parameters:
        if key not in known:
            hint = did_you_mean(key, known) if known else "it has no parameters."
            raise ConfigError(f"method {name!r} has no parameter {key!r}: {hint}")
    allocator: Allocator = factory(**parameters)
    return allocator
