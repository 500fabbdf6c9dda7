"""OWL against the paper's equations, written as loops."""

import numpy as np
import pytest

from ffp.allocators.base import LinearStats
from ffp.allocators.blockwise import stretch
from ffp.allocators.heuristics import owl
from ffp.allocators.heuristics.owl import Owl, outlier_share
from ffp.core import projection
from ffp.core.errors import ArtifactError
from ffp.core.problem import Decision, PruningProblem
from tests.helpers.synthetic import SyntheticStats, structured_problem, unstructured_problem


def allocate(problem, stats, **parameters):
    return Owl(**parameters).allocate(problem, stats)


def slow_share(linears, multiple):
    entries = []
    for linear in linears:
        for row in linear.weight:
            for j, w in enumerate(row):
                entries.append(abs(float(w)) * float(linear.input_sq_mean[j]) ** 0.5)
    mean = sum(entries) / len(entries)
    return sum(a > multiple * mean for a in entries) / len(entries)


@pytest.mark.parametrize("multiple", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_outlier_share_equals_the_loop(multiple, chunk, monkeypatch):
    monkeypatch.setattr(owl, "CHUNK", chunk)
    stats = SyntheticStats(structured_problem())
    for block in range(stats.n_blocks):
        linears = list(stats.linears(block))
        assert outlier_share(linears, multiple) == pytest.approx(slow_share(linears, multiple), abs=1e-12)


def test_the_mean_is_over_the_whole_block():
    """A linear of large entries holds all outliers of its block, though it has none of its own."""
    ones = np.ones((2, 2), dtype=np.float32)
    small = [LinearStats(f"s{i}", "u", ones, np.ones(2), np.ones(2), 1) for i in range(9)]
    large = LinearStats("l", "u", 100 * ones, np.ones(2), np.ones(2), 1)
    assert outlier_share([large], 5) == 0
    assert outlier_share([*small, large], 5) == 0.1


def test_dead_inputs_are_no_outliers():
    dead = LinearStats("d", "u", np.ones((3, 4), dtype=np.float32), np.zeros(4), np.zeros(4), 1)
    assert outlier_share([dead], 5) == 0


def test_scores_are_stretched_to_twice_the_largest_deviation():
    assert stretch(np.array([0.01, 0.03, 0.02]), 0.08) == pytest.approx([0, 0.16, 0.08])
    assert not stretch(np.full(3, 0.5), 0.08).any()


def test_blocks_of_unequal_size_meet_the_budget_with_ratios_centred_by_parameters():
    sizes = (400, 1200, 800, 2400)
    decisions = [Decision(name=f"block{i:02d}.ffn", n_units=n, params_per_unit=1) for i, n in enumerate(sizes)]
    problem = PruningProblem(tuple(decisions), 0.5, "unstructured")
    stats = SyntheticStats(problem)
    shares = np.array([outlier_share(list(stats.linears(block)), 2.0) for block in range(4)])
    wanted = 0.5 + stretch(shares, 0.2) - np.average(stretch(shares, 0.2), weights=sizes)
    keep = allocate(problem, stats, outlier_threshold=2.0, max_deviation=0.2).keep
    np.testing.assert_allclose(np.array(keep) / sizes, wanted, atol=0.003)


@pytest.mark.parametrize("problem", [structured_problem(0.3, blocks=12), unstructured_problem(0.5)])
def test_modules_of_a_block_keep_the_share_of_the_equations(problem):
    stats = SyntheticStats(problem)
    shares = np.array([slow_share(list(stats.linears(b)), 5.0) for b in range(stats.n_blocks)])
    r = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * 0.08
    wanted = 1 - problem.target + r - r.mean()  # equal blocks: the plain mean
    allocation = allocate(problem, stats)
    expected = projection.project_shares(problem, np.repeat(wanted, 2))
    assert np.abs(np.subtract(allocation.keep, expected.keep)).max() <= 1  # the last bits may move one unit
    if problem.granularity == "unstructured":
        np.testing.assert_allclose(np.array(allocation.keep) / problem.n_units, np.repeat(wanted, 2), atol=0.002)


def test_no_deviation_is_uniform_and_a_large_one_still_meets_the_budget():
    problem = unstructured_problem(0.9)
    stats = SyntheticStats(problem)
    assert np.ptp(np.array(allocate(problem, stats, max_deviation=0.0).keep) / problem.n_units) < 0.002
    allocate(problem, stats, max_deviation=0.5).check(problem)


def test_statistics_that_lack_a_decision_are_refused():
    stats = SyntheticStats(structured_problem())
    other = PruningProblem((Decision(name="block77.ffn", n_units=10, params_per_unit=1),), 0.2)
    with pytest.raises(ArtifactError, match=r"no linear of block77\.ffn\. Calibrate this model again."):
        allocate(other, stats)
