"""Tyr's search: against a slow loop over masked models, its levels and rounds, and its size at a given budget."""

import copy
import math

import numpy as np
import pytest
import torch

from ffp import api
from ffp.allocators import ParameterError, create
from ffp.allocators.base import SearchBudget
from ffp.allocators.generations import generation_cost
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.allocators.searches.tyr_search import LevelGrid, offspring_for, stages_for
from ffp.core.problem import Allocation
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import mask
from ffp.pruning.cuts import make_cut
from ffp.pruning.structured import kept_units
from tests.helpers.families import tiny, tokens
from tests.helpers.synthetic import SyntheticReward, run_search, structured_problem

BUDGET = SearchBudget(20, 8, 3)
SIZE = 7  # offspring
DENSE = tiny("llama", num_hidden_layers=4)


class SlowReward:
    """The mean loss of each window, by a forward of a copy of the model in which units are masked."""

    def __init__(self, problem, order, windows):
        self.problem, self.order, self.windows, self.known = problem, order, windows, {}

    def __call__(self, keep, chosen):
        if fresh := [window for window in chosen if (keep, window) not in self.known]:
            prunable = PrunableModel(copy.deepcopy(DENSE))
            mask(prunable, kept_units(self.problem, Allocation(self.problem.problem_id, keep), self.order))
            for window in fresh:
                ids = self.windows[window][None]
                with torch.no_grad():
                    self.known[keep, window] = prunable.model(ids, labels=ids).loss.item()
        return sum(self.known[keep, window] for window in chosen) / len(chosen)


def slow_child(problem, parent, centre, steps, rng):
    """The parent with min(U{1..4}, U{1..4}) pairs of levels exchanged: attention i with j, or FFN i with j."""
    keep, n = list(parent), len(parent)

    def allowed(i, units):
        decision = problem.decisions[i]
        return abs(units - centre[i]) <= 4 * steps[i] and decision.min_keep <= units <= decision.n_units

    for _ in range(min(rng.integers(1, 5, size=2))):
        pairs = {
            i: [
                j
                for j in range(n)
                if j != i and j % 2 == i % 2 and allowed(i, keep[i] + steps[i]) and allowed(j, keep[j] - steps[j])
            ]
            for i in range(n)
        }
        if not any(pairs.values()):
            break
        taker = rng.choice([i for i in range(n) if pairs[i]])
        giver = rng.choice(pairs[taker])
        keep[taker] += steps[taker]
        keep[giver] -= steps[giver]
    return tuple(int(k) for k in keep)


def slow_generation(problem, loss, parent, centre, steps, size, rng):
    """The best of parent and offspring: 1/32 of these, judged on one window, meet the parent on eight."""
    brood = []
    for _ in range(20 * size):
        if len(brood) < size:
            child = slow_child(problem, parent, centre, steps, rng)
            if child != parent and child not in brood:
                brood.append(child)
    if not brood:
        return None
    for stage, windows in enumerate((1, 8)):
        pool = brood if stage == 0 else [parent, *brood]
        drawn = sorted(int(w) for w in rng.choice(8, size=windows, replace=False))
        ranked = sorted(pool, key=lambda keep: loss(keep, drawn))
        brood = ranked[: math.ceil(size / 32)] if stage == 0 else ranked
    return brood[0]


def slow_search(problem, loss, rng):
    """Four rounds of a quarter of 160 windows; the step is 1/8, 1/16, 1/32 and 1/64 of a module."""
    parents = [uniform_allocation(problem).keep]
    for number in range(4):
        centre = parents[0]
        steps = [max(1, round(d.n_units / 8 / 2**number)) for d in problem.decisions]
        idle = 0
        while idle < 10:
            before = len(loss.known)
            left = 160 * (number + 1) // 4 - len(loss.known)
            # the first stage costs a window a child, the second 8 for each survivor and for the parent
            size = max((n for n in range(1, SIZE + 1) if n + 8 * (math.ceil(n / 32) + 1) <= left), default=0)
            if not size:
                break
            winner = slow_generation(problem, loss, parents[0], centre, steps, size, rng)
            if winner is None:
                break
            idle = 0 if len(loss.known) > before else idle + 1
            if winner != parents[0]:
                parents.insert(0, winner)
    return list(dict.fromkeys(parents))


@pytest.mark.slow
def test_it_is_the_slow_search_on_a_real_model():
    prunable = PrunableModel(copy.deepcopy(DENSE))
    windows = api.Windows(tokens(4), tokens(8), tokens(11)[8:])
    calibration = api.calibrate(prunable, windows)
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    order = calibration.statistics.unit_orders("wanda")
    found = api.allocate(
        prunable, calibration, create("tyr-search", {"offspring": SIZE}), sparsity=0.5, cut=cut, budget=BUDGET, seed=5
    )
    loss = SlowReward(found.problem, order, windows.search)
    parents = slow_search(found.problem, loss, np.random.default_rng(5))
    best = SlowReward(found.problem, order, windows.selection)
    expected = min(parents[:3], key=lambda keep: best(keep, range(3)))
    assert len(parents) > 3, "a search that never gets ahead shows nothing"
    assert found.allocation.keep == expected
    assert found.cost.n_tokens - found.cost.selection_tokens == 20 * len(loss.known)


@pytest.mark.parametrize("share", [1 / 8, 1 / 16, 1 / 64])
@pytest.mark.parametrize("start", [uniform_allocation, ffn_only_allocation])
def test_mutations_stay_on_the_levels_and_on_the_budget_of_each_kind(share, start):
    problem = structured_problem(0.3)
    rng, parent = np.random.default_rng(0), start(problem)
    grid = LevelGrid.around(problem, parent, share, 4)
    step, centre = np.tile([1, round(96 * share)], 6), np.array(parent.keep)
    for _ in range(300):
        before, parent = np.array(parent.keep), grid.mutate(parent, rng)
        keep = np.array(parent.keep)
        parent.check(problem)
        assert keep[::2].sum() == centre[::2].sum() and keep[1::2].sum() == centre[1::2].sum()
        levels = (keep - centre) / step
        assert (levels == levels.round()).all() and np.abs(levels).max() <= 4
        assert np.abs((keep - before) / step).sum() <= 2 * 4
    assert (keep != centre).any()


def test_what_has_no_partner_stays():
    problem = structured_problem(0.3, blocks=1)
    parent = uniform_allocation(problem)
    assert LevelGrid.around(problem, parent, 0.125, 4).mutate(parent, np.random.default_rng(0)) == parent


def test_its_size_at_the_published_budget_is_the_published_one():
    """50 generations a round of 128 offspring, 16, 4 and 2 of which survive, on 2,048, 16,384 and 131,072 tokens."""
    windows = 64  # of 2,048 tokens
    stages = stages_for(windows)
    assert [2048 * stage.windows for stage in stages] == [2048, 16384, 131072]
    alive, survivors = 128, []
    for stage in stages:
        survivors.append(alive := math.ceil(alive * stage.surviving))
    assert survivors == [16, 4, 2]
    assert generation_cost(128, stages) == 128 + 16 * 8 + (4 + 1) * 64
    evaluations = 4 * 50 * generation_cost(128, stages) // windows
    assert offspring_for(SearchBudget(evaluations, windows), rounds=4) == 128
    assert offspring_for(SearchBudget(evaluations - 1, windows), rounds=4) < 128


@pytest.mark.parametrize("windows", [1, 2, 4, 8, 16, 64, 100])
@pytest.mark.parametrize("evaluations", [1, 30, 96, 1000])
def test_generations_and_offspring_shrink_alike(evaluations, windows):
    stages = stages_for(windows)
    n = offspring_for(SearchBudget(evaluations, windows), rounds=4)
    cost = 4 * math.ceil(50 * n / 128) * generation_cost(n, stages)
    more = 4 * math.ceil(50 * (n + 1) / 128) * generation_cost(n + 1, stages)
    assert (cost <= evaluations * windows or n == 1) and (more > evaluations * windows or n == 128)
    assert math.prod(stage.surviving for stage in stages) == 1 / 64
    assert [stage.windows for stage in stages] == sorted({max(1, windows // 64), max(1, windows // 8), windows})


def test_each_round_takes_its_share_of_the_budget_and_finer_steps():
    problem = structured_problem(0.3)
    budget = SearchBudget(96, 4)
    _, tracker = run_search(
        create("tyr-search", {"rounds": 3}), problem, SyntheticReward(problem, n_windows=64), budget
    )
    total = budget.tokens(10)
    for number, step in enumerate((12, 6, 3)):
        # what is too little for a generation, 9 windows, goes to the next round
        first, last = number * total / 3, (number + 1) * total / 3 - 90
        rows = [row for row in tracker.rows if first < row["tokens"] <= last]
        keeps = np.array([row["keep"] for row in rows])[:, 1::2]
        differences = keeps - keeps[0]
        assert len(rows) > 10 and (differences % step == 0).all() and differences.any()


def test_it_uses_the_budget_and_beats_uniform():
    problem = structured_problem()
    reward = SyntheticReward(problem, n_windows=64)
    allocation, _ = run_search(create("tyr-search", {}), problem, reward, SearchBudget(96, 4))
    assert 0.97 <= reward.spent_tokens / SearchBudget(96, 4).tokens(reward.window_tokens) <= 1
    assert reward.select(allocation) > reward.select(uniform_allocation(problem)) + 0.01


def test_levels_without_a_middle_are_refused():
    with pytest.raises(ParameterError, match=r"'tyr-search' has levels = 8, which has no middle\. Give an odd number"):
        create("tyr-search", {"levels": 8})
