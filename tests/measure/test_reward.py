"""Rewards against a slow loop, remembered losses, the bounds, and a journal that survives any end."""

import math

import numpy as np
import pytest
import torch

from ffp.core import projection
from ffp.core.errors import ConfigError
from ffp.measure.calibration import collect
from ffp.measure.journal import MemoryJournal
from ffp.measure.loss import token_losses
from ffp.measure.reward import ModelReward
from ffp.measure.text import REWARD_FLOOR, Text, reward_of
from ffp.models.prunable import PrunableModel
from ffp.models.refit import damped
from ffp.models.sliced import SlicedModel, mask
from ffp.pruning.cuts import make_cut
from ffp.pruning.structured import kept_units
from ffp.store.journal import FileJournal
from tests.helpers.families import tiny, tokens


def dense_losses(model, windows):
    with torch.no_grad():
        return np.array([model(w[None], labels=w[None]).loss.item() for w in windows])


def calibrated(model):
    prunable = PrunableModel(model)
    return prunable, collect(prunable, tokens(4), batch_tokens=40, grams=True)


def make(journal=None, *, compensated=False):
    model = tiny("llama")
    windows = tokens(6)
    search = Text("search", windows[:4], dense_losses(model, windows[:4]))
    selection = Text("selection", windows[4:], dense_losses(model, windows[4:]))
    prunable, calibration = calibrated(model)
    order = calibration.unit_orders("wanda")
    refits = calibration.refits(order) if compensated else None
    sliced = SlicedModel(prunable, order, refits, gram=calibration.gram)
    return ModelReward(sliced, search, selection, batch_tokens=40, journal=journal)


def candidates(reward, n=3):
    problem = reward.candidates.prunable.problem(0.3)
    return [projection.project(problem, np.random.default_rng(i).normal(size=6)) for i in range(n)]


def test_reward_is_the_ratio_of_perplexities_of_the_masked_model():
    reward = make()
    allocation, windows = candidates(reward)[0], [0, 2, 3]
    model = tiny("llama")
    prunable, calibration = calibrated(model)
    dense = dense_losses(model, reward.search.windows[windows])
    mask(prunable, kept_units(prunable.problem(0.3), allocation, calibration.unit_orders("wanda")))
    pruned = dense_losses(model, reward.search.windows[windows])
    expected = math.exp(dense.mean()) / math.exp(pruned.mean())
    assert reward(allocation, windows=windows) == pytest.approx(expected, rel=1e-5)


def test_a_window_is_forwarded_and_counted_once():
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
    reward.candidates.model.model.norm.weight.data.fill_(float("nan"))
    assert reward(candidates(reward)[0], windows=[0]) == REWARD_FLOOR


@pytest.mark.parametrize("gap", [-0.5, 0.0, 3.0, 13.0, 16.0, 30.0, 49.0])
def test_bad_candidates_do_not_tie(gap):
    """What is far from the dense model is ranked too, and its loss can be read from its reward."""
    text = Text("search", torch.zeros(2, 4, dtype=torch.int64), np.array([3.0, 5.0]))
    value = reward_of(text, [0, 1], [3.0 + gap, 5.0 + gap])
    assert -math.log(value) == pytest.approx(gap, abs=1e-12)
    assert value > reward_of(text, [0, 1], [3.0 + gap, 5.1 + gap]) > REWARD_FLOOR
    assert reward_of(text, [0, 1], [3.0, math.inf]) == reward_of(text, [0, 1], [1e9, 5.0]) == REWARD_FLOOR


def run(reward):
    return [reward(c, windows=[i, 3]) for i, c in enumerate(candidates(reward))] + [
        reward.select(candidates(reward)[1])
    ]


@pytest.mark.parametrize("damage", ["none", "truncated", "flipped", "foreign tail"])
def test_a_resumed_search_sees_the_same_losses_and_counts(tmp_path, damage, monkeypatch):
    path = tmp_path / "journal.txt"
    straight = make(FileJournal(path, "here"))
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
    resumed = make(FileJournal(path, "here"))
    forwards = []
    measure = resumed._measure
    monkeypatch.setattr(resumed, "_measure", lambda *a: (forwards.append(a), measure(*a))[1])
    assert run(resumed) == rewards
    assert (resumed.evaluations, resumed.spent_tokens) == (straight.evaluations, straight.spent_tokens)
    assert len(forwards) == {"none": 0, "truncated": 1, "flipped": 3, "foreign tail": 0}[damage]
    assert resumed.earlier_s > 0


def test_a_journal_says_what_each_measurement_cost():
    reward = make(journal := MemoryJournal())
    run(reward)
    reward.marginal_utility(candidates(reward)[2], windows=[0, 1])
    cost = {text: 0 for text in ("search", "selection", "gates")}
    for entry in journal.entries:
        cost[entry["key"].partition(":")[0]] += entry["tokens"]
    assert cost["selection"] == reward.selection_tokens > 0
    assert cost["search"] + cost["gates"] == reward.spent_tokens
    assert cost["gates"] == 3 * 2 * 20
    assert all(journal.find(entry["key"]) is None for entry in journal.entries)
    assert all(MemoryJournal(journal.entries).find(entry["key"]) == entry for entry in journal.entries)


def slopes_of_a_gate(reward, allocation, ids, position, columns, on):
    """d(sum of losses)/d(a gate on these columns of one output linear) at every token, (windows, tokens).

    The whole model, with every unit that the allocation removes masked.
    """
    sliced = reward.candidates
    sliced.set_keep([each.decision.n_units for each in sliced.prunable.modules])
    gate = torch.full((*ids.shape, 1), on, dtype=torch.float64, requires_grad=True)
    hooks = []
    for i, each in enumerate(sliced.prunable.modules):
        width = each.output_width
        scale = (torch.arange(each.decision.n_units * width) < allocation.keep[i] * width).double()

        def hook(module, arguments, scale=scale, own=i == position):
            scaled = arguments[0] * scale
            if own:
                chosen = torch.zeros_like(scale)
                chosen[columns] = 1
                scaled = arguments[0] * (scale * (1 - chosen) + gate * chosen)
            return (scaled,)

        hooks.append(sliced.prunable.linear(each.output).register_forward_pre_hook(hook))
    token_losses(sliced.model, ids).sum().backward()
    for hook in hooks:
        hook.remove()
    return gate.grad[..., 0]


def test_marginal_utility_is_slope_and_curvature_of_a_gate_that_a_band_shares():
    """Against autograd with one gate for a band at each token, on the whole model with everything else masked."""
    reward = make()
    allocation, windows = candidates(reward)[0], [0, 2]
    utility = reward.marginal_utility(allocation, windows=windows)
    assert (reward.evaluations, reward.spent_tokens) == (1, 3 * 2 * 20)
    sliced, ids = reward.candidates, reward.search.windows[windows]
    n_tokens = ids[:, 1:].numel()
    for position, each in enumerate(sliced.prunable.modules):
        keep, n, width = allocation.keep[position], each.decision.n_units, each.output_width
        band = max(1, round(0.1 * n))
        for side, units in enumerate((range(max(0, keep - band), keep), range(keep, min(n, keep + band)))):
            if not units:
                assert np.isnan(utility[position, side]).all()
                continue
            slopes = slopes_of_a_gate(
                reward, allocation, ids, position, slice(units.start * width, units.stop * width), 1.0 - side
            )
            scale = n_tokens * len(units) * each.decision.params_per_unit
            square = slopes.square().sum().item()
            expected = [-slopes.sum().item() / scale, (0.5 - side) * square / scale, math.sqrt(square) / scale]
            assert utility[position, side] == pytest.approx(expected, rel=2e-3), each.decision.name


def test_marginal_utility_makes_the_reward_of_the_same_windows_free():
    reward, plain = make(), make()
    allocation = candidates(reward)[1]
    reward.marginal_utility(allocation, windows=[1, 3])
    spent = reward.spent_tokens
    assert reward(allocation, windows=[1, 3]) == pytest.approx(plain(allocation, windows=[1, 3]), rel=1e-9)
    assert reward.spent_tokens == spent


def slope_along(sliced, linear, ids, weight, change, at):
    """d(sum of losses)/d(gate) of one linear whose weight is weight + gate * change, where the gate is `at`."""
    gate = torch.tensor(at, requires_grad=True)

    def hook(linear, arguments, output):
        return arguments[0] @ (weight + gate * change).to(output).T + (0 if linear.bias is None else linear.bias)

    handle = linear.register_forward_hook(hook)
    token_losses(sliced.model, ids).sum().backward()
    handle.remove()
    return gate.grad.item()


def test_gates_of_refitted_units_move_between_the_weights_with_and_without_a_band():
    """The slope is the derivative of the loss along the line between two refitted weights."""
    reward = make(compensated=True)
    allocation, windows = candidates(reward)[0], [0, 2]
    utility = reward.marginal_utility(allocation, windows=windows)
    sliced, ids = reward.candidates, reward.search.windows[windows]
    sliced.set_allocation(allocation)
    plain = token_losses(sliced.model, ids).mean(1).tolist()
    assert reward(allocation, windows=windows) == pytest.approx(
        math.exp(reward.search.dense_loss[windows].mean() - np.mean(plain)), rel=1e-4
    )
    for position, module in enumerate(sliced.prunable.modules):
        keep, n, width = allocation.keep[position], module.decision.n_units, module.output_width
        band = max(1, round(0.1 * n))
        for side, (low, high) in enumerate(((max(0, keep - band), keep), (keep, min(n, keep + band)))):
            if low == high:
                continue
            sliced.set_keep([high if i == position else k for i, k in enumerate(allocation.keep)])
            refit = sliced.refits[module.decision.name]
            without = torch.nn.functional.pad(refit.weight(low * width), (0, (high - low) * width))
            change = refit.weight(high * width) - without
            linear = sliced.prunable.linear(module.output)
            slope = slope_along(sliced, linear, ids, without, change, 1.0 - side)
            scale = ids[:, 1:].numel() * (high - low) * module.decision.params_per_unit
            assert utility[position, side, 0] == pytest.approx(-slope / scale, rel=1e-2, abs=1e-9)


def some(n, keep):
    """A few numbers of units on both sides of `keep`."""
    return sorted({0, max(0, keep - 1), min(n, keep + 1), (keep + n) // 2, n} - {keep})


def test_cost_curves_are_slope_and_curvature_of_a_gate_that_all_units_between_share():
    """Against autograd with one gate for them at each token, on the whole model with everything else masked."""
    reward = make()
    allocation, windows = candidates(reward)[0], [0, 2]
    curves = reward.cost_curves(allocation, windows=windows)
    assert (reward.evaluations, reward.spent_tokens) == (1, 3 * 2 * 20)
    sliced, ids = reward.candidates, reward.search.windows[windows]
    n_tokens = ids[:, 1:].numel()
    for position, (each, curve) in enumerate(zip(sliced.prunable.modules, curves, strict=True)):
        keep, n, width = allocation.keep[position], each.decision.n_units, each.output_width
        assert curve.levels[0] == 0 and curve.levels[-1] == n
        assert curve.slope[curve.levels == keep] == curve.curvature[curve.levels == keep] == 0
        for k in some(n, keep):
            slopes = slopes_of_a_gate(
                reward, allocation, ids, position, slice(min(k, keep) * width, max(k, keep) * width), float(k < keep)
            )
            sign, here = (-1 if k < keep else 1), curve.levels.tolist().index(k)
            expected = [sign * slopes.sum().item() / n_tokens, slopes.square().sum().item() / n_tokens / 2]
            found = [curve.slope[here], curve.curvature[here]]
            assert found == pytest.approx(expected, rel=2e-3), (each.decision.name, k)


def test_cost_curves_make_the_reward_of_the_same_windows_free():
    reward, plain = make(), make()
    allocation = candidates(reward)[1]
    reward.cost_curves(allocation, windows=[1, 3])
    spent = reward.spent_tokens
    assert reward(allocation, windows=[1, 3]) == pytest.approx(plain(allocation, windows=[1, 3]), rel=1e-9)
    assert reward.spent_tokens == spent


@pytest.mark.parametrize("compensated", [True, False])
def test_the_table_of_cost_curves_is_that_of_removals_with_the_candidates_gradients(compensated):
    reward = make(compensated=compensated)
    problem, allocation = reward.candidates.prunable.problem(0.0), candidates(reward)[0]
    dense = reward.cost_curves(projection.dense(problem), windows=[0, 3])
    for curve, (level, costs) in zip(dense, reward.removal_costs([0, 3]), strict=True):
        np.testing.assert_array_equal(curve.levels, level)
        np.testing.assert_allclose(curve.table, costs, rtol=1e-3, atol=1e-9)
    pruned = reward.cost_curves(allocation, windows=[0, 3])
    assert all(curve.table[-1] == 0 and np.isfinite(curve.table).all() for curve in pruned)
    assert not np.allclose(pruned[1].table, dense[1].table, rtol=1e-2)


def test_cost_curves_come_from_the_journal_the_second_time_and_need_gram_matrices():
    journal = MemoryJournal()
    first = make(journal)
    curves = first.cost_curves(candidates(first)[0], windows=[0, 3])
    again = make(MemoryJournal(journal.entries))
    again._backward = None
    for one, two in zip(curves, again.cost_curves(candidates(again)[0], windows=[0, 3]), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    first.candidates._gram = None
    with pytest.raises(ConfigError, match="holds no Gram matrices"):
        first.cost_curves(candidates(first)[1], windows=[0])


def test_curves_of_refitted_units_move_between_the_refitted_weights():
    """The slope is the derivative of the loss along the line from the weight for the kept units to another one."""
    reward = make(compensated=True)
    allocation, windows = candidates(reward)[0], [0, 2]
    curves = reward.cost_curves(allocation, windows=windows)
    sliced, ids = reward.candidates, reward.search.windows[windows]
    sliced.set_allocation(allocation)
    plain = token_losses(sliced.model, ids).mean(1).tolist()
    assert reward(allocation, windows=windows) == pytest.approx(
        math.exp(reward.search.dense_loss[windows].mean() - np.mean(plain)), rel=1e-4
    )
    for position, (module, curve) in enumerate(zip(sliced.prunable.modules, curves, strict=True)):
        keep, n, width = allocation.keep[position], module.decision.n_units, module.output_width
        refit, linear = sliced.refits[module.decision.name], sliced.prunable.linear(module.output)
        for k in some(n, keep):
            sliced.set_keep([n if i == position else other for i, other in enumerate(allocation.keep)])
            here, there = (torch.nn.functional.pad(refit.weight(u * width), (0, (n - u) * width)) for u in (keep, k))
            expected = slope_along(sliced, linear, ids, here, there - here, 0.0) / ids[:, 1:].numel()
            assert curve.slope[curve.levels.tolist().index(k)] == pytest.approx(expected, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("compensated", [True, False])
def test_costs_of_removals_are_the_trace_of_the_fisher_information_and_the_change(compensated):
    reward = make(compensated=compensated)
    costs = reward.removal_costs([0, 1])
    assert (reward.evaluations, reward.spent_tokens) == (1, 3 * 2 * 20)
    sliced, ids = reward.candidates, reward.search.windows[[0, 1]]
    position, module = 3, sliced.prunable.modules[3]
    linear, seen = sliced.prunable.linear(module.output), {}
    sliced.set_keep([each.decision.n_units for each in sliced.prunable.modules])

    def hook(linear, arguments, output):
        seen["y"] = output.requires_grad_()
        output.retain_grad()

    handle = linear.register_forward_hook(hook)
    token_losses(sliced.model, ids).sum().backward()
    handle.remove()
    g = seen["y"].grad.flatten(0, 1)
    statistics = collect(PrunableModel(tiny("llama")), tokens(4), batch_tokens=40, grams=True)
    columns = torch.from_numpy(statistics.unit_orders("wanda")[module.decision.name])
    gram, weight = statistics.gram(module, columns).double(), linear.weight
    for keep in (0, 1, 17, 39, 40):
        change = -weight.clone()
        change[:, :keep] += sliced.refits[module.decision.name].weight(keep) if compensated else weight[:, :keep]
        if compensated:
            gram = damped(statistics.gram(module, columns))
        expected = torch.trace(g.T @ g @ change @ gram @ change.T).item() / (2 * ids[:, 1:].numel())
        assert costs[position][0][keep] == keep
        assert costs[position][1][keep] == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_costs_of_removals_without_gram_matrices_are_refused_before_a_token_is_spent():
    prunable = PrunableModel(tiny("llama"))
    plain, text = collect(prunable, tokens(4), batch_tokens=40), Text("search", tokens(4), np.zeros(4))
    cut = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
    reward = ModelReward(cut.candidates(plain), text, text, batch_tokens=40)
    reward._backward = None
    with pytest.raises(ConfigError, match="holds no Gram matrices"):
        reward.removal_costs([0])


def test_costs_of_removals_come_from_the_journal_the_second_time():
    journal = MemoryJournal()
    first = make(journal).removal_costs([0, 3])
    again = make(MemoryJournal(journal.entries))
    again._backward = None
    assert all((a[1] == b[1]).all() for a, b in zip(first, again.removal_costs([0, 3]), strict=True))


def slow_taylor_scores(name, order, ids, units="kv-groups"):
    """By autograd on the weights; which entries are a unit's, the masked model says."""
    dense = tiny(name)
    for parameter in dense.parameters():
        parameter.requires_grad_()
    (dense(ids, labels=ids).loss).backward()
    saliency = {path: (p.grad * p).detach().abs() for path, p in dense.named_parameters() if path.endswith("weight")}
    found = []
    for decision, indices in order.items():
        found.append([])
        for unit in indices:
            prunable = PrunableModel(tiny(name), attention_units=units)
            every = {m.decision.name: range(m.n_indices) for m in prunable.modules}
            mask(prunable, every | {decision: [u for u in every[decision] if u != unit]})
            masked = dict(prunable.model.named_parameters())
            gone = (
                float(s[(masked[path] == 0) & (dense.get_parameter(path) != 0)].sum()) for path, s in saliency.items()
            )
            found[-1].append(sum(gone))
    return found


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("llama", "kv-groups"),
        ("phi3", "kv-groups"),
        ("phi3", "single-query-heads"),
        pytest.param("llama", "single-query-heads", marks=pytest.mark.long),
        pytest.param("gpt_neox", "kv-groups", marks=pytest.mark.long),
    ],
)
def test_taylor_scores_are_gradient_times_weight_summed_over_what_a_mask_zeroes(name, units):
    windows = tokens(4)
    prunable = PrunableModel(tiny(name), attention_units=units)
    order = collect(prunable, windows, batch_tokens=40).unit_orders("wanda")
    text = Text("search", windows, dense_losses(prunable.model, windows))
    reward = ModelReward(SlicedModel(prunable, order), text, text, batch_tokens=40)
    scores = reward.taylor_scores([0, 1, 3])
    assert (reward.evaluations, reward.spent_tokens) == (1, 3 * 3 * 20)
    for found, expected in zip(scores, slow_taylor_scores(name, order, windows[[0, 1, 3]], units), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_taylor_scores_come_from_the_journal_the_second_time_and_do_not_depend_on_the_last_candidate():
    journal = MemoryJournal()
    first = make(journal)
    first(candidates(first)[0], windows=[0])
    scores = first.taylor_scores([0, 3])
    again = make(MemoryJournal(journal.entries), compensated=True)
    again._backward = None
    assert all((a == b).all() for a, b in zip(scores, again.taylor_scores([0, 3]), strict=True))
    refitted = make(compensated=True)
    refitted.marginal_utility(candidates(refitted)[0], windows=[1])
    for a, b in zip(scores, refitted.taylor_scores([0, 3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def gates_of(prunable, seed=0):
    """Random gates: some units off, some on, some scaled."""
    rng = np.random.default_rng(seed)
    return [rng.choice([0, 0, 1, 1, 1.5], size=m.decision.n_units) for m in prunable.modules]


@pytest.mark.parametrize("name", ["llama", "phi3", pytest.param("gpt_neox", marks=pytest.mark.long)])
def test_gates_on_units_are_the_masked_model_and_their_slopes_are_finite_differences(name):
    windows, chosen = tokens(4), [0, 1, 3]
    prunable = PrunableModel(tiny(name))
    text = Text("search", windows, dense_losses(prunable.model, windows))
    order = collect(prunable, windows, batch_tokens=40).unit_orders("wanda")
    reward = ModelReward(SlicedModel(prunable, order), text, text, batch_tokens=40)

    def loss(gates):
        """Of the dense model, with other units masked and the output columns of those that stay scaled."""
        other = PrunableModel(tiny(name))
        by_index = reward.by_index(gates)
        for module in other.modules:
            factors = torch.from_numpy(by_index[module.decision.name]).double().repeat_interleave(module.output_width)
            other.linear(module.output).weight.data *= factors
        mask(other, {decision: np.flatnonzero(each) for decision, each in by_index.items()})
        return dense_losses(other.model, windows[chosen]).mean()

    gates = gates_of(prunable)
    value, slopes = reward.gate_slopes(gates, chosen)
    assert (reward.evaluations, reward.spent_tokens) == (1, 3 * 3 * 20)
    assert value == pytest.approx(math.exp(text.dense_loss[chosen].mean() - loss(gates)), rel=1e-6)
    assert reward.gated(gates, chosen) == pytest.approx(value, rel=1e-6)
    assert (reward.evaluations, reward.spent_tokens) == (2, 4 * 3 * 20)
    for module, unit in ((0, 0), (0, 1), (1, 3), (3, 20), (4, 1), (5, 39)):
        if gates[module][unit]:  # one that is masked has no bias either
            moved = [
                loss([g + step * (np.arange(len(g)) == unit) * (i == module) for i, g in enumerate(gates)])
                for step in (-0.01, 0.01)
            ]
            assert slopes[module][unit] == pytest.approx((moved[1] - moved[0]) / 0.02, rel=2e-2, abs=1e-6)


def test_gates_of_the_first_units_have_the_reward_of_the_allocation():
    reward = make()
    for allocation in candidates(reward):
        counts = [m.decision.n_units for m in reward.candidates.prunable.modules]
        gates = [(np.arange(n) < k).astype(float) for n, k in zip(counts, allocation.keep, strict=True)]
        assert reward.gated(gates, [0, 2]) == pytest.approx(reward(allocation, windows=[0, 2]), rel=1e-5)
        assert reward.select_gated(gates) == pytest.approx(reward.select(allocation), rel=1e-5)


def test_losses_of_gates_come_from_the_journal_the_second_time():
    journal = MemoryJournal()
    first = make(journal)
    gates = gates_of(first.candidates.prunable)
    found = first.gated(gates, [0, 3]), first.gate_slopes(gates, [1]), first.select_gated(gates)
    again = make(MemoryJournal(journal.entries), compensated=True)
    again._backward = again._forward = None
    assert again.gated(gates, [0, 3]) == found[0] and again.select_gated(gates) == found[2]
    value, slopes = again.gate_slopes(gates, [1])
    assert value == found[1][0] and all((a == b).all() for a, b in zip(slopes, found[1][1], strict=True))
    again._forward = make()._forward
    other = [1 - each for each in gates]
    assert len(journal.entries) == 3 and again.gated(other, [0, 3]) != found[0]
