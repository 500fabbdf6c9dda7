"""FastForward, guided: what moves and what does not, the policy it leaves, and that it gets ahead."""

import numpy as np
import pytest

from ffp.allocators import METHODS, create
from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.searches.fastforward_guided import CLIP, FastForwardGuided, Policy
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation
from tests.helpers.synthetic import SyntheticReward, keep_whole, run_search, structured_problem

BUDGET = SearchBudget(48, 2)
LEARNERS = [name for name, method in METHODS.items() if getattr(method, "learns_policy", False)]


def search(problem, reward=None, *, seed=0, policy=None, name="fastforward-guided", **parameters):
    """The answer, and the tracker with all that led to it."""
    reward = reward or SyntheticReward(problem)
    return run_search(create(name, parameters), problem, reward, BUDGET, seed=seed, policy=policy)


def utility(problem, slopes, *, curvature=0.0, stderr=0.0):
    """The same on both sides of every decision."""
    found = np.zeros((len(problem.decisions), 2, 3))
    found[:, :, 0] = np.asarray(slopes)[:, None]
    found[:, :, 1] = np.array([curvature, -curvature])
    found[:, :, 2] = stderr
    return found


@pytest.mark.parametrize("target", [0.2, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_its_start_and_evolution_from_the_same_start(target, seed):
    problem = structured_problem(target)
    reward = SyntheticReward(problem)
    found, _ = search(problem, seed=seed)
    rival, _ = search(problem, seed=seed, name="evolutionary", start="ffn-only")
    assert reward.select(found) > reward.select(rival) > reward.select(ffn_only_allocation(problem)) - 1e-9


def policy_of(problem, start=None, **parameters):
    """A policy amid its range, and an allocation that it is at."""
    start = start or uniform_allocation(problem)
    return Policy(problem, np.zeros(len(problem.decisions)), FastForwardGuided(**parameters)), start


def learned(policy, allocation, found):
    """By how much one step moves the mean."""
    before = policy.mean
    policy.learn(allocation, found, np.zeros(len(before)))
    return policy.mean - before


def fine_of(problem):
    return problem.params_per_unit == problem.params_per_unit.min()


def test_what_stays_whole_has_no_say_in_the_price():
    """The others move as they do without it, whatever it seems to be worth."""
    alone = structured_problem(blocks=2)
    problem = keep_whole(structured_problem(blocks=6), lambda decision: decision.block > "block01")
    slopes = np.append([1.0, 2.0, 3.0, 4.0], np.full(8, 1e-6))
    moves = learned(*policy_of(problem), utility(problem, slopes, stderr=0.1))
    expected = learned(*policy_of(alone), utility(alone, slopes[:4], stderr=0.1))
    np.testing.assert_array_equal(moves[:4], expected)
    assert np.abs(expected).max() > 0.1


def test_worths_within_their_noise_move_nothing_much():
    problem = structured_problem()
    slopes = np.linspace(1, 2, len(problem.decisions))
    clear, noisy = (learned(*policy_of(problem), utility(problem, slopes, stderr=e)) for e in (0.0, 20.0))
    assert np.abs(clear).max() > 0.3
    assert np.abs(noisy).max() < 0.01


def test_a_clear_first_step_goes_all_the_way_in_logits():
    problem = structured_problem()
    fine = fine_of(problem)
    slopes = np.ones(len(fine))
    dear, cheap = np.flatnonzero(fine)[:2]
    slopes[dear], slopes[cheap] = 2.0, 0.5
    moved = learned(*policy_of(problem), utility(problem, slopes))
    assert moved[dear] == pytest.approx(np.log(2))
    assert moved[cheap] == pytest.approx(-0.5)
    assert np.flatnonzero(moved).tolist() == sorted([dear, cheap])


def test_steps_shrink_as_the_belief_gets_certain():
    problem = structured_problem()
    policy, start = policy_of(problem, drift=0.0)
    found = utility(problem, np.where(np.arange(len(problem.decisions)) == 1, 1.2, 1.0), stderr=0.5)
    moves = [learned(policy, start, found)[1] for _ in range(30)]
    assert (np.diff(moves) < 0).all()
    # the posterior of a mean over n observations, whose noise is that of two sides, relative to the worth
    assert policy.variance[1] == pytest.approx(1 / (1 / 0.5**2 + 30 * 1.2**2 / (0.5**2 / 2)))


def test_a_sampled_action_is_taken_into_account():
    """What an action off the mean measures, it measures there."""
    problem = structured_problem()
    fine = fine_of(problem)
    policy, start = policy_of(problem)
    before, sampled = policy.mean, np.where(fine, 0.3, 0.0)
    policy.learn(start, utility(problem, np.ones(len(fine))), sampled)
    assert policy.mean - before == pytest.approx(sampled)


def test_a_coarse_decision_moves_only_where_a_whole_unit_should():
    problem = structured_problem()
    found = utility(problem, np.ones(len(problem.decisions)))
    first, second, third = np.flatnonzero(~fine_of(problem))[:3]
    found[first, :, 0] = [3.0, 0.2]  # the last kept is worth its price, the first removed is not: right as it is
    found[second, :, 0] = [-0.1, -0.2]
    found[third, :, 0] = [9.0, 4.0]
    moved = learned(*policy_of(problem), found)
    assert moved[first] == 0
    assert moved[second] == -CLIP and moved[third] == CLIP


def test_curvature_saves_what_the_slope_would_give_away():
    problem = structured_problem()
    fine = fine_of(problem)
    found = utility(problem, np.where(fine, 1.0, -0.1))
    found[~fine, 0, 1] = 5.0
    found[~fine, 1] = np.nan
    for curvature, moves in ((True, False), (False, True)):
        policy, whole = policy_of(problem, Allocation("", tuple(problem.n_units)), curvature=curvature)
        assert (learned(policy, whole, found)[~fine] < 0).all() == moves


def test_a_coarse_decision_that_moved_starts_its_average_again():
    problem = structured_problem()
    dear, cheap = (utility(problem, np.where(fine_of(problem), 1.0, worth)) for worth in (2.0, 0.5))
    policy, start = policy_of(problem, memory=0.9)
    policy.learn(start, dear, np.zeros(len(problem.decisions)))
    stayed = Allocation("", tuple(k - (i == 0) for i, k in enumerate(start.keep)))
    moved = learned(policy, stayed, cheap)
    assert moved[0] == pytest.approx(-0.5)  # as if seen for the first time
    average = (2.0 * 0.9 + 0.5) / 1.9
    assert moved[2] == pytest.approx(average - 1)  # still worth more than the price


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_policy_serves_another_sparsity_without_a_search(name):
    problem = structured_problem(0.2)
    policy = search(problem, name=name)[1].policy
    harder = problem.at(0.3)
    reward = SyntheticReward(harder)
    found = search(harder, reward, policy=policy, name=name, zero_shot=True)[0]
    found.check(harder)
    assert reward.spent_tokens == 0
    assert reward.select(found) > reward.select(uniform_allocation(harder))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_warm_start_begins_where_the_policy_ended(name):
    problem = structured_problem(0.2)
    policy = search(problem, name=name)[1].policy
    cold, warm, again = (search(problem.at(0.3), policy=p, name=name)[1].rows for p in (None, policy, policy))
    assert cold != warm == again


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_policy_of_another_number_of_blocks_is_refused(name):
    policy = search(structured_problem(blocks=4), name=name)[1].policy
    with pytest.raises(
        ConfigError, match=r"does not fit: .* Start from the same method, on a model with the same number"
    ):
        search(structured_problem(blocks=6), policy=policy, name=name)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_policy_has_the_sizes_that_are_compared_before_a_search(name):
    method, problem = create(name, {}), structured_problem(blocks=4)
    arrays = search(problem, name=name)[1].policy
    assert sum(method.policy_sizes(problem)) in {np.asarray(array).size for array in arrays.values()}
    assert (
        method.policy_sizes(problem)
        == method.policy_sizes(problem.at(0.4))
        != method.policy_sizes(structured_problem(blocks=6))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_without_rescoring_the_selection_text_is_not_read(name):
    problem = structured_problem()
    reward = SyntheticReward(problem)
    search(problem, reward, name=name, rescore=False)
    assert reward.selections == 0


def test_sampled_actions_come_from_the_seed():
    problem = structured_problem()
    one, same, other = (search(problem, seed=seed, spread=0.5)[1].rows for seed in (1, 1, 2))
    assert one == same != other
    assert search(problem, seed=1)[1].rows != one
