"""Refitted weights of every width against least squares, and a model that switches between them."""

import copy

import numpy as np
import pytest
import torch

from ffp.core import projection
from ffp.measure.calibration import collect
from ffp.models.prunable import PrunableModel
from ffp.models.refit import Refit, damped, errors_without_refit
from ffp.models.sliced import SlicedModel
from ffp.pruning.compensation import compensate
from ffp.pruning.structured import kept_units
from tests.helpers.families import CONFIGS, tiny, tokens


def random_inputs(n=24, out=10):
    torch.manual_seed(0)
    x = torch.randn(300, n, dtype=torch.float64) @ torch.randn(n, n, dtype=torch.float64)
    return x.T @ x / 300, torch.randn(out, n, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 23, 24])
def test_every_width_is_the_least_squares_weight(n):
    gram, weight = random_inputs()
    h = damped(gram)
    expected = weight[:, :n] + weight[:, n:] @ torch.linalg.solve(h[:n, :n], h[:n, n:]).T
    refit = Refit(weight, gram)
    torch.testing.assert_close(refit.weight(n).double(), expected, rtol=1e-4, atol=1e-4)
    other = Refit(weight, gram)
    for width in (20, 3, 13):
        other.weight(width)
    assert torch.equal(other.weight(n), refit.weight(n)), "what was asked before must not matter"


@pytest.mark.parametrize("n", [0, 5, 17, 24])
@pytest.mark.parametrize("refitted", [True, False])
def test_errors_add_up_to_the_trace_of_what_changes(n, refitted):
    gram, weight = random_inputs()
    g = torch.randn(40, 10, dtype=torch.float64)
    fisher, refit = g.T @ g, Refit(weight, gram)
    found = refit.errors(fisher) if refitted else errors_without_refit(weight, gram, fisher)
    change = -weight.clone()
    change[:, :n] += refit.weight(n).double() if refitted else weight[:, :n]
    expected = torch.trace(fisher @ change @ (damped(gram) if refitted else gram) @ change.T)
    assert found[n:].sum().item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def compensated_view(family):
    prunable = PrunableModel(tiny(family), min_keep=0)
    statistics = collect(prunable, tokens(8), batch_tokens=40, grams=True)
    order = statistics.unit_orders("wanda")
    return SlicedModel(prunable, order, statistics.refits(order)), order


def candidate(prunable, seed=0):
    problem = prunable.problem(0.4)
    return problem, projection.project(problem, np.random.default_rng(seed).normal(size=len(problem.decisions)))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_compensated_candidate_is_near_the_model_that_ridge_makes_block_by_block(family):
    """The first module sees the dense model's inputs in both; what is behind it differs by the errors before it."""
    view, order = compensated_view(family)
    problem, allocation = candidate(view.prunable)
    view.set_allocation(allocation)
    kept = kept_units(problem, allocation, order)
    dense = PrunableModel(tiny(family), min_keep=0)
    updates = compensate(dense, kept, tokens(8), kind="ridge", batch_tokens=40)
    first = next(m for m, k in zip(dense.modules, allocation.keep, strict=True) if 0 < k < m.decision.n_units)
    found = view.prunable.linear(first.output).weight
    unsorted = torch.empty_like(found)
    width, units = first.output_width, torch.from_numpy(order[first.decision.name][: len(kept[first.decision.name])])
    unsorted[:] = found.view(len(found), -1, width)[:, units.argsort()].reshape(len(found), -1)
    expected = updates[f"{first.output}.weight"]
    assert torch.linalg.norm(unsorted - expected) < 0.02 * torch.linalg.norm(expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_switching_back_and_forth_leaves_no_trace(family):
    view, _ = compensated_view(family)
    original = copy.deepcopy(tiny(family).state_dict())
    _, one = candidate(view.prunable, 1)
    _, two = candidate(view.prunable, 2)
    view.set_allocation(one)
    with torch.no_grad():
        first = view.model(tokens()).logits
    view.set_allocation(two)
    with view.gated(two.keep, 0.1), torch.no_grad():
        gated = view.model(tokens()).logits
    view.set_allocation(two)
    with torch.no_grad():
        torch.testing.assert_close(gated, view.model(tokens()).logits, rtol=1e-3, atol=1e-3)
    view.set_allocation(one)
    with torch.no_grad():
        assert torch.equal(view.model(tokens()).logits, first)
    view.restore()
    assert all(torch.equal(value, original[name]) for name, value in view.model.state_dict().items())
