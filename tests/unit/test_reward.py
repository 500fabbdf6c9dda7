"""The evaluator: rewards against a slow loop, the memo, the bounds, and a journal that survives any end."""

import math

import numpy as np
import pytest
import torch

from ffp import budget
from ffp.calibration import Calibration, collect
from ffp.models.adapter import Adapter
from ffp.models.sliced import SlicedModel, mask
from ffp.pruning.masks import kept_units
from ffp.reward import REWARD_FLOOR, Journal, SlicedReward, Text
from tests.contracts.families import tiny, tokens


def dense_losses(model, windows):
    with torch.no_grad():
        return np.array([model(w[None], labels=w[None]).loss.item() for w in windows])


def calibrated(model):
    adapter = Adapter(model)
    windows = tokens(4)
    return adapter, Calibration(adapter, collect(adapter, windows, batch_tokens=40), windows.numel())


def make(journal=None):
    model = tiny("llama")
    windows = tokens(6)
    search = Text("search", windows[:4], dense_losses(model, windows[:4]))
    selection = Text("selection", windows[4:], dense_losses(model, windows[4:]))
    adapter, calibration = calibrated(model)
    sliced = SlicedModel(adapter, calibration.orders("wanda"))
    return SlicedReward(sliced, search, selection, batch_tokens=40, journal=journal)


def candidates(reward, n=3):
    problem = reward.sliced.adapter.problem(0.3)
    return [budget.project(problem, np.random.default_rng(i).normal(size=6)) for i in range(n)]


def test_reward_is_the_ratio_of_perplexities_of_the_masked_model():
    reward = make()
    allocation, windows = candidates(reward)[0], [0, 2, 3]
    model = tiny("llama")
    adapter, calibration = calibrated(model)
    dense = dense_losses(model, reward.search.windows[windows])
    mask(adapter, kept_units(adapter.problem(0.3), allocation, calibration.orders("wanda")))
    pruned = dense_losses(model, reward.search.windows[windows])
    expected = math.exp(dense.mean()) / math.exp(pruned.mean())
    assert reward(allocation, windows=windows) == pytest.approx(expected, rel=1e-5)


def test_the_memo_forwards_a_window_once_and_counts_only_that():
    reward = make()
    first, second, _ = candidates(reward)
    together = reward(first, windows=[0, 1])
    assert (reward.evaluations, reward.spent_tokens) == (1, 40)
    assert reward(first, windows=[1, 0]) == pytest.approx(together, rel=1e-12)
    assert (reward.evaluations, reward.spent_tokens) == (1, 40)
    reward(first, windows=[1, 2])
    reward(second, windows=[0])
    assert (reward.evaluations, reward.spent_tokens) == (3, 80)
    reward.select(first)
    assert (reward.spent_tokens, reward.selection_tokens) == (80, 40)


def test_a_loss_that_is_not_finite_gives_the_floor():
    reward = make()
    reward.sliced.model.model.norm.weight.data.fill_(float("nan"))
    assert reward(candidates(reward)[0], windows=[0]) == REWARD_FLOOR


def run(reward):
    return [reward(c, windows=[i, 3]) for i, c in enumerate(candidates(reward))] + [
        reward.select(candidates(reward)[1])
    ]


@pytest.mark.parametrize("damage", ["none", "truncated", "flipped", "foreign tail"])
def test_a_resumed_search_sees_the_same_losses_and_counts(tmp_path, damage, monkeypatch):
    path = tmp_path / "journal.txt"
    straight = make(Journal(path, "here"))
    rewards = run(straight)
    raw = bytearray(path.read_bytes())
    lines = raw.splitlines(keepends=True)
    if damage == "truncated":
        raw = raw[:-9]
    elif damage == "flipped":
        raw[len(lines[0]) + len(lines[1]) + 40] ^= 4
    elif damage == "foreign tail":
        raw += b"not a line of ours"
    path.write_bytes(raw)
    resumed = make(Journal(path, "here"))
    forwards = []
    measure = resumed._measure
    monkeypatch.setattr(resumed, "_measure", lambda *a: (forwards.append(a), measure(*a))[1])
    assert run(resumed) == rewards
    assert (resumed.evaluations, resumed.spent_tokens) == (straight.evaluations, straight.spent_tokens)
    assert len(forwards) == {"none": 0, "truncated": 1, "flipped": 3, "foreign tail": 0}[damage]
    assert resumed.earlier_s > 0


def test_a_journal_of_another_search_is_not_used(tmp_path):
    path = tmp_path / "journal.txt"
    run(make(Journal(path, {"text": "a"})))
    keys = [line.split('"key": "')[1].split('"')[0] for line in path.read_text().splitlines()[1:]]
    assert len(keys) == 4
    assert all(Journal(path, {"text": "a"}).find(key) for key in keys)
    assert not any(Journal(path, {"text": "b"}).find(key) for key in keys)


def test_marginal_utility_equals_gate_gradients_by_differences():
    """Against central differences of the masked model's loss with one unit's gate moved."""
    reward = make()
    allocation, windows = candidates(reward)[0], [0, 2]
    utility = reward.marginal_utility(allocation, windows=windows)
    assert (reward.evaluations, reward.spent_tokens) == (1, 3 * 2 * 20)
    adapter, ids = reward.sliced.adapter, reward.search.windows[windows]

    def loss(unit, index, gate):
        """Mean loss with unit `index` of one decision scaled by `gate`, all others as the allocation says."""
        reach = list(allocation.keep)
        position = adapter.units.index(unit)
        reach[position] = max(reach[position], index + 1)
        reward.sliced.set_keep(reach)
        scale = torch.ones(reach[position], dtype=torch.float64)
        scale[allocation.keep[position] :] = 0
        scale[index] = gate

        def scaled(module, arguments):
            return (arguments[0] * scale.repeat_interleave(unit.output_width),)

        hook = adapter.linear(unit.output).register_forward_pre_hook(scaled)
        with torch.no_grad():
            value = reward.sliced.model(ids, labels=ids).loss.item()
        hook.remove()
        return value

    for position, unit in enumerate(adapter.units):
        keep, n = allocation.keep[position], unit.budget.n_groups
        band = max(1, round(0.1 * n))
        for side, units in enumerate((range(max(0, keep - band), keep), range(keep, min(n, keep + band)))):
            if not len(units):
                assert math.isnan(utility[position, side])
                continue
            slopes = [(loss(unit, i, 1 - side + 5e-3) - loss(unit, i, 1 - side - 5e-3)) / 1e-2 for i in units]
            noise = 5e-3 * np.abs(slopes).max() / unit.budget.group_params  # the model's norms work in float32
            expected = -np.mean(slopes) / unit.budget.group_params
            assert utility[position, side] == pytest.approx(expected, abs=noise), unit.budget.name


def test_the_gated_forward_pays_for_the_reward_too():
    reward, plain = make(), make()
    allocation = candidates(reward)[1]
    reward.marginal_utility(allocation, windows=[1, 3])
    spent = reward.spent_tokens
    assert reward(allocation, windows=[1, 3]) == pytest.approx(plain(allocation, windows=[1, 3]), rel=1e-9)
    assert reward.spent_tokens == spent
