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
def test_it_beats_evolution_from_the_same_table(target, seed):
    problem = structured_problem(target)
    reward = SyntheticReward(problem)
    found, _ = search(problem, seed=seed)
    rival, _ = search(problem, seed=seed, name="evolutionary", start="fisher-table")
    assert reward.select(found) > reward.select(rival)


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
        costs.add(step)
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


def test_a_small_budget_is_spent_in_several_steps():
    problem = structured_problem()
    _, tracker = search(problem, SearchBudget(16, 2))
    assert [(row["stage"], row["windows"]) for row in tracker.rows] == [("table", 2)] + 4 * [("gates", 2)]


def test_a_budget_that_pays_for_no_step_answers_ffn_only():
    problem = structured_problem()
    found, tracker = search(problem, SearchBudget(1, 2))
    assert found == ffn_only_allocation(problem) and tracker.spent == 0
