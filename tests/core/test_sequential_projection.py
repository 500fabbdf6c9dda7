"""The published projection meets the exact budget and depends on the order of the decisions."""

import numpy as np
import pytest

from ffp.allocators.base import SearchBudget
from ffp.allocators.searches.fastforward import FastForward
from ffp.core.problem import PruningProblem
from ffp.core.projection import kept_budget, project, project_sequentially
from tests.helpers.synthetic import SyntheticReward, run_search, structured_problem


@pytest.mark.parametrize("target", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_budget_is_met_exactly(target, scale):
    problem = structured_problem(target)
    for seed in range(20):
        found = project_sequentially(problem, scale * np.random.default_rng(seed).normal(size=len(problem.decisions)))
        found.check(problem)
        slack = kept_budget(problem) - int(np.dot(found.keep, problem.params_per_unit))
        assert 0 <= slack < problem.params_per_unit.max()


def test_an_excess_is_cut_from_the_first_decisions():
    problem = structured_problem(0.4)
    shares = np.array(project_sequentially(problem, np.ones(len(problem.decisions))).keep) / problem.n_units
    assert shares[1] < 0.1 and shares[-1] > 0.9


def test_only_water_filling_does_not_depend_on_the_order():
    problem = structured_problem(0.3)
    backwards = PruningProblem(problem.decisions[::-1], problem.target)
    action = np.linspace(0.5, 1.5, len(problem.decisions))
    assert project(problem, action).keep == project(backwards, action[::-1]).keep[::-1]
    assert project_sequentially(problem, action).keep != project_sequentially(backwards, action[::-1]).keep[::-1]


@pytest.mark.slow
def test_a_search_can_use_it():
    problem = structured_problem()
    method = FastForward(projection="sequential")
    run_search(method, problem, SyntheticReward(problem), SearchBudget(24, 2))[0].check(problem)
