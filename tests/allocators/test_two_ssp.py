"""2SSP: against a slow loop over masked models, the number of attentions that leave, and who is refused."""

import copy
import re

import numpy as np
import pytest
import torch

from ffp import api
from ffp.allocators import create
from ffp.allocators.base import SearchBudget
from ffp.allocators.searches.two_ssp import attentions_to_remove, per_round
from ffp.core.errors import ConfigError
from ffp.core.problem import Decision, PruningProblem
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import mask
from ffp.pruning.cuts import make_cut
from ffp.pruning.structured import kept_units
from tests.helpers.families import tiny, tokens
from tests.helpers.synthetic import SyntheticReward, keep_whole, run_search

DENSE = tiny("llama", num_hidden_layers=5)
CUT = make_cut("structured", score="wanda", compensation="none", pruner="wanda")


def real(sparsity, budget, windows=1, seed=0):
    """The answer on a real model, the order of its units, and its search text."""
    prunable = PrunableModel(copy.deepcopy(DENSE), min_keep=0)
    texts = api.Windows(tokens(4), tokens(8), tokens(3))
    calibration = api.calibrate(prunable, texts)
    order = calibration.statistics.unit_orders("wanda")
    method = create("2ssp", {"windows": windows})
    found = api.allocate(prunable, calibration, method, sparsity=sparsity, cut=CUT, budget=budget, seed=seed)
    return found, order, texts.search


def slow_loss(order, problem, width, gone, ids):
    """The loss of the masked model whose FFNs have these widths, without these attentions."""
    keep = [0 if block in gone else 2 for block in range(5)]
    prunable = PrunableModel(copy.deepcopy(DENSE), min_keep=0)
    names = [decision.name for decision in problem.decisions]
    kept = {names[2 * b]: np.sort(order[names[2 * b]][: keep[b]]) for b in range(5)}
    kept |= {names[2 * b + 1]: np.sort(order[names[2 * b + 1]][: width[b]]) for b in range(5)}
    mask(prunable, kept)
    with torch.no_grad():
        return prunable.model(ids, labels=ids).loss.item()


@pytest.mark.slow
@pytest.mark.parametrize(("sparsity", "seed"), [(0.3, 0), (0.3, 1), (0.45, 2)])
def test_it_is_the_slow_greedy_loop_on_a_real_model(sparsity, seed):
    found, order, search = real(sparsity, SearchBudget(60, 1), seed=seed)
    attention, ffn = (sum(d.params for d in found.problem.decisions[i::2]) / 5 for i in (0, 1))
    n = round(5 * sparsity ** (ffn / attention / 1.5))
    width = found.allocation.keep[1::2]
    left = found.problem.params_to_remove - n * 2 * found.problem.decisions[0].params_per_unit
    equal = 40 - left / 5 / found.problem.decisions[1].params_per_unit
    assert n > 1 and all(equal - 1 < k < equal + 1 for k in width), "FFNs give the same share of what is left"

    ids = search[np.random.default_rng(seed).choice(8, size=1, replace=False)]
    gone, forwards = [], 0
    for _ in range(n):
        losses = {b: slow_loss(order, found.problem, width, [*gone, b], ids) for b in range(1, 5) if b not in gone}
        gone.append(min(losses, key=losses.get))
        forwards += len(losses)
    assert found.allocation.keep[::2] == tuple(0 if block in gone else 2 for block in range(5))
    assert (found.cost.evaluations, found.cost.n_tokens) == (forwards, 20 * forwards)
    kept_units(found.problem, found.allocation, order)  # the allocation meets the budget


def test_where_tokens_lack_a_round_takes_several_and_without_any_the_last_ones_leave():
    found, order, search = real(0.45, SearchBudget(5, 1))
    width, n = found.allocation.keep[1::2], sum(keep == 0 for keep in found.allocation.keep[::2])
    ids = search[np.random.default_rng(0).choice(8, size=1, replace=False)]
    ranked = sorted(range(1, 5), key=lambda b: slow_loss(order, found.problem, width, [b], ids))
    assert n > 1 and found.cost.evaluations == 4
    assert found.allocation.keep[::2] == tuple(0 if block in ranked[:n] else 2 for block in range(5))
    found, *_ = real(0.45, SearchBudget(3, 1))
    assert found.cost.evaluations == 0
    assert found.allocation.keep[::2] == tuple(0 if block >= 5 - n else 2 for block in range(5))


@pytest.mark.parametrize(("n", "count", "affordable"), [(9, 4, 30), (9, 4, 29), (9, 4, 16), (9, 4, 9), (9, 4, 8)])
def test_rounds_take_as_few_attentions_as_the_budget_pays_for(n, count, affordable):
    costs, each = {}, 0
    for size in range(1, count + 1):
        left, gone, cost = n, 0, 0
        while gone < count:
            cost += left
            gone, left = gone + size, left - size
        costs[size] = cost
    while each < count and costs.get(each, affordable + 1) > affordable:
        each += 1
    assert per_round(n, count, affordable) == (each if costs[each] <= affordable else 0)
    assert per_round(n, 0, affordable) == 0


def llama_2_7b(sparsity):
    attention, ffn = 4 * 4096**2, 3 * 4096 * 11008
    decisions = []
    for block in range(32):
        decisions.append(
            Decision(name=f"block{block:02d}.attention", n_units=32, params_per_unit=attention // 32, min_keep=0)
        )
        decisions.append(
            Decision(name=f"block{block:02d}.ffn", n_units=11008, params_per_unit=ffn // 11008, min_keep=0)
        )
    return PruningProblem(tuple(decisions), sparsity)


@pytest.mark.parametrize(("sparsity", "n"), [(0.25, 5), (0.375, 9), (0.5, 13)])
def test_attentions_of_llama_2_7b(sparsity, n):
    """round(32 * s^(2.016 / 1.5)): 32 * 0.155, 32 * 0.268, 32 * 0.394."""
    assert attentions_to_remove(llama_2_7b(sparsity), 1.5) == n
    assert attentions_to_remove(llama_2_7b(sparsity), 100) > n > attentions_to_remove(llama_2_7b(sparsity), 0.5)


@pytest.mark.parametrize(("sparsity", "alpha"), [(0.05, 100), (0.9, 0.1), (0.6, 0.01)])
def test_the_number_gives_way_to_the_budget(sparsity, alpha):
    """More attentions than the sparsity allows, or fewer than FFNs can make up for."""
    problem = llama_2_7b(sparsity)
    method, reward = create("2ssp", {"alpha": alpha}), SyntheticReward(problem)
    allocation, _ = run_search(method, problem, reward, SearchBudget(2000, 1))
    allocation.check(problem)
    gone, wanted = allocation.keep[::2].count(0), attentions_to_remove(problem, alpha)
    assert gone + allocation.keep[::2].count(32) == 32
    removed, size = problem.params_to_remove, 4 * 4096**2
    if wanted > gone:
        assert gone == removed // size
    else:
        assert gone == max(wanted, -(-(removed - 32 * 3 * 4096 * 11008) // size))
    assert max(allocation.keep[1::2]) - min(allocation.keep[1::2]) <= 1


def test_blocks_that_stay_whole_count_for_nothing():
    whole = keep_whole(llama_2_7b(0.0), lambda decision: decision.block >= "block16")
    half = PruningProblem(whole.decisions[:32], 0.3)
    problem = whole.at(0.15)
    assert attentions_to_remove(problem, 1.5) == attentions_to_remove(half, 1.5) > 0
    allocation, _ = run_search(create("2ssp", {}), problem, SyntheticReward(problem), SearchBudget(500, 1))
    assert allocation.keep[32:] == tuple(decision.n_units for decision in problem.decisions[32:])


def test_attentions_that_have_to_keep_a_part_are_refused_before_a_token_is_spent():
    line = (
        "2ssp removes whole attentions, but block01.attention has to keep 1 of 2 units. Set min_keep: 0 for the model"
    )
    prunable = PrunableModel(copy.deepcopy(DENSE))
    calibration = api.calibrate(prunable, api.Windows(tokens(4), tokens(4), tokens(3)))
    with pytest.raises(ConfigError, match=re.escape(line)):
        api.allocate(prunable, calibration, create("2ssp", {}), sparsity=0.3, cut=CUT)
    create("2ssp", {}).check(PrunableModel(copy.deepcopy(DENSE), min_keep=0, keep_blocks="0,2").problem(0.2))


def test_a_single_kv_group_that_has_to_stay_is_refused_unless_its_block_is_whole():
    model = tiny("llama", num_key_value_heads=1)
    with pytest.raises(ConfigError, match=r"block01\.attention has to keep 1 of 1 units"):
        create("2ssp", {}).check(PrunableModel(model).problem(0.2))
    create("2ssp", {}).check(PrunableModel(model, min_keep=0, keep_blocks="1").problem(0.1))
