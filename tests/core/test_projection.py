"""Properties of the projection over random problems: exact budget, bounds, order, nesting, refusal."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffp.core import projection
from ffp.core.errors import BudgetError
from ffp.core.problem import Allocation, Decision, PruningProblem


@st.composite
def problems(draw, max_blocks=6):
    """Blocks of attention and FFN with expensive units like KV groups, of unequal sizes, with biases."""
    blocks = draw(st.integers(1, max_blocks))
    ffn_cost = draw(st.integers(1, 40))
    decisions = []
    for block in range(blocks):
        groups, channels = draw(st.integers(1, 12)), draw(st.integers(2, 300))
        cost = draw(st.integers(20, 900))
        for module, units, size in (("attention", groups, cost), ("ffn", channels, ffn_cost)):
            name, fixed = f"block{block:02d}.{module}", draw(st.integers(0, 9))
            decisions.append(Decision(name=name, n_units=units, params_per_unit=size, fixed_params=fixed))
    base = PruningProblem(tuple(decisions), 0.0)
    return base.at(draw(st.floats(0.0, 0.999)) * projection.max_sparsity(base))


def two_decisions(target):
    coarse = Decision(name="a", n_units=4, params_per_unit=10)
    return PruningProblem((coarse, Decision(name="b", n_units=100, params_per_unit=1)), target)


def logits_for(problem, seed, scale):
    return np.random.default_rng(seed).normal(size=len(problem.decisions)) * scale


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.floats(0, 60))
def test_the_budget_is_exact_and_bounds_hold(problem, seed, scale):
    allocation = projection.project(problem, logits_for(problem, seed, scale))
    allocation.check(problem)
    room = projection.kept_budget(problem) - int(np.dot(allocation.keep, problem.params_per_unit))
    addable = [d.params_per_unit for d, k in allocation.items(problem) if k < d.n_units]
    assert room >= 0
    assert not addable or room < min(addable)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 50), st.floats(-1e-10, 1e-10))
def test_a_target_within_rounding_of_whole_parameters_is_met(problem, removed, noise):
    target = min(removed / problem.total_params + noise, projection.max_sparsity(problem))
    problem = problem.at(max(target, 0.0))
    allocation = projection.project(problem, np.zeros(len(problem.decisions)))
    allocation.check(problem)
    assert problem.removed_by(allocation.keep) >= problem.params_to_remove


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.floats(0, 8), st.booleans())
def test_the_order_of_the_decisions_does_not_matter(problem, seed, scale, tied):
    logits = np.zeros(len(problem.decisions)) if tied else logits_for(problem, seed, scale)
    order = np.random.default_rng(seed + 1).permutation(len(problem.decisions))
    shuffled = PruningProblem(tuple(problem.decisions[i] for i in order), problem.target)
    straight = np.array(projection.project(problem, logits).keep)[order]
    assert tuple(straight) == projection.project(shuffled, logits[order]).keep


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.floats(0, 8))
def test_a_higher_sparsity_keeps_no_more_of_any_decision_before_rounding(problem, seed, scale):
    logits = logits_for(problem, seed, scale)
    denser = problem.at(problem.target * 0.7)
    assert (projection.water_fill(denser, logits) >= projection.water_fill(problem, logits) - 1e-9).all()


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.floats(0, 8))
def test_a_feasible_allocation_is_left_as_it_is(problem, seed, scale):
    allocation = projection.project(problem, logits_for(problem, seed, scale))
    assert projection.round_keep(problem, np.array(allocation.keep, dtype=float)) == allocation


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_only_differences_of_logits_count(problem, seed):
    logits = logits_for(problem, seed, 3.0)
    shifted = projection.water_fill(problem, logits + 2.5)
    np.testing.assert_allclose(shifted, projection.water_fill(problem, logits), rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_an_infeasible_target_names_the_largest_feasible_one(problem):
    """Of four decimals; rounded up, every other one could not be met either."""
    with pytest.raises(BudgetError) as refused:
        projection.kept_budget(problem.at(0.9999999))
    line = r"sparsity 1 cannot be met: with these min_keep at most (0\.\d{4}) can be removed"
    named = float(re.match(line, str(refused.value))[1])
    assert projection.max_sparsity(problem) - 1e-4 < named
    projection.project(problem.at(named), np.zeros(len(problem.decisions))).check(problem.at(named))
    largest = problem.at(projection.max_sparsity(problem))
    projection.project(largest, np.zeros(len(problem.decisions))).check(largest)


def test_zero_sparsity_keeps_everything():
    problem = two_decisions(0.0)
    assert projection.project(problem, np.array([-5.0, 5.0])) == projection.dense(problem)


def test_coarse_units_are_rounded_each_by_itself_and_channels_absorb_the_rest():
    kinds = (("a", 3, 294912), ("f", 1536, 1728))
    decisions = (Decision(name=f"{k}{i}", n_units=n, params_per_unit=p) for i in range(30) for k, n, p in kinds)
    problem = PruningProblem(tuple(decisions), 0.2)
    keep = np.array(projection.project_shares(problem, np.full(60, 0.8)).keep)
    assert set(keep[0::2]) == {2}  # the nearest to 2.4
    assert np.ptp(keep[1::2]) <= 1
    assert keep[1] / 1536 == pytest.approx((0.8 * problem.total_params - 60 * 294912) / (30 * 1536 * 1728), abs=1e-3)


def test_non_finite_logits_and_wrong_shapes_raise_value_errors():
    problem = PruningProblem((Decision(name="a", n_units=4, params_per_unit=10),), 0.2)
    with pytest.raises(ValueError, match="finite"):
        projection.project(problem, np.array([np.nan]))
    with pytest.raises(ValueError, match="logits for 1 decisions"):
        projection.project(problem, np.zeros(3))


def test_check_refuses_an_allocation_that_was_not_projected():
    problem = two_decisions(0.5)
    with pytest.raises(BudgetError, match="less than the target"):
        Allocation(problem.problem_id, (4, 100)).check(problem)
    with pytest.raises(BudgetError, match=re.escape("outside 1..4")):
        Allocation(problem.problem_id, (0, 50)).check(problem)
    with pytest.raises(BudgetError, match="does not answer problem"):
        Allocation("another", (4, 100)).check(problem)
