"""Guided knapsack: what a step answers, how steps are averaged, and that it gets ahead."""

import pytest

from ffp.allocators import create
from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.searches.guided_knapsack import Costs, GuidedKnapsack
from ffp.allocators.start import cheapest
from ffp.core.knapsack import levels
from ffp.core.problem import CostCurve
from tests.helpers.synthetic import SyntheticReward, run_search, structured_problem

BUDGET = SearchBudget(48, 2)


def search(problem, budget=BUDGET, *, seed=0, name="guided-knapsack", **parameters):
    """The answer, and the tracker with all that led to it."""
    return run_search(create(name, parameters), problem, SyntheticReward(problem), budget, seed=seed)


@pytest.mark.parametrize("target", [0.2, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_as_good_as_evolution_from_the_same_table_or_better(target, seed):
    problem = structured_problem(target)
    reward = SyntheticReward(problem)
    found, _ = search(problem, seed=seed)
    rival, _ = search(problem, seed=seed, name="evolutionary", start="fisher-table")
    assert reward.select(found) >= reward.select(rival)


def curves(problem, keep, prices, tables=None):
    """Of decisions whose units cost their price each by local gradients, and by a table that all of them leave."""
    found = []
    for decision, k, price, table in zip(problem.decisions, keep, prices, tables or prices, strict=True):
        level = levels(decision.n_units)
        left = 1 - level / decision.n_units
        found.append(CostCurve(level, price * (k - level) / decision.n_units, 0 * left, table * left))
    return found


def dear(problem, position):
    """Prices of whole decisions: three times as much by parameter for one of them."""
    return [d.n_units * d.params_per_unit * (3.0 if i == position else 1.0) for i, d in enumerate(problem.decisions)]


def answer(problem, *steps, **parameters):
    """The answer after steps that measured these curves."""
    costs = Costs(problem, GuidedKnapsack(**parameters))
    for step in steps:
        costs.add(step, windows=4)
    return costs.cheapest()


def test_a_step_answers_with_the_optimum_of_what_it_measured():
    problem = structured_problem(blocks=2)
    start = uniform_allocation(problem).keep
    found = answer(problem, curves(problem, start, dear(problem, 1)))
    expected = [(c.levels, c.slope - c.slope[-1]) for c in curves(problem, start, dear(problem, 1))]
    assert found == cheapest(problem, expected)
    assert found.keep[1] == problem.n_units[1]


def test_local_costs_and_the_table_count_by_their_shares():
    problem = structured_problem(blocks=2)
    step = curves(problem, uniform_allocation(problem).keep, dear(problem, 1), dear(problem, 3))
    local, both, table = (answer(problem, step, table_share=share).keep for share in (0.0, 0.5, 1.0))
    n = problem.n_units
    assert (local[1], table[3]) == (n[1], n[3]) and local[3] < n[3] and table[1] < n[1]
    assert both[1] > table[1] and both[3] > local[3]


def test_older_steps_count_less():
    problem = structured_problem(blocks=2)
    one, two = (curves(problem, uniform_allocation(problem).keep, dear(problem, i)) for i in (1, 3))
    assert answer(problem, one, two, memory=0.0) == answer(problem, two)
    assert answer(problem, one, one, one, two, memory=0.5) == answer(problem, two, two, two, two, two, one, memory=1.0)
    assert answer(problem, one, one, one, two, memory=1.0).keep[1] == problem.n_units[1]


def averaged(problem, *steps):
    """The costs of the first decision after steps, each as (its curves, its windows)."""
    costs = Costs(problem, GuidedKnapsack(memory=0.5, step_windows=4))
    for step, windows in steps:
        costs.add(step, windows)
    assert costs.windows == sum(windows for _, windows in steps)
    return costs.to_arrays()["costs"][: len(levels(problem.decisions[0].n_units))]


def test_a_step_counts_by_its_windows():
    problem = structured_problem(blocks=2)
    one, two = (curves(problem, uniform_allocation(problem).keep, dear(problem, i)) for i in (0, 3))
    first, second = (averaged(problem, (step, 4)) for step in (one, two))
    assert averaged(problem, (one, 2), (one, 2)) == pytest.approx(first)
    assert averaged(problem, (one, 4), (two, 4)) == pytest.approx((0.5 * first + second) / 1.5)
    assert averaged(problem, (one, 4), (two, 2)) == pytest.approx((0.5**0.5 * first + 0.5 * second) / (0.5**0.5 + 0.5))


def test_steps_begin_with_one_window_and_grow():
    problem = structured_problem()
    _, tracker = search(problem, SearchBudget(96, 1))
    rows = [(row["stage"], row["windows"]) for row in tracker.rows]
    assert rows == [("table", 2)] + [("gates", n) for n in (1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 1)]
    assert tracker.windows_left < 3


def test_steps_of_a_policy_go_on_where_its_own_ended():
    problem = structured_problem()
    _, before = search(problem, SearchBudget(96, 1))
    method, reward = create("guided-knapsack", {}), SyntheticReward(problem)
    _, tracker = run_search(method, problem, reward, SearchBudget(24, 1), policy=before.policy)
    assert [(row["stage"], row["windows"]) for row in tracker.rows] == 2 * [("gates", 4)]


def test_a_small_budget_is_spent_in_several_steps():
    problem = structured_problem()
    _, tracker = search(problem, SearchBudget(16, 1))
    assert [(row["stage"], row["windows"]) for row in tracker.rows] == [("table", 2)] + 3 * [("gates", 1)]


def test_a_budget_that_pays_for_no_step_answers_ffn_only():
    problem = structured_problem()
    found, tracker = search(problem, SearchBudget(1, 2))
    assert found == ffn_only_allocation(problem) and tracker.spent == 0
