"""The published projection: on the exact budget, and as dependent on the order as it is said to be."""

import numpy as np
import pytest

from ffp.allocators.base import SearchBudget
from ffp.allocators.searches.fastforward import FastForward
from ffp.core.errors import ConfigError
from ffp.core.problem import PruningProblem
from ffp.core.projection import kept_budget, project
from ffp.core.sequential_projection import project_sequentially
from tests.helpers.synthetic import SyntheticReward, structured_problem


@pytest.mark.parametrize("target", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_budget_is_met_exactly(target, scale):
    problem = structured_problem(target)
    for seed in range(20):
        found = project_sequentially(problem, scale * np.random.default_rng(seed).normal(size=len(problem.decisions)))
        found.check(problem)
        slack = kept_budget(problem) - int(np.dot(found.keep, problem.params_per_unit))
        assert 0 <= slack < problem.params_per_unit.max()


def test_an_excess_is_cut_from_the_first_modules():
    problem = structured_problem(0.4)
    shares = np.array(project_sequentially(problem, np.ones(len(problem.decisions))).keep) / problem.n_units
    assert shares[1] < 0.1 and shares[-1] > 0.9


def test_only_the_water_filling_is_free_of_order():
    problem = structured_problem(0.3)
    backwards = PruningProblem(problem.decisions[::-1], problem.target)
    action = np.linspace(0.5, 1.5, len(problem.decisions))
    assert project(problem, action).keep == project(backwards, action[::-1]).keep[::-1]
    assert project_sequentially(problem, action).keep != project_sequentially(backwards, action[::-1]).keep[::-1]


def test_a_search_can_use_it_and_names_what_it_knows():
    problem = structured_problem()
    reward = SyntheticReward(problem)
    budget = SearchBudget(24, 2)
    method = FastForward(projection="sequential")
    method.allocate(problem, stats=None, reward=reward, budget=budget, seed=0).allocation.check(problem)
    with pytest.raises(ConfigError, match=r"projection 'sequental': did you mean sequential\?"):
        FastForward(projection="sequental")
