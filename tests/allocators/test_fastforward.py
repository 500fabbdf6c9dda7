"""FastForward: curricula, plan, PPO's update, and learning."""

import math

import numpy as np
import pytest
import torch

from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.ppo import DTYPE, ActorCritic, PpoAgent
from ffp.allocators.searches.fastforward import FastForward, n_contenders
from ffp.core.errors import ConfigError
from tests.helpers.synthetic import SyntheticReward, run_search, structured_problem

BUDGETS = [SearchBudget(e, w, f) for e in (1, 2, 8, 24, 96, 400, 3000) for w in (1, 4, 32) for f in (1, 4)]


def test_the_sparsity_curriculum_runs_from_five_percent_to_the_target():
    method = FastForward()
    xs = np.linspace(0, 1, 11)
    keep = [1 - method.sparsity_at(x, 0.3) for x in xs]
    np.testing.assert_allclose(keep, [0.7 + (0.95 - 0.7) * (1 - x) ** 3 for x in xs], rtol=1e-12)
    assert method.sparsity_at(0, 0.3) == pytest.approx(0.05)
    assert method.sparsity_at(1, 0.3) == 0.3
    assert method.sparsity_at(0.2, 0.04) == 0.04
    assert FastForward(sparsity_curriculum=False).sparsity_at(0, 0.3) == 0.3


def test_the_fidelity_curriculum_runs_from_five_percent_of_the_windows_to_all():
    method = FastForward()
    assert [method.fidelity_at(x) for x in (0, 0.5, 1)] == pytest.approx([0.05, 0.05 + 0.95 / 8, 1.0])
    assert FastForward(fidelity_curriculum=False).fidelity_at(0) == 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_plan_spends_the_budget_and_no_more(budget):
    method = FastForward()
    plan = method.plan(0.2, budget)
    cost = sum(batch.windows * batch.episodes for batch in plan) + n_contenders(budget) * budget.windows
    assert cost <= budget.evaluations * budget.windows
    episodes = sum(batch.episodes for batch in plan)
    longer = method.plan_of(0.2, budget, episodes + 20)
    assert sum(b.windows * b.episodes for b in longer) + n_contenders(budget) * budget.windows > (
        budget.evaluations * budget.windows
    )


def test_the_curricula_cover_the_first_third_of_the_episodes():
    plan = FastForward().plan(0.2, SearchBudget(3000, 4))
    starts = np.cumsum([0] + [batch.episodes for batch in plan])
    total = starts[-1]
    assert all(batch.episodes == 15 for batch in plan[:-1])
    for start, batch in zip(starts[:-1], plan, strict=True):
        assert batch.progress == pytest.approx(min(1, start / (total / 3)))
        assert (batch.sparsity == 0.2 and batch.windows == 4) or batch.progress < 1
    assert plan[0].sparsity == pytest.approx(0.05)
    assert plan[0].windows == 1
    assert [batch.sparsity for batch in plan] == sorted(batch.sparsity for batch in plan)


def test_both_curricula_can_be_switched_off():
    plan = FastForward(sparsity_curriculum=False, fidelity_curriculum=False).plan(0.2, SearchBudget(96, 4))
    assert {(batch.sparsity, batch.windows) for batch in plan} == {(0.2, 4)}
    assert sum(batch.episodes for batch in plan) == 96 - n_contenders(SearchBudget(96, 4))
    assert FastForward(curriculum=0).plan(0.2, SearchBudget(96, 4)) == plan


def test_batches_shrink_with_the_budget():
    sizes = {e: FastForward().plan(0.2, SearchBudget(e, 4))[0].episodes for e in (8, 24, 96, 150, 1000)}
    assert sizes == {8: 2, 24: 2, 96: 9, 150: 15, 1000: 15}
    assert FastForward(batch=7).plan(0.2, SearchBudget(1000, 4))[0].episodes == 7


@pytest.mark.slow
def test_the_trace_holds_the_curriculum_and_the_final_comparison():
    problem, budget = structured_problem(), SearchBudget(96, 4)
    allocation, tracker = run_search(FastForward(), problem, SyntheticReward(problem), budget)
    stages = [row["stage"] for row in tracker.rows]
    assert sorted(set(stages), key=stages.index) == ["curriculum", "policy", "contenders"]
    assert stages.count("contenders") <= n_contenders(budget)
    assert {row["sparsity"] for row in tracker.rows if row["stage"] != "curriculum"} == {0.2}
    for row in tracker.rows:
        assert problem.sparsity_of(row["keep"]) == pytest.approx(row["sparsity"], abs=60 / problem.total_params)
    contenders = [tuple(row["keep"]) for row in tracker.rows if row["stage"] == "contenders"]
    assert allocation.keep in contenders


def test_the_first_mean_is_about_uniform_and_the_first_deviation_is_one():
    agent = PpoAgent(40, FastForward(), seed=0)
    assert np.abs(agent.mean(0.2)).max() < 0.01
    samples = agent.sample(0.2, 4000)
    np.testing.assert_allclose(samples.std(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(samples.mean(axis=0), 0, atol=0.08)


def test_log_density_and_entropy_are_those_of_a_diagonal_gaussian():
    model = ActorCritic(5, 0.7, torch.Generator().manual_seed(0))
    states, actions = torch.full((3, 1), 0.2, dtype=DTYPE), torch.randn((3, 5), dtype=DTYPE)
    means, density = model.actor(states), []
    for mean, action in zip(means.tolist(), actions.tolist(), strict=True):
        z = [(a - m) / 0.7 for a, m in zip(action, mean, strict=True)]
        density.append(sum(-x * x / 2 - math.log(0.7) - math.log(2 * math.pi) / 2 for x in z))
    assert model.log_density(states, actions).tolist() == pytest.approx(density)
    assert model.entropy().item() == pytest.approx(5 * (math.log(0.7) + math.log(2 * math.pi * math.e) / 2))


def test_an_update_moves_towards_rewarded_actions():
    agent = PpoAgent(3, FastForward(), seed=0)
    actions = agent.sample(0.2, 15)
    before = agent.mean(0.2)
    agent.update(np.full(15, 0.2), actions, actions[:, 0])
    assert agent.mean(0.2)[0] > before[0]


def test_equal_rewards_leave_the_mean_where_it_is():
    agent = PpoAgent(3, FastForward(), seed=0)
    before = agent.mean(0.2)
    agent.update(np.full(15, 0.2), agent.sample(0.2, 15), np.full(15, 0.5))
    np.testing.assert_allclose(agent.mean(0.2), before, atol=1e-6)


@pytest.mark.slow
@pytest.mark.bad_input
@pytest.mark.parametrize("numbers", [{"learning_rate": 1e5}, {"initial_std": 1e300}])
def test_a_policy_that_leaves_the_numbers_of_floats_is_refused(numbers):
    """The bounds of hyper-parameters leave room for steps that are too long."""
    settings = FastForward().model_copy(update=numbers)
    agent, rng = PpoAgent(3, settings, seed=0), np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"^the policy of fastforward left the numbers .* Lower it, or epochs\.$"):
        for _ in range(9):
            agent.update(np.full(8, 0.3), agent.sample(0.3, 8), rng.random(8))


def test_it_learns_the_wanted_action_of_each_state():
    agent = PpoAgent(2, FastForward(), seed=0)
    wanted = {0.1: np.array([1.0, -1.0]), 0.5: np.array([-1.0, 1.0])}

    def reward(state, actions):
        return np.exp(-np.square(actions - wanted[state]).sum(axis=1) / 4)

    first = {state: reward(state, agent.mean(state)[None])[0] for state in wanted}
    for _ in range(60):
        states = np.array([0.1] * 8 + [0.5] * 7)
        actions = np.concatenate([agent.sample(0.1, 8), agent.sample(0.5, 7)])
        agent.update(states, actions, np.concatenate([reward(0.1, actions[:8]), reward(0.5, actions[8:])]))
    for state in wanted:
        assert reward(state, agent.mean(state)[None])[0] > first[state] + 0.2


@pytest.mark.slow
def test_the_mean_reward_of_episodes_rises():
    problem = structured_problem()
    reward = SyntheticReward(problem, n_windows=4)
    method = FastForward(sparsity_curriculum=False, fidelity_curriculum=False)
    _, tracker = run_search(method, problem, reward, SearchBudget(600, 4))
    rewards = [row["reward"] for row in tracker.rows if row["stage"] == "policy"]
    assert np.mean(rewards[-150:]) > np.mean(rewards[:150]) + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("target", [0.2, 0.3])
def test_it_beats_uniform(seed, target):
    problem = structured_problem(target)
    reward = SyntheticReward(problem)
    allocation, _ = run_search(FastForward(), problem, reward, SearchBudget(96, 4), seed=seed)
    assert reward.select(allocation) > reward.select(uniform_allocation(problem)) + 0.01


def test_a_budget_of_one_evaluation_gives_the_mean_action():
    problem = structured_problem()
    allocation, tracker = run_search(FastForward(), problem, SyntheticReward(problem), SearchBudget(1, 4))
    assert len(tracker.rows) == 1
    allocation.check(problem)


@pytest.mark.slow
def test_the_policy_is_returned_and_torchs_settings_are_left_alone():
    problem = structured_problem()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        _, tracker = run_search(FastForward(), problem, SyntheticReward(problem), SearchBudget(24, 2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    model = ActorCritic(len(problem.decisions), 1.0, torch.Generator())
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tracker.policy.items()})
    torch.testing.assert_close(torch.rand(3), expected)
