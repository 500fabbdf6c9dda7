"""Evolution: mutations keep the budget, stages cost what is planned, the search improves on uniform."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

from ffp.allocators.base import SearchBudget
from ffp.allocators.generations import breed, generation_cost, n_switches, select
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.searches import evolutionary
from ffp.allocators.searches.evolutionary import (
    Evolutionary,
    default_step,
    mutate,
    offspring_for,
    stages_for,
    switch,
)
from ffp.allocators.tracker import Tracker
from ffp.core import projection
from ffp.core.problem import Decision, PruningProblem
from tests.helpers.synthetic import SyntheticReward, run_search, structured_problem, unstructured_problem

PROBLEMS = [structured_problem(), structured_problem(0.5), structured_problem(0.05), unstructured_problem()]


def brood_of(problem, parent, count, rng, step=0):
    """So many offspring of two switches each."""
    return breed(parent, count, partial(mutate, problem, parent, step or default_step(problem), 2, rng))


def test_the_number_of_switches_is_the_smaller_of_two_dice():
    rng = np.random.default_rng(0)
    counts = Counter(n_switches(rng, 3) for _ in range(9000))
    assert set(counts) == {1, 2, 3}
    for value, ninths in ((1, 5), (2, 3), (3, 1)):
        assert counts[value] == pytest.approx(1000 * ninths, abs=150)  # over 3 standard deviations


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_switch_moves_at_most_a_step_between_two_decisions(problem):
    rng = np.random.default_rng(1)
    step, cost = default_step(problem), problem.params_per_unit
    moved = 0
    keep = np.array(uniform_allocation(problem).keep, dtype=float)
    for _ in range(300):
        before = keep.copy()
        switch(problem, keep, step, rng)
        change = (keep - before) * cost
        moved += bool(change.any())
        assert change.sum() == pytest.approx(0, abs=1e-6)
        assert (change > 1e-9).sum() == (change < -1e-9).sum() <= 1
        assert np.abs(change).max() <= max(step, cost.max()) + 1e-6
        assert (keep >= problem.min_keep - 1e-6).all()
        assert (keep <= problem.n_units + 1e-6).all()
    assert moved > 250


def test_givers_and_takers_are_uniform_over_those_that_can():
    problem = PruningProblem(tuple(Decision(name=f"u{i}", n_units=10, params_per_unit=1) for i in range(4)), 0.5)
    rng = np.random.default_rng(2)
    pairs = Counter()
    for _ in range(6000):
        keep = np.array([1.0, 10.0, 5.0, 5.0])  # the first cannot give, the second cannot take
        before = keep.copy()
        switch(problem, keep, 1, rng)
        pairs[int(np.argmin(keep - before)), int(np.argmax(keep - before))] += 1
    assert set(pairs) == {(1, 0), (1, 2), (1, 3), (2, 0), (2, 3), (3, 0), (3, 2)}
    for pair, count in pairs.items():
        assert count == pytest.approx(2000 / (3 if pair[0] == 1 else 2), abs=130)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("switches", [1, 2, 3])
def test_mutations_keep_the_budget(problem, switches):
    rng = np.random.default_rng(3)
    parent = uniform_allocation(problem)
    for _ in range(60):
        parent = mutate(problem, parent, default_step(problem), switches, rng)
        parent.check(problem)
        slack = projection.kept_budget(problem) - int(np.dot(parent.keep, problem.params_per_unit))
        assert 0 <= slack < problem.params_per_unit.min()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_brood_is_distinct_and_without_its_parent(problem):
    parent = uniform_allocation(problem)
    brood = brood_of(problem, parent, 12, np.random.default_rng(4))
    assert len(set(brood)) == len(brood) == 12
    assert parent not in brood


def test_without_an_admissible_mutation_the_search_ends_with_uniform():
    problem = PruningProblem((Decision(name="only", n_units=10, params_per_unit=5),), 0.4)
    allocation, tracker = run_search(Evolutionary(), problem, SyntheticReward(problem), SearchBudget(50, 2))
    assert allocation == uniform_allocation(problem)
    assert tracker.rows == []


def test_few_possible_allocations_do_not_spin_for_ever():
    problem = PruningProblem(tuple(Decision(name=name, n_units=3, params_per_unit=5) for name in "ab"), 0.5)
    reward = SyntheticReward(problem, n_windows=2)
    allocation, tracker = run_search(Evolutionary(), problem, reward, SearchBudget(200, 2))
    feasible = [(1, 2), (2, 1)]
    assert allocation.keep in feasible
    assert len(tracker.rows) <= 2 * len(feasible)


@pytest.mark.parametrize(("windows", "stages"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (4, [1, 2, 4]), (32, [8, 16, 32])])
def test_stages_grow_to_the_full_windows(windows, stages):
    assert [stage.windows for stage in stages_for(windows)] == stages


@pytest.mark.slow
@pytest.mark.parametrize("windows", [1, 2, 4, 8])
@pytest.mark.parametrize("offspring", [1, 2, 7, 10, 40])
def test_a_generation_costs_what_is_planned(windows, offspring):
    problem = unstructured_problem()
    reward = SyntheticReward(problem, n_windows=1000)
    tracker = Tracker(problem, reward, SearchBudget(10_000, windows), method="test", seed=0)
    rng = np.random.default_rng(0)
    parent = uniform_allocation(problem)
    select(tracker, parent, brood_of(problem, parent, offspring, rng, step=50), stages_for(windows), rng)
    memoised = len({row["stage"] for row in tracker.rows})  # windows of two stages may overlap
    cost = generation_cost(offspring, stages_for(windows)) * reward.window_tokens
    assert cost - memoised * windows * reward.window_tokens <= tracker.spent <= cost


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_best_quarter_of_each_stage_goes_on_and_the_parent_joins_the_last(problem):
    reward = SyntheticReward(problem, n_windows=1000)
    tracker = Tracker(problem, reward, SearchBudget(10_000, 8), method="test", seed=0)
    rng = np.random.default_rng(4)
    parent = uniform_allocation(problem)
    brood = brood_of(problem, parent, 20, rng)
    winner = select(tracker, parent, brood, stages_for(8), rng)
    stages = [[row for row in tracker.rows if row["stage"] == f"stage{n}"] for n in (1, 2, 3)]
    assert [len(rows) for rows in stages] == [20, 5, 1 + 2]
    assert [{row["windows"] for row in rows} for rows in stages] == [{2}, {4}, {8}]
    assert {tuple(row["keep"]) for row in stages[0]} == {child.keep for child in brood}
    for rows, later, survivors in zip(stages, stages[1:], (5, 2), strict=False):
        ranked = sorted(rows, key=lambda row: -row["reward"])
        best = {tuple(row["keep"]) for row in ranked[:survivors]}
        assert {tuple(row["keep"]) for row in later} - {parent.keep} == best
    assert parent.keep in {tuple(row["keep"]) for row in stages[2]}
    assert winner.keep == tuple(max(stages[2], key=lambda row: row["reward"])["keep"])


@pytest.mark.parametrize("evaluations", [30, 96, 400, 1000, 10_000])
@pytest.mark.parametrize("windows", [1, 2, 4, 16])
def test_ten_generations_fit(evaluations, windows):
    offspring = offspring_for(SearchBudget(evaluations, windows))
    assert 1 <= offspring <= evolutionary.MAX_OFFSPRING
    assert 10 * generation_cost(offspring, stages_for(windows)) <= evaluations * windows


def test_the_parent_stays_unless_it_is_beaten_on_the_same_windows():
    problem = structured_problem()
    reward = SyntheticReward(problem)
    tracker = Tracker(problem, reward, SearchBudget(10_000, 8), method="test", seed=0)
    rng = np.random.default_rng(5)
    parent = uniform_allocation(problem)
    everything = tuple(range(8))
    rewards = [reward(parent, windows=everything)]
    for _ in range(15):
        parent = select(tracker, parent, brood_of(problem, parent, 6, rng), stages_for(8), rng)
        rewards.append(reward(parent, windows=everything))
    assert rewards == sorted(rewards)
    assert rewards[-1] > rewards[0]


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_beats_uniform(problem, seed):
    reward = SyntheticReward(problem)
    allocation, _ = run_search(Evolutionary(), problem, reward, SearchBudget(96, 4), seed=seed)
    assert reward.select(allocation) > reward.select(uniform_allocation(problem)) + 0.01


def test_the_budget_is_used():
    problem = structured_problem()
    reward = SyntheticReward(problem, n_windows=64)
    run_search(Evolutionary(), problem, reward, SearchBudget(96, 4))
    assert 0.97 <= reward.spent_tokens / SearchBudget(96, 4).tokens(reward.window_tokens) <= 1


def test_it_starts_from_the_allocation_that_it_is_given():
    problem = structured_problem()
    for start, first in (("uniform", uniform_allocation), ("ffn-only", ffn_only_allocation)):
        too_small_for_a_generation = SearchBudget(1, 1)
        method = Evolutionary(start=start)
        allocation, _ = run_search(method, problem, SyntheticReward(problem), too_small_for_a_generation)
        assert allocation == first(problem)
