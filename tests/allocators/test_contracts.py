"""What every registered method must do, on every granularity that it serves."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from ffp.allocators import registry
from ffp.allocators.base import SearchBudget
from ffp.allocators.tracker import COLUMNS
from ffp.config import Experiment
from ffp.core import projection as projection
from ffp.core.errors import BudgetError, ConfigError
from ffp.core.problem import Allocation, Decision, PruningProblem
from tests.helpers.synthetic import PROBLEMS, SyntheticReward, SyntheticStats

CONFIG = Path(__file__).parents[2] / "config"
CASES = [(name, kind) for name, method in registry.METHODS.items() for kind in sorted(method.granularities)]
BUDGETS = [SearchBudget(1, 1, 1), SearchBudget(7, 2, 2), SearchBudget(40, 4, 4)]
each_case = pytest.mark.parametrize(("name", "kind"), CASES)


def parameters(name, problem):
    """What a method cannot do without."""
    blocks = len({decision.block for decision in problem.decisions})
    return {"import": {"values": list(np.linspace(0.2, 0.8, blocks))}}.get(name, {})


def run(name, problem, *, budget=BUDGETS[-1], seed=0, reward=None, stats=None):
    needs = registry.METHODS[name].needs
    if "reward" in needs and reward is None:
        reward = SyntheticReward(problem)
    if "stats" in needs and stats is None:
        stats = SyntheticStats(problem)
    return registry.create(name, parameters(name, problem)).allocate(
        problem, stats=stats, reward=reward, budget=budget, seed=seed
    )


@each_case
@pytest.mark.parametrize("target", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_sparsity_is_the_target_and_less_than_a_unit_more(name, kind, target, budget):
    problem = PROBLEMS[kind](target)
    allocation = run(name, problem, budget=budget).allocation
    allocation.check(problem)
    removed = int(np.dot(problem.n_units - np.array(allocation.keep), problem.params_per_unit))
    addable = [u.params_per_unit for u, k in zip(problem.decisions, allocation.keep, strict=True) if k < u.n_units]
    assert 0 <= removed - problem.target * problem.total_params + 1e-6 < min(addable) + 1
    assert all(type(k) is int for k in allocation.keep)


@each_case
def test_an_allocation_and_its_problem_survive_json(name, kind):
    problem = PROBLEMS[kind]()
    allocation = run(name, problem).allocation
    body = json.loads(json.dumps({"decisions": [dataclasses.asdict(d) for d in problem.decisions], "keep": list(allocation.keep)}))
    again = PruningProblem(tuple(Decision(**each) for each in body["decisions"]), problem.target, kind)
    assert again == problem
    assert Allocation(again.problem_id, tuple(body["keep"])) == allocation


@pytest.mark.parametrize(("name", "kind"), [(m, k) for m in registry.METHODS for k in PROBLEMS if (m, k) not in CASES])
def test_a_granularity_that_is_not_served_is_refused_with_the_reason(name, kind):
    served = ", ".join(sorted(registry.METHODS[name].granularities))
    project = Experiment(CONFIG / "baselines.yaml")
    assert project.refusal(name, kind) == f"{name} serves {served} pruning only"
    assert not any((cell.method, cell.granularity) == (name, kind) for cell in project.cells())


@each_case
def test_the_same_seed_gives_the_same_result(name, kind):
    problem = PROBLEMS[kind]()
    first, second = run(name, problem, seed=3), run(name, problem, seed=3)
    assert first.allocation == second.allocation
    assert json.dumps(first.trace) == json.dumps(second.trace)
    assert first.policy.keys() == second.policy.keys()
    for key, array in first.policy.items():
        np.testing.assert_array_equal(array, second.policy[key])


@each_case
def test_searches_draw_from_their_seed_and_others_from_nothing(name, kind):
    problem = PROBLEMS[kind]()
    results = [run(name, problem, seed=seed) for seed in (0, 1)]
    if registry.METHODS[name].is_search:
        assert results[0].trace != results[1].trace
    else:
        assert results[0].allocation == results[1].allocation
        assert not results[0].trace


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if not registry.METHODS[case[0]].is_search])
def test_the_order_of_a_blocks_decisions_does_not_matter(name, kind):
    problem = PROBLEMS[kind]()
    blocks = dict.fromkeys(decision.block for decision in problem.decisions)
    units = [decision for block in blocks for decision in reversed([u for u in problem.decisions if u.block == block])]
    other = PruningProblem(tuple(units), problem.target, problem.granularity)
    stats = SyntheticStats(problem)
    found = [run(name, p, stats=stats).allocation.keep for p in (problem, other)]
    by_name = [
        dict(zip((u.name for u in p.units), k, strict=True)) for p, k in zip((problem, other), found, strict=True)
    ]
    assert by_name[0] == by_name[1]


@each_case
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_token_budget_is_never_exceeded(name, kind, budget):
    problem = PROBLEMS[kind]()
    reward = SyntheticReward(problem)
    run(name, problem, reward=reward, budget=budget)
    assert reward.spent_tokens <= budget.tokens(reward.window_tokens)
    assert reward.selections <= budget.finalists
    if not registry.METHODS[name].is_search:
        assert reward.spent_tokens == reward.selections == 0


@each_case
def test_the_trace_is_plain_and_complete(name, kind):
    problem = PROBLEMS[kind]()
    reward = SyntheticReward(problem)
    trace = run(name, problem, reward=reward).trace
    text = json.dumps(trace)
    assert json.dumps(json.loads(text)) == text
    assert len(trace) == (reward.evaluations if registry.METHODS[name].is_search else 0)
    best = -math.inf
    for number, row in enumerate(trace, start=1):
        assert tuple(row) == COLUMNS
        assert row["evaluation"] == number
        problem.at(row["sparsity"])
        assert row["sparsity"] <= problem.target
        assert problem.sparsity_of(row["keep"]) >= row["sparsity"] - 1e-9
        assert 1 <= row["windows"] <= BUDGETS[-1].windows
        assert math.isnan(row["best"]) or row["best"] >= best
        best = best if math.isnan(row["best"]) else row["best"]
    tokens = [row["tokens"] for row in trace]
    assert tokens == sorted(set(tokens))
    assert not tokens or tokens[-1] == reward.spent_tokens


@each_case
def test_infeasible_targets_are_refused_with_the_largest_feasible_one(name, kind):
    problem = PROBLEMS[kind](0.999)
    limit = projection.max_sparsity(problem)
    reward = SyntheticReward(problem)
    message = f"at most {limit:.4f} can be removed. Lower the grid's sparsities"
    with pytest.raises(BudgetError, match=re.escape(message)):
        run(name, problem, reward=reward)
    assert reward.spent_tokens == 0


@each_case
def test_the_largest_feasible_target_is_met(name, kind):
    problem = PROBLEMS[kind]()
    problem = problem.at(projection.max_sparsity(problem))
    assert run(name, problem).allocation.keep == tuple(decision.min_keep for decision in problem.decisions)


@each_case
def test_what_a_method_needs_is_asked_for(name, kind):
    problem = PROBLEMS[kind]()
    allocator = registry.create(name, parameters(name, problem))
    for need, what in (("reward", "a reward"), ("stats", "calibration statistics")):
        if need in registry.METHODS[name].needs:
            with pytest.raises(ConfigError, match=f"method '{name}' needs {what}, but got none. Hand the folder"):
                allocator.allocate(problem, stats=None, reward=None, budget=BUDGETS[0], seed=0)


@pytest.mark.parametrize("name", registry.METHODS)
def test_the_class_and_the_registry_agree(name):
    allocator = registry.create(name, parameters(name, PROBLEMS["structured"]()))
    assert (allocator.name, allocator.version) == (name, registry.METHODS[name].version)
    with pytest.raises(ConfigError, match=f"method '{name}' has no parameter 'name'"):
        registry.create(name, {"name": "other"})
