"""The tracker: budget, memory, trace, and the choice among finalists."""

import logging
import re

import numpy as np
import pytest

from ffp.allocators import create
from ffp.allocators.base import MAX_SEED, Reward, Search, SearchBudget
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.tracker import TRACE_COLUMNS, Exhausted, Tracker, best_first
from ffp.core import projection
from ffp.core.errors import ConfigError, FfpError
from ffp.core.problem import Allocation
from tests.helpers.synthetic import SyntheticReward, structured_problem


def tracker(evaluations=4, windows=2, finalists=3, reward=None):
    problem = structured_problem()
    reward = reward or SyntheticReward(problem)
    return Tracker(problem, reward, SearchBudget(evaluations, windows, finalists), method="test", seed=0)


def candidates(problem, count, seed=0):
    rng = np.random.default_rng(seed)
    return [projection.project(problem, rng.normal(size=len(problem.decisions))) for _ in range(count)]


def test_the_synthetic_reward_is_a_reward_and_its_marginal_utility_predicts_it():
    problem = structured_problem()
    reward = SyntheticReward(problem)
    assert isinstance(reward, Reward)
    start = uniform_allocation(problem)
    utility = reward.marginal_utility(start, windows=(0, 3))
    assert reward.spent_tokens == 3 * 2 * reward.window_tokens
    for i, decision in enumerate(problem.decisions):
        for side, step in enumerate((-1, 1)):
            if start.keep[i] + step > decision.n_units:
                assert np.isnan(utility[i, side]).all()
                continue
            other = Allocation(start.problem_id, tuple(k + step * (i == j) for j, k in enumerate(start.keep)))
            ratio = reward(other, windows=(0, 3)) / reward(start, windows=(0, 3))
            assert step * np.log(ratio) / decision.params_per_unit == pytest.approx(utility[i, side, :2].sum())


def test_cost_curves_of_the_synthetic_reward_are_exact():
    problem = structured_problem()
    reward = SyntheticReward(problem)
    start = uniform_allocation(problem)
    curves = reward.cost_curves(start, windows=(0, 3))
    assert reward.spent_tokens == 3 * 2 * reward.window_tokens
    for i, curve in enumerate(curves):
        for k, slope, curvature in zip(curve.levels, curve.slope, curve.curvature, strict=True):
            other = Allocation(start.problem_id, tuple(int(k) if i == j else u for j, u in enumerate(start.keep)))
            ratio = reward(other, windows=(0, 3)) / reward(start, windows=(0, 3))
            assert -np.log(ratio) == pytest.approx(slope + curvature, abs=1e-12)


def test_a_library_takes_the_largest_seed_and_no_larger_one_is_taken():
    problem, search = structured_problem(), create("cma-es", {})
    assert isinstance(search, Search)

    def seeded(seed):
        return Tracker(problem, SyntheticReward(problem), SearchBudget(8, 2, 2), method="cma-es", seed=seed)

    first, last = seeded(0), seeded(MAX_SEED)
    for each in (first, last):
        search.run(each, np.random.default_rng(0))
    assert first.rows != last.rows
    for seed in (MAX_SEED + 1, -1):
        with pytest.raises(ConfigError, match=rf"^seed = {seed} is not from 0 to 4294967295\. Give another\.$"):
            seeded(seed)


def test_rows_say_what_was_scored():
    t = tracker()
    one, two = candidates(t.problem, 2)
    scores = t.score([one, two], (0, 1), stage="first") + t.score([one], (2,), stage="second", target=0.1)
    assert [tuple(row) for row in t.rows] == [TRACE_COLUMNS] * 3
    assert [row["reward"] for row in t.rows] == scores
    assert [row["tokens"] for row in t.rows] == [20, 40, 50]
    assert [row["evaluation"] for row in t.rows] == [1, 2, 3]
    assert [row["windows"] for row in t.rows] == [2, 2, 1]
    assert [row["sparsity"] for row in t.rows] == [0.2, 0.2, 0.1]
    assert [row["keep"] for row in t.rows] == [list(c.keep) for c in (one, two, one)]
    assert [row["best"] for row in t.rows] == [scores[0], max(scores[:2]), max(scores[:2])]


def test_best_is_nan_until_a_candidate_meets_the_target_on_all_windows():
    t = tracker()
    [one] = candidates(t.problem, 1)
    t.score([one], (0,), stage="few windows")
    t.score([one], (1, 2), stage="easier", target=0.1)
    assert np.isnan([row["best"] for row in t.rows]).all()


def test_what_was_measured_before_is_free_and_has_no_row():
    t = tracker()
    [one] = candidates(t.problem, 1)
    first = t.score([one], (0, 1), stage="a")
    assert t.score([one], (0, 1), stage="b") == first
    t.score([one], (1,), stage="part of it")
    assert (len(t.rows), t.spent, t.reward.evaluations) == (1, 20, 1)


def test_a_candidate_beyond_the_budget_is_not_started():
    t = tracker(evaluations=2, windows=2)
    one, two, three = candidates(t.problem, 3)
    t.score([one], (0, 1), stage="a")
    t.score([two], (0,), stage="a")
    with pytest.raises(Exhausted):
        t.score([three], (0, 1), stage="a")
    assert (t.spent, t.windows_left, t.reward.evaluations) == (30, 1, 2)


def test_gate_gradients_cost_three_forwards_and_yield_the_reward_in_one_row():
    t = tracker(evaluations=4, windows=2)
    [one] = candidates(t.problem, 1)
    utility = t.utility(one, (0, 1), stage="gates")
    assert utility.shape == (len(t.problem.decisions), 2, 3)
    assert [(row["tokens"], row["stage"], row["evaluation"]) for row in t.rows] == [(60, "gates", 1)]
    assert t.score([one], (0, 1), stage="again") == [t.rows[0]["reward"]] == [t.rows[0]["best"]]
    assert len(t.rows) == t.reward.evaluations == 1
    with pytest.raises(Exhausted):
        t.utility(one, (2, 3), stage="gates")
    assert t.spent == 60


def test_cost_curves_cost_three_forwards_and_yield_the_reward_in_one_row():
    t = tracker(evaluations=4, windows=2)
    [one] = candidates(t.problem, 1)
    assert len(t.cost_curves(one, (0, 1), stage="gates")) == len(t.problem.decisions)
    assert [(row["tokens"], row["stage"], row["reward"]) for row in t.rows] == [(60, "gates", t.rows[0]["best"])]
    with pytest.raises(Exhausted):
        t.cost_curves(one, (2, 3), stage="gates")


def test_only_the_searchs_own_tokens_count():
    problem = structured_problem()
    reward = SyntheticReward(problem)
    reward(uniform_allocation(problem), windows=(0, 1, 2))
    t = tracker(reward=reward)
    assert (t.spent, t.windows_left) == (0, 8)


def test_more_windows_than_the_text_has_are_refused():
    message = "search.windows_per_evaluation = 9 exceeds search.windows = 8. Lower"
    with pytest.raises(ConfigError, match=re.escape(message)):
        tracker(windows=9)


def test_a_reward_that_is_no_number_is_refused():
    class Broken(SyntheticReward):
        def __call__(self, allocation, *, windows):
            return float("nan")

    t = tracker(reward=Broken(structured_problem()))
    with pytest.raises(FfpError, match=r"the reward of \(.*\) is nan. Check the model's dtype"):
        t.score(candidates(t.problem, 1), (0,), stage="a")


def test_the_winner_is_the_best_of_the_first_distinct_contenders_on_the_selection_text():
    t = tracker(finalists=3)
    pool = candidates(t.problem, 5)
    winner = t.finish([pool[0], pool[0], pool[1], pool[2], *pool])
    assert t.reward.selections == 3
    assert winner == max(pool[:3], key=SyntheticReward(t.problem).select)
    assert t.spent == 0


def test_ties_go_to_the_earlier_one_and_a_single_finalist_is_not_scored():
    assert best_first([1.0, 2.0, 2.0, 0.5]) == [1, 2, 0, 3]
    t = tracker()
    [one] = candidates(t.problem, 1)
    assert t.finish([one, one]) == one
    assert t.reward.selections == 0


def test_the_winner_is_the_last_answer():
    t = tracker()
    one, two = candidates(t.problem, 2)
    t.answer(one)
    t.answer(one)
    winner = t.finish([two])
    assert winner == two and t.answers == [(0, one.keep, None), (0, two.keep, None)]


def test_a_search_can_ask_for_fewer_finalists():
    t = tracker(finalists=3)
    pool = candidates(t.problem, 3)
    assert t.finish(pool, finalists=1) == pool[0]
    assert t.reward.selections == 0


def test_draws_are_distinct_ascending_and_seeded():
    t = tracker()
    draws = [t.draw(np.random.default_rng(seed), 5) for seed in range(20)]
    assert all(len(set(d)) == 5 and d == tuple(sorted(d)) and set(d) <= set(range(8)) for d in draws)
    assert draws[3] == t.draw(np.random.default_rng(3), 5)
    assert t.draw(np.random.default_rng(0), 99) == tuple(range(8))


def test_a_log_that_is_no_terminal_gets_some_lines(caplog):
    t = tracker(evaluations=100, windows=2)
    with caplog.at_level(logging.INFO, logger="ffp"):
        t.score(candidates(t.problem, 60), (0, 1), stage="a")
    lines = [r.getMessage() for r in caplog.records]
    assert 10 <= len(lines) <= 14
    assert re.search(r"test: 60 evaluations, 1200/2000 tokens, best 0\.\d{4}, \d+ tokens/s, \d+ s left", lines[-1])


def test_a_log_before_the_first_reward_says_that_there_is_none(caplog):
    t = tracker(evaluations=10, windows=2)
    with caplog.at_level(logging.INFO, logger="ffp"):
        t.removal_costs((0, 1))
    assert re.search(r"test: 1 evaluations, \d+/200 tokens, best none yet, ", caplog.text)


def test_uniform_keeps_the_same_share_of_all_channels():
    keep = uniform_allocation(structured_problem(0.3)).keep
    assert np.ptp(keep[1::2]) <= 1
    assert set(keep[0::2]) == {2}
