"""REINFORCE on masks of units: the estimate against autograd, whole runs against a slow loop, and the two budgets."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli

from ffp import api
from ffp.allocators import ParameterError, create
from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.searches.policy_gradient import first_probabilities, policy_gradient, to_budget
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import mask
from ffp.pruning.cuts import make_cut
from tests.helpers.families import tiny, tokens
from tests.helpers.synthetic import SyntheticReward, keep_whole, run_search, structured_problem

WINDOWS = api.Windows(tokens(4), tokens(6), tokens(3))
RATE = 0.05


def test_the_estimate_is_the_gradient_of_log_probabilities_times_their_deviation():
    rng = np.random.default_rng(0)
    p, advantages = rng.uniform(0.05, 0.95, 7), rng.normal(size=3)
    masks = (rng.random((3, 7)) < p).astype(float)
    t = torch.tensor(p, requires_grad=True)
    log_probabilities = Bernoulli(t).log_prob(torch.tensor(masks)).sum(1)
    (torch.tensor(advantages) @ log_probabilities / (3 - 1)).backward()
    expected = t.grad.numpy() * np.sqrt(p * (1 - p))
    np.testing.assert_allclose(policy_gradient(p, masks, advantages), expected, rtol=1e-5)


def test_the_estimate_is_the_gradient_of_the_expected_loss_in_the_mean_whatever_the_baseline():
    """Over all pairs of masks of four units, each with its probability."""
    rng = np.random.default_rng(1)
    p, table = rng.uniform(0.2, 0.8, 4), rng.normal(size=16)
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    chance = np.prod(np.where(masks == 1, p, 1 - p), axis=1)
    mean = sum(
        chance[i] * chance[j] * policy_gradient(p, masks[[i, j]], table[[i, j]] - 0.7)
        for i, j in itertools.product(range(16), repeat=2)
    )
    t = torch.tensor(p, requires_grad=True)
    m = torch.tensor(masks)
    (torch.where(m == 1, t, 1 - t).prod(1) @ torch.tensor(table)).backward()
    np.testing.assert_allclose(mean, 2 * t.grad.numpy() * np.sqrt(p * (1 - p)), rtol=1e-5)


def slow_search(problem, orders, steps, adam):
    """The same on a model whose units are masked anew for each sample, with scalars and torch's own Adam."""
    rng, first = np.random.default_rng(0), uniform_allocation(problem)
    p = []
    for decision, keep in first.items(problem):
        ranks = torch.arange(decision.n_units, 0, -1).double()
        curve = torch.sigmoid((ranks - ranks.mean()) / ranks.std(unbiased=False))
        p.append((keep / decision.n_units + curve - curve.mean()).clamp(0, 1))
    dense, baseline = tiny("llama"), None
    optimizer = torch.optim.Adam(p, lr=RATE, betas=(0.5, 0.999))
    project(problem, p, first)
    for step in range(steps):
        flat, losses = torch.cat(p), []
        samples = torch.from_numpy(rng.random((2, len(flat)))) < flat
        ids = WINDOWS.search[[int(rng.choice(6, size=1, replace=False)[0])]]
        for sample in samples:
            prunable = PrunableModel(tiny("llama"))
            parts = torch.split(sample, [len(each) for each in p])
            mask(prunable, {d: np.sort(orders[d][part.numpy()]) for d, part in zip(orders, parts, strict=True)})
            with torch.no_grad():
                losses.append(float(prunable.model(ids, labels=ids).loss - dense(ids, labels=ids).loss))
        mean = sum(losses) / 2
        baseline = mean if baseline is None else 0.8 * baseline + 0.2 * mean
        score = (samples.double() - flat) / ((flat + 1e-7) * (1 - flat + 1e-7)).sqrt()
        gradient = torch.split((losses[0] - baseline) * score[0] + (losses[1] - baseline) * score[1], list(map(len, p)))
        rate = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate
        for each, slope in zip(p, gradient, strict=True):
            each.grad = slope
            if not adam:
                each -= rate * slope
        if adam:
            optimizer.step()
        project(problem, p, first)
    return p


def project(problem, p, first):
    """Shifts the probabilities of attention, and of the FFNs, down until as many are expected as may stay."""
    for kind in (0, 1):
        parts, most = p[kind::2], sum(first.keep[kind::2])
        v = 0.0
        for power in range(1, 50):
            v += 2.0**-power * (expected(parts, v + 2.0**-power) > most)
        v *= expected(parts, 0.0) > most
        for each in parts:
            each.copy_((each - v).clamp(0, 1))


def expected(parts, v):
    return sum(float((each - v).clamp(0, 1).sum()) for each in parts)


@pytest.mark.slow
@pytest.mark.parametrize("adam", [True, False])
def test_it_keeps_the_units_of_a_slow_loop(adam):
    prunable = PrunableModel(tiny("llama"))
    calibration = api.calibrate(prunable, WINDOWS)
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    method = create("policy-gradient", {"learning_rate": RATE, "adam": adam})
    found = api.allocate(prunable, calibration, method, sparsity=0.3, cut=cut, budget=SearchBudget(24, 1))
    assert found.cost.n_tokens == 24 * 20 and found.cost.evaluations == 24
    assert {row["stage"] for row in found.trace} == {"policy"}
    orders = calibration.statistics.unit_orders("wanda")
    p = slow_search(found.problem, orders, 12, adam)
    first, moved = uniform_allocation(found.problem), 0
    for kind in (0, 1):
        names = [d.name for d in found.problem.decisions][kind::2]
        count = sum(first.keep[kind::2])
        ranked = sorted((-float(x), j / len(each), i) for i, each in enumerate(p[kind::2]) for j, x in enumerate(each))
        assert sum(found.keep[name] for name in names) == count
        for i, (name, each) in enumerate(zip(names, p[kind::2], strict=True)):
            best = sum(i == k for *_, k in ranked[:count])
            chosen = orders[name][np.argsort(-each.numpy(), kind="stable")[:best]]
            assert set(np.flatnonzero(found.allocation.units[name])) == set(chosen), name
            moved += set(chosen) != set(orders[name][:best])
    assert moved, "all as by the score"


def test_probabilities_begin_at_the_shares_of_the_start_and_fall_along_the_order():
    problem = structured_problem(0.3)
    for start in (uniform_allocation(problem), ffn_only_allocation(problem)):
        p = np.split(first_probabilities(problem, start), np.cumsum(problem.n_units)[:-1])
        for each, keep, n in zip(p, start.keep, problem.n_units, strict=True):
            assert (np.diff(each) <= 0).all() and each.min() >= 0 and each.max() <= 1
            if 0.3 < keep / n < 0.7:
                assert each.mean() == pytest.approx(keep / n, abs=0.01)


def test_the_projection_is_a_shift_of_each_kind_to_its_budget_and_leaves_what_has_to_stay():
    problem = keep_whole(structured_problem(0.3), lambda d: d.block == "block01")
    first = uniform_allocation(problem)
    attention = np.repeat([decision.module == "attention" for decision in problem.decisions], problem.n_units)
    p = np.random.default_rng(0).uniform(0, 1.6, len(attention))
    found = to_budget(problem, p, first)
    whole = np.repeat(problem.min_keep == problem.n_units, problem.n_units)
    assert (found[whole] == 1).all() and found.min() >= 0 and found.max() <= 1
    for mine, kept in ((attention, first.keep[::2]), (~attention, first.keep[1::2])):
        assert found[mine].sum() == pytest.approx(sum(kept), abs=1e-6)
        inside = mine & (found > 0) & (found < 1)
        assert inside.sum() > 2 and np.ptp((p - found)[inside]) < 1e-9
    lower = to_budget(problem, p - 1.1, first)
    np.testing.assert_array_equal(lower, np.where(whole, 1, np.clip(p - 1.1, 0, 1)))


@pytest.mark.slow
def test_more_tokens_get_ahead_of_the_start():
    problem = structured_problem(0.3)
    truth, method = SyntheticReward(problem), create("policy-gradient", {"learning_rate": 0.02})
    rewards = [
        truth.select(run_search(method, problem, SyntheticReward(problem), SearchBudget(n, 1))[0]) for n in (1, 2000)
    ]
    assert rewards[0] == truth.select(uniform_allocation(problem)) < rewards[1]


def test_a_start_that_keeps_attention_whole_keeps_it():
    problem = structured_problem(0.3)
    method = create("policy-gradient", {"start": "ffn-only", "learning_rate": 0.1})
    allocation, tracker = run_search(method, problem, SyntheticReward(problem), SearchBudget(100, 2))
    assert all(keep == d.n_units for d, keep in allocation.items(problem) if d.module == "attention")
    assert allocation.keep != ffn_only_allocation(problem).keep
    kept = [[row["keep"][i] for i in range(0, 12, 2)] for row in tracker.rows]
    assert min(map(min, kept)) < 3, "attention is sampled too"


def test_one_sample_has_no_baseline_and_is_refused():
    with pytest.raises(ParameterError, match="samples = 1 is not a whole number from 2 to 1000"):
        create("policy-gradient", {"samples": 1})
