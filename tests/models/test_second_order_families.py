"""The searches by second order on every family: units in the order `obs`, candidates compensated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ffp import api
from ffp.allocators import create
from ffp.allocators.base import Method, SearchBudget
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import make_cut
from tests.helpers.families import CONFIGS, tiny, tokens

# One of each kind of block: gated, with biases, with fused projections, in parallel, with norms of another place.
QUICK = ("llama", "opt", "phi3", "gpt_neox", "gemma2", "olmo2")
DEFAULT = create("fastforward-guided", {"start": "fisher-table"})


@pytest.mark.parametrize(
    ("family", "units"),
    [
        *(pytest.param(name, {}, marks=[] if name in QUICK else pytest.mark.long) for name in CONFIGS),
        ("llama", {"align": 8}),
        ("llama", {"min_keep": 0}),
        ("llama", {"keep_blocks": "0,-1"}),
        ("qwen3", {"attention_units": "query-heads"}),
        ("phi3", {"attention_units": "single-query-heads"}),
    ],
    ids=str,
)
def test_the_default_search_prunes_every_family(family: str, units: dict[str, Any]) -> None:
    _prune(family, units, DEFAULT)


@pytest.mark.parametrize("family", QUICK)
def test_a_search_that_measures_its_answers_again_prunes_too(family: str) -> None:
    _prune(family, {}, create("guided-knapsack", {}))


def _prune(family: str, units: dict[str, Any], method: Method) -> None:
    prunable = PrunableModel(tiny(family), **units)
    windows = api.Windows(tokens(8), tokens(4), tokens(3))
    calibration = api.calibrate(prunable, windows, grams=True)
    cut = make_cut("structured", score="obs", compensation="ridge", pruner="wanda", compensated_search=True)
    found = api.allocate(prunable, calibration, method, sparsity=0.2, cut=cut, budget=SearchBudget(12, 1, 2), seed=0)
    masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut)
    removed = api.install(prunable, found.problem, masks, cut)
    assert removed.block_sparsity >= 0.2
    assert all(torch.isfinite(parameter).all() for parameter in prunable.model.parameters())
    assert api.evaluate(prunable.model, tokens(3))["n_tokens"] == 57  # it refuses what is not finite
