"""Shared decisions: the tied problem asks for the same budget as the full one, and its answers expand to the full's."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import decisions
from experiments.decisions import CHECKPOINTS, Tied, _search, share_decision
from ffp.config import Experiment
from ffp.core.problem import Decision
from ffp.core.projection import project_shares
from tests.helpers.synthetic import SyntheticReward, structured_problem


def test_decisions_refuse_positional_arguments():
    with pytest.raises(TypeError, match="positional"):
        Decision("block00.ffn", 96, 50, 16, 1, 1)  # type: ignore[misc]


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_a_tied_problem_has_the_budget_and_the_limits_of_the_full_one(blocks):
    full = structured_problem(0.3)
    tied = Tied(full, blocks).problem
    assert len(tied.decisions) == len(full.decisions) // blocks
    assert tied.total_params == full.total_params
    assert (tied.target, tied.granularity) == (full.target, full.granularity)
    assert sum(each.fixed_params for each in tied.decisions) == sum(each.fixed_params for each in full.decisions)
    assert tied.n_units @ tied.params_per_unit == full.n_units @ full.params_per_unit
    assert tied.min_keep @ tied.params_per_unit == full.min_keep @ full.params_per_unit
    assert {each.min_keep for each in tied.decisions} == {each.min_keep for each in full.decisions}
    if blocks == 1:
        assert tied == full


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_an_answer_expands_to_one_of_the_same_sparsity(blocks):
    full = structured_problem(0.3)
    tied = Tied(full, blocks)
    answer = project_shares(tied.problem, np.linspace(0.4, 0.9, len(tied.problem.decisions)))
    answer.check(tied.problem)
    expanded = tied.expand(answer)
    expanded.check(full)
    assert full.sparsity_of(expanded.keep) == pytest.approx(tied.problem.sparsity_of(answer.keep))
    assert len(set(expanded.keep[0 : 2 * blocks : 2])) == 1


def test_the_reward_of_an_answer_is_that_of_its_expansion():
    full = structured_problem(0.3)
    reward = SyntheticReward(full)
    tied = Tied(full, 3, reward)
    answer = project_shares(tied.problem, np.full(4, 0.7))
    assert tied(answer, windows=(0, 1)) == reward(tied.expand(answer), windows=(0, 1))
    assert tied.select(answer) == reward.select(tied.expand(answer))
    assert tied.window_tokens == reward.window_tokens
    each = reward.marginal_utility(tied.expand(answer), windows=(0, 1))
    utility = tied.marginal_utility(answer, windows=(0, 1))
    assert utility.shape == (4, 2, 3)
    np.testing.assert_allclose(utility[1, :, :2], each[[1, 3, 5], :, :2].mean(axis=0))
    np.testing.assert_allclose(utility[1, :, 2], each[[1, 3, 5], :, 2].mean(axis=0) / 3**0.5)


def test_a_search_leaves_a_curve_over_its_budget():
    full = structured_problem(0.3)
    curve = _search(Tied(full, 3, SyntheticReward(full)), Experiment("config/grids/race.yaml"), seed=1)
    assert len(curve) == len(CHECKPOINTS) and curve[0]["tokens"] == 0
    assert curve[-1]["selection_excess"] <= curve[0]["selection_excess"]


def test_blocks_of_other_sizes_or_numbers_cannot_share():
    full = structured_problem(0.3)
    with pytest.raises(SystemExit, match="--tied 4 does not divide the 6 blocks"):
        Tied(full, 4)
    first, second = full.decisions[1], dataclasses.replace(full.decisions[3], n_units=64)
    with pytest.raises(SystemExit, match=r"block00\.ffn and its neighbours have different sizes"):
        share_decision([first, second])


def test_searches_that_gain_nothing_have_no_part_in_the_law():
    def run(count, *losses):
        curve = [{"tokens": 100 * i, "selection_excess": loss} for i, loss in enumerate(losses)]
        return {"decisions": count, "curve": curve}

    runs = [run(6, 1.0, 0.5, 0.4), run(12, 1.0, 0.9, 0.4), run(60, 1.0, 1.1, 1.2)]
    marks = decisions.marks(runs)
    assert marks["tokens_needed"] == {"6": 100, "12": 200, "60": 0} and marks["exponent"] == pytest.approx(1.0)
    assert decisions.marks([runs[0], runs[2]])["exponent"] is None


def test_finished_runs_of_other_settings_are_not_taken(tiny_grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_grid)
    searched = []
    monkeypatch.setattr(decisions, "_search", lambda *_: searched.append(1) or [{"tokens": 0, "selection_excess": 1.0}])

    def run(**settings):
        experiment = Experiment(tiny_grid / "config/grid.yaml")
        search = experiment.grid.search.model_copy(update=settings)
        monkeypatch.setattr(experiment, "grid", experiment.grid.model_copy(update={"search": search}))
        decisions._run(experiment, SimpleNamespace(work=tmp_path, sparsity="0.30"), 1, 0)
        return len(searched)

    assert [run(), run(), run(evaluations=5), run()] == [1, 1, 2, 2]
