"""What every method must do, on every granularity that it serves."""

import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ffp.allocators import METHODS, Heuristic, Search, create, is_search
from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.start import Start
from ffp.allocators.tracker import TRACE_COLUMNS
from ffp.config import Experiment
from ffp.core import projection
from ffp.core.errors import BudgetError, ConfigError
from ffp.core.problem import Allocation, Decision, PruningProblem
from tests.helpers.synthetic import PROBLEMS, SyntheticReward, SyntheticStats, answer, keep_whole, run_search

GRIDS = Path(__file__).parents[2] / "config/grids"
CASES = [(name, kind) for name, method in METHODS.items() for kind in sorted(method.granularities)]
SLOWEST = ["cma-es", "fastforward", "policy-gradient"]
BUDGETS = [SearchBudget(1, 1, 1), SearchBudget(7, 2, 2), SearchBudget(40, 4, 4)]


def by_case(cases):
    """A test for each; `make quick` runs those of whole units, and of the two patterns, treated alike, one is long."""

    def marks(name, kind):
        if kind == "n-of-4":
            return pytest.mark.long
        return pytest.mark.slow if kind != "structured" or name in SLOWEST else ()

    return pytest.mark.parametrize(("name", "kind"), [pytest.param(*case, marks=marks(*case)) for case in cases])


each_case = by_case(CASES)
each_search = by_case([case for case in CASES if is_search(METHODS[case[0]])])
each_heuristic = by_case([case for case in CASES if not is_search(METHODS[case[0]])])


def method_for(name, problem):
    """The method with what it cannot do without: values to import, or a rate for dozens of steps, not thousands."""
    blocks = len({decision.block for decision in problem.decisions})
    needed = {"import": {"values": list(np.linspace(0.2, 0.8, blocks))}, "policy-gradient": {"learning_rate": 0.02}}
    return create(name, needed.get(name, {}))


def problem_of(name, kind, *target):
    """A problem that the method serves: 2ssp asks for attentions that may leave whole."""
    problem = PROBLEMS[kind](*target)
    if name == "2ssp":
        empty = (dataclasses.replace(d, min_keep=0) if d.module == "attention" else d for d in problem.decisions)
        problem = dataclasses.replace(problem, decisions=tuple(empty))
    method_for(name, problem).check(problem)
    return problem


def search(name, problem, *, budget=BUDGETS[-1], seed=0, reward=None):
    return run_search(method_for(name, problem), problem, reward or SyntheticReward(problem), budget, seed=seed)


@functools.cache
def found(name, kind):
    """The problem, the reward after its search with the largest budget, the answer and what led to it."""
    problem = problem_of(name, kind)
    reward = SyntheticReward(problem)
    return problem, reward, *search(name, problem, reward=reward)


@each_case
@pytest.mark.parametrize("target", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_sparsity_is_the_target_and_less_than_a_unit_more(name, kind, target, budget):
    problem = problem_of(name, kind, target)
    allocation = answer(method_for(name, problem), problem, budget)
    allocation.check(problem)
    removed = int(np.dot(problem.n_units - np.array(allocation.keep), problem.params_per_unit))
    addable = [d.params_per_unit for d, k in allocation.items(problem) if k < d.n_units]
    assert 0 <= removed - problem.target * problem.total_params + 1e-6 < min(addable) + 1
    assert all(type(k) is int for k in allocation.keep)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in CASES if kind == "structured"])
@pytest.mark.parametrize("target", [0.2, 0.6])
def test_whole_modules_go_where_nothing_has_to_stay(name, target):
    decisions = [dataclasses.replace(each, min_keep=0) for each in PROBLEMS["structured"](target).decisions]
    problem = PruningProblem(tuple(decisions), target)
    allocation = answer(method_for(name, problem), problem, BUDGETS[-1])
    allocation.check(problem)
    if name == "shortgpt":
        assert 0 in allocation.keep


@each_case
def test_an_allocation_and_its_problem_survive_json(name, kind):
    problem = problem_of(name, kind)
    allocation = answer(method_for(name, problem), problem, BUDGETS[1])
    decisions = [dataclasses.asdict(decision) for decision in problem.decisions]
    body = json.loads(json.dumps({"decisions": decisions, "keep": list(allocation.keep)}))
    again = PruningProblem(tuple(Decision(**each) for each in body["decisions"]), problem.target, kind)
    assert again == problem
    assert Allocation(again.problem_id, tuple(body["keep"])) == allocation


@pytest.mark.parametrize(("name", "kind"), [(m, k) for m in METHODS for k in PROBLEMS if (m, k) not in CASES])
def test_a_granularity_that_is_not_served_is_refused_with_the_reason(name, kind):
    served = ", ".join(sorted(METHODS[name].granularities))
    experiment = Experiment(GRIDS / "baselines.yaml")
    assert experiment.refusal(name, kind) == f"{name} serves {served} pruning only"
    assert not any((cell.method, cell.granularity) == (name, kind) for cell in experiment.cells())


@each_search
def test_the_same_seed_gives_the_same_search(name, kind):
    problem = problem_of(name, kind)
    (first, one), (second, two) = search(name, problem, seed=3), search(name, problem, seed=3)
    assert first == second
    assert json.dumps(one.rows) == json.dumps(two.rows)
    assert [answer[:2] for answer in one.answers] == [answer[:2] for answer in two.answers]
    for (*_, ours), (*_, theirs) in zip(one.answers, two.answers, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    assert one.policy.keys() == two.policy.keys()
    for key, array in one.policy.items():
        np.testing.assert_array_equal(array, two.policy[key])


class OtherKernel(SyntheticReward):
    """The same reward on a processor that adds in another order: the last bits differ, how, the allocation says."""

    def _errors(self, asked, windows, shape=()):
        seed = int(hashlib.sha256(repr((asked, windows)).encode()).hexdigest()[:8], 16)
        return np.random.default_rng(seed).standard_normal(shape)

    def __call__(self, allocation, *, windows):
        return super().__call__(allocation, windows=windows) * math.exp(1e-6 * self._errors(allocation.keep, windows))

    def marginal_utility(self, allocation, *, windows):
        utility = super().marginal_utility(allocation, windows=windows)
        return utility * (1 + 1e-5 * self._errors(allocation.keep, windows, utility.shape))

    def cost_curves(self, allocation, *, windows):
        return [
            curve._replace(slope=curve.slope * (1 + 1e-5 * self._errors(allocation.keep, windows, curve.slope.shape)))
            for curve in super().cost_curves(allocation, windows=windows)
        ]

    def gated(self, gates, windows):
        return super().gated(gates, windows) * math.exp(1e-6 * self._errors(gates, windows))

    def gate_slopes(self, gates, windows):
        value, slopes = super().gate_slopes(gates, windows)
        return value, [each * (1 + 1e-5 * self._errors(each.shape, windows, each.shape)) for each in slopes]


@each_search
def test_the_rounding_errors_of_a_kernel_hardly_change_the_answer(name, kind):
    """The guided search computes with gradients as they are; it corrects itself, and ends near the same answer."""
    problem, _, one, _ = found(name, kind)
    other, _ = search(name, problem, reward=OtherKernel(problem))
    truth = SyntheticReward(problem)
    if name == "fastforward-guided":
        assert abs(math.log(truth.select(one) / truth.select(other))) < 0.1
    else:
        assert one == other


@each_search
def test_another_seed_gives_another_search(name, kind):
    problem = problem_of(name, kind)
    one, other = (search(name, problem, seed=s, reward=SyntheticReward(problem, n_windows=32)) for s in (0, 1))
    assert one[0] != other[0] or one[1].rows != other[1].rows


@each_search
def test_a_policy_is_left_by_those_that_say_so(name, kind):
    assert bool(found(name, kind)[-1].policy) == METHODS[name].learns_policy


@each_heuristic
def test_a_heuristic_gives_the_same_answer_twice(name, kind):
    problem = problem_of(name, kind)
    method = method_for(name, problem)
    assert method.allocate(problem, SyntheticStats(problem)) == method.allocate(problem, SyntheticStats(problem))


@each_heuristic
def test_a_heuristic_that_reads_no_weights_needs_no_statistics(name, kind):
    if not METHODS[name].reads_weights:
        problem = problem_of(name, kind)
        assert method_for(name, problem).allocate(problem, None) == answer(method_for(name, problem), problem, None)


@each_heuristic
def test_the_order_of_a_blocks_decisions_does_not_matter(name, kind):
    problem = problem_of(name, kind)
    blocks = dict.fromkeys(decision.block for decision in problem.decisions)
    turned = [d for block in blocks for d in reversed([d for d in problem.decisions if d.block == block])]
    other = PruningProblem(tuple(turned), problem.target, problem.granularity)
    stats = SyntheticStats(problem)
    by_name = [
        {decision.name: keep for decision, keep in method_for(name, p).allocate(p, stats).items(p)}
        for p in (problem, other)
    ]
    assert by_name[0] == by_name[1]


@each_search
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_token_budget_is_never_exceeded(name, kind, budget):
    problem, reward, *_ = found(name, kind)
    if budget != BUDGETS[-1]:
        reward = SyntheticReward(problem)
        search(name, problem, reward=reward, budget=budget)
    assert reward.spent_tokens <= budget.tokens(reward.window_tokens)
    assert reward.selections <= budget.finalists


STARTED = [(name, start) for name in METHODS for start in get_args(Start) if "start" in METHODS[name].model_fields]


@pytest.mark.parametrize(("name", "start"), STARTED)
@pytest.mark.parametrize(("evaluations", "windows"), [(1, 1), (1, 3), (1, 12), (2, 7)])
def test_a_search_answers_also_where_its_start_leaves_too_little_to_go_on(name, start, evaluations, windows):
    """A table takes a quarter of the tokens, after which even one evaluation can be too dear."""
    problem, budget = problem_of(name, "structured"), SearchBudget(evaluations, windows, 2)
    reward = SyntheticReward(problem, n_windows=12)
    allocation, _ = run_search(create(name, {"start": start}), problem, reward, budget)
    allocation.check(problem)
    assert reward.spent_tokens <= budget.tokens(reward.window_tokens)


@each_search
def test_the_answers_lead_to_the_allocation_within_the_tokens_spent(name, kind):
    problem, _, allocation, tracker = found(name, kind)
    tokens = [answer.tokens for answer in tracker.answers]
    assert tokens == sorted(tokens) and tokens[-1] <= tracker.spent
    assert tracker.answers[-1].keep == allocation.keep
    for _, keep, gates in tracker.answers:
        Allocation(problem.problem_id, keep).check(problem)
        assert gates is None or [np.count_nonzero(each) for each in gates] == list(keep)


@each_search
def test_the_trace_is_plain_and_complete(name, kind):
    problem, reward, _, tracker = found(name, kind)
    trace = tracker.rows
    text = json.dumps(trace)
    assert json.dumps(json.loads(text)) == text
    assert len(trace) == reward.evaluations
    best = -math.inf
    for number, row in enumerate(trace, start=1):
        assert tuple(row) == TRACE_COLUMNS
        assert row["evaluation"] == number
        assert row["sparsity"] <= problem.target
        assert problem.sparsity_of(row["keep"]) >= row["sparsity"] - 1e-9
        assert 1 <= row["windows"] <= (reward.n_windows if row["stage"] == "table" else BUDGETS[-1].windows)
        assert math.isnan(row["best"]) or row["best"] >= best
        best = best if math.isnan(row["best"]) else row["best"]
    tokens = [row["tokens"] for row in trace]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] == reward.spent_tokens


@each_case
def test_infeasible_targets_are_refused_with_the_largest_feasible_one(name, kind):
    problem = problem_of(name, kind, 0.999)
    message = r"at most 0\.\d{4} can be removed\. Lower the sparsity, min_keep or keep_blocks\."
    with pytest.raises(BudgetError, match=message):
        answer(method_for(name, problem), problem, BUDGETS[-1])


@pytest.mark.slow
@each_case
def test_the_largest_feasible_target_is_met(name, kind):
    problem = problem_of(name, kind)
    problem = problem.at(projection.max_sparsity(problem))
    least = tuple(decision.min_keep for decision in problem.decisions)
    assert answer(method_for(name, problem), problem, BUDGETS[-1]).keep == least


WHOLE = {  # which decisions, and the sparsity as a share of the largest that is left
    "the first and a late block": (lambda d: d.block in ("block00", "block03"), 0.5),
    "all blocks but one": (lambda d: d.block != "block01", 1.0),
    "all attention": (lambda d: d.module == "attention", 0.5),
    "all FFNs": (lambda d: d.module == "ffn", 1.0),
}


@each_case
@pytest.mark.parametrize("which", WHOLE)
def test_what_has_to_stay_whole_stays_whole_and_the_rest_meets_the_budget(name, kind, which):
    whole, share = WHOLE[which]
    problem = keep_whole(problem_of(name, kind), whole, share)
    allocation = answer(method_for(name, problem), problem, BUDGETS[1])
    allocation.check(problem)
    assert all(keep == d.n_units for d, keep in allocation.items(problem) if whole(d))
    slack = problem.removed_by(allocation.keep) - problem.params_to_remove
    addable = [d.params_per_unit for d, keep in allocation.items(problem) if keep < d.n_units]
    assert not addable or slack < min(addable)


@pytest.mark.parametrize("name", [name for name, kind in CASES if kind == "structured"])
def test_blocks_go_whole_where_the_others_have_to_stay(name):
    """No other allocation meets the sparsity."""
    free = ("block01", "block02")
    decisions = tuple(
        dataclasses.replace(each, min_keep=0 if each.block in free else each.n_units, fixed_params=0)
        for each in PROBLEMS["structured"](blocks=4).decisions
    )
    problem = PruningProblem(decisions, 0.5)
    allocation = answer(method_for(name, problem), problem, BUDGETS[-1])
    allocation.check(problem)
    assert allocation.keep == tuple(each.min_keep for each in decisions)


@pytest.mark.parametrize("name", [name for name, kind in CASES if kind == "n-of-8"])
def test_a_problem_of_one_decision_is_answered_or_refused_by_the_check(name):
    problem = PROBLEMS["n-of-8"](0.5, blocks=1)
    method = method_for(name, problem)
    if name == "cma-es":
        with pytest.raises(
            ConfigError, match=r"^cma-es searches at least 2 decisions, but the model has 1\. Take unif"
        ):
            method.check(problem)
    else:
        method.check(problem)
        assert answer(method, problem, BUDGETS[-1]).keep == (4,)


LARGEST = [
    *(("fastforward", key) for key in ("learning_rate", "entropy_weight", "value_weight", "max_grad_norm")),
    ("fastforward", "initial_std"), ("cma-es", "sigma"), ("evolutionary", "step"), ("random-search", "spread"),
    ("fastforward-guided", "step_windows"), ("guided-knapsack", "step_windows"), ("grasprune", "step_windows"),
    ("owl", "outlier_threshold"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), LARGEST)
def test_the_largest_value_of_a_hyper_parameter_gives_an_answer(name, key):
    problem, largest = problem_of(name, "structured"), METHODS[name].model_json_schema()["properties"][key]["maximum"]
    answer(create(name, {key: largest}), problem, BUDGETS[-1]).check(problem)


# 2ssp removes attentions whole, which a damage that grows as the square of the share never favours
@by_case([case for case in CASES if is_search(METHODS[case[0]]) and case[0] != "2ssp"])
def test_a_search_gets_ahead_where_half_of_the_blocks_stay_whole(name, kind):
    problem = keep_whole(problem_of(name, kind), lambda d: d.block > "block02")
    reward = SyntheticReward(problem)
    answered = search(name, problem, reward=reward)[0]
    assert reward.select(answered) > reward.select(uniform_allocation(problem))


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_method_declares_itself_and_describes_its_parameters(method):
    assert issubclass(method, Heuristic) != issubclass(method, Search)
    assert method.__doc__ and not method.summary.endswith(".")
    assert all(field.description for field in method.model_fields.values())
    assert set(method.file_parameters) <= set(method.model_fields)
