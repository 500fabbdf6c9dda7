"""Which methods can be rewarded by a KL divergence: those that say so, and no others."""

from __future__ import annotations

import pytest

from ffp import api
from ffp.allocators import METHODS, create, is_search
from ffp.allocators.base import SearchBudget
from ffp.core.errors import ConfigError
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import make_cut
from tests.helpers.families import tiny, tokens

SEARCHES = sorted(name for name, method in METHODS.items() if is_search(method))


@pytest.fixture(scope="module")
def found():
    """(model, its calibration)"""
    prunable = PrunableModel(tiny("llama"), min_keep=0)
    return prunable, api.calibrate(prunable, api.Windows(tokens(4), tokens(8), tokens(4)), grams=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_takes_a_divergence_measures_it(name, found):
    prunable, calibration = found
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    words = {"sparsity": 0.3, "cut": cut, "budget": SearchBudget(12, 2, 2)}
    if "kl" not in METHODS[name].fitnesses:
        with pytest.raises(ConfigError, match=f"{name} knows no fitness kl"):
            api.allocate(prunable, calibration, create(name, {}), **words, fitness="kl")
        return
    ppl, kl = (api.allocate(prunable, calibration, create(name, {}), **words, fitness=f) for f in ("ppl", "kl"))
    assert [row["reward"] for row in ppl.trace] != [row["reward"] for row in kl.trace]
