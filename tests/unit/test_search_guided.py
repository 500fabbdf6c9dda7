"""FastForward, guided: what moves and what does not, the policy it leaves, and that it gets ahead."""

import numpy as np
import pytest

from ffp import registry
from ffp.search.fastforward_guided import CLIP, FastForwardGuided, Worths
from ffp.search.ffn_only import ffn_only_allocation
from ffp.search.uniform import uniform_allocation
from ffp.types import Allocation, ConfigError, SearchBudget
from tests.synthetic import SyntheticReward, structured_problem

BUDGET = SearchBudget(48, 2)
LEARNERS = [name for name, method in registry.METHODS.items() if method.learns]


def search(problem, reward=None, *, seed=0, policy=None, name="fastforward-guided", **parameters):
    method = registry.create(name, parameters)
    if policy is not None:
        method = method.started_from(policy)
    return method.allocate(problem, stats=None, reward=reward or SyntheticReward(problem), budget=BUDGET, seed=seed)


def utility(problem, slopes, *, curvature=0.0, stderr=0.0):
    """The same on both sides of every decision."""
    found = np.zeros((len(problem.units), 2, 3))
    found[:, :, 0] = np.asarray(slopes)[:, None]
    found[:, :, 1] = np.array([curvature, -curvature])
    found[:, :, 2] = stderr
    return found


@pytest.mark.parametrize("target", [0.2, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_its_start_and_evolution_from_the_same_start(target, seed):
    problem = structured_problem(target)
    reward = SyntheticReward(problem)
    found = search(problem, seed=seed).allocation
    rival = search(problem, seed=seed, name="evolutionary", start="ffn-only").allocation
    assert reward.select(found) > reward.select(rival) > reward.select(ffn_only_allocation(problem)) - 1e-9


def test_worths_within_their_noise_move_nothing_much():
    problem = structured_problem()
    slopes = np.linspace(1, 2, len(problem.units))
    clear, noisy = (Worths(problem, 0.9, True) for _ in range(2))
    start = uniform_allocation(problem)
    clear.see(start, utility(problem, slopes))
    noisy.see(start, utility(problem, slopes, stderr=10.0))
    assert np.abs(clear.scores()).max() > 1
    assert np.abs(noisy.scores()).max() < 0.05


def test_noise_averages_out_over_steps():
    problem = structured_problem()
    slopes = np.linspace(1, 2, len(problem.units))
    worths, start = Worths(problem, 0.99, True), uniform_allocation(problem)
    sizes = []
    for _ in range(60):
        worths.see(start, utility(problem, slopes, stderr=0.5))
        sizes.append(np.abs(worths.scores()).max())
    assert sizes[0] < sizes[20] < sizes[-1]


def test_a_coarse_decision_moves_only_where_a_whole_unit_should():
    problem = structured_problem()
    fine = problem.group_params == problem.group_params.min()
    found = utility(problem, np.where(fine, np.linspace(0.9, 1.1, len(fine)), 1.0))
    first, second, third = np.flatnonzero(~fine)[:3]
    found[first, :, 0] = [3.0, 0.2]  # the last kept is worth its price, the first removed is not: right as it is
    found[second, :, 0] = [0.1, 0.0]
    found[third, :, 0] = [9.0, 4.0]
    worths = Worths(problem, 0.9, True)
    worths.see(uniform_allocation(problem), found)
    scores = worths.scores()
    assert scores[first] == 0
    assert scores[second] == -CLIP and scores[third] == CLIP


def test_curvature_saves_what_the_slope_would_give_away():
    problem = structured_problem()
    fine = problem.group_params == problem.group_params.min()
    found = utility(problem, np.where(fine, np.linspace(0.9, 1.1, len(fine)), -0.1))
    found[~fine, 0, 1] = 5.0
    found[~fine, 1] = np.nan
    for curvature, moves in ((True, False), (False, True)):
        worths = Worths(problem, 0.9, curvature)
        worths.see(Allocation("", tuple(problem.n_groups)), found)
        assert (worths.scores()[~fine] < 0).all() == moves


def test_a_unit_that_moved_starts_its_estimates_again():
    problem = structured_problem()
    worths, start = Worths(problem, 0.9, True), uniform_allocation(problem)
    worths.see(start, utility(problem, np.full(len(problem.units), 2.0)))
    moved = Allocation("", tuple(k - (i == 0) for i, k in enumerate(start.keep)))
    worths.see(moved, utility(problem, np.full(len(problem.units), 1.0)))
    assert (worths.weight[0] == 1).all() and (worths.weight[1:] == 1.9).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_a_policy_serves_another_sparsity_without_a_search(name):
    problem = structured_problem(0.2)
    policy = search(problem, name=name).policy
    harder = problem.at(0.3)
    reward = SyntheticReward(harder)
    found = search(harder, reward, policy=policy, name=name, zero_shot=True).allocation
    found.check(harder)
    assert reward.spent_tokens == 0
    assert reward.select(found) > reward.select(uniform_allocation(harder))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_warm_start_begins_where_the_policy_ended(name):
    problem = structured_problem(0.2)
    policy = search(problem, name=name).policy
    cold, warm = (search(problem.at(0.3), policy=start, name=name) for start in (None, policy))
    assert cold.trace != warm.trace
    assert search(problem.at(0.3), policy=policy, name=name).trace == warm.trace


@pytest.mark.parametrize("name", LEARNERS)
def test_a_policy_of_another_number_of_blocks_is_refused(name):
    policy = search(structured_problem(blocks=4), name=name).policy
    with pytest.raises(
        ConfigError, match=r"does not fit: .* Start from the same method, on a model with the same number"
    ):
        search(structured_problem(blocks=6), policy=policy, name=name)


@pytest.mark.parametrize("name", LEARNERS)
def test_without_rescoring_the_selection_text_is_not_read(name):
    problem = structured_problem()
    reward = SyntheticReward(problem)
    search(problem, reward, name=name, rescore=False)
    assert reward.selections == 0


def test_sampled_actions_come_from_the_seed():
    problem = structured_problem()
    one, same, other = (search(problem, seed=seed, spread=0.5).trace for seed in (1, 1, 2))
    assert one == same != other
    assert search(problem, seed=1).trace != one


def test_refusals():
    with pytest.raises(ConfigError, match=r"memory = 1 is not a number from 0 to 0.999"):
        FastForwardGuided(memory=1)
    with pytest.raises(ConfigError, match="curvature = 1 is neither true nor false"):
        FastForwardGuided(curvature=1)
