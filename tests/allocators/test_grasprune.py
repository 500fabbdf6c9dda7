"""GRASPrune against a slow loop of autograd on a real model, and what becomes of its units and scales."""

import numpy as np
import pytest
import torch

from ffp import api
from ffp.allocators import ParameterError, create
from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.tracker import Tracker
from ffp.allocators.unit_masks import best_gates, by_decision
from ffp.core.errors import BudgetError, ConfigError
from ffp.core.problem import Allocation
from ffp.core.projection import kept_budget, round_keep
from ffp.measure.journal import MemoryJournal
from ffp.measure.loss import token_losses
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import make_cut
from tests.helpers.families import tiny, tokens
from tests.helpers.synthetic import SyntheticReward, keep_whole, run_search, structured_problem

pytestmark = pytest.mark.slow  # on a model
WINDOWS = api.Windows(tokens(4), tokens(6), tokens(3))
BUDGET = SearchBudget(30, 1)  # ten gradient steps


def cut_of(compensation="none"):
    return make_cut("structured", score="wanda", compensation=compensation, pruner="wanda")


def search(model=None, params=None, *, cut=None, budget=BUDGET, **options):
    prunable = PrunableModel(tiny("llama") if model is None else model, **options)
    calibration = api.calibrate(prunable, WINDOWS)
    method = create("grasprune", params or {})
    found = api.allocate(
        prunable, calibration, method, sparsity=0.3, cut=cut or cut_of(), budget=budget, checkpoints=(0.5, 1.0)
    )
    return prunable, calibration, found


def slow_gates(problem, scores):
    """Keeps the best units one after the other; the last one may be a part, which the projection settles."""
    decisions, left = problem.decisions, float(kept_budget(problem))
    ranked = [[(-s[j], j / len(s), i, j) for j in range(len(s))] for i, s in enumerate(scores)]
    keep = [float(decision.min_keep) for decision in decisions]
    left -= sum(decision.min_keep * decision.params_per_unit for decision in decisions)
    rivals = [
        each for mine, decision in zip(ranked, decisions, strict=True) for each in sorted(mine)[decision.min_keep :]
    ]
    for _, _, i, _ in sorted(rivals):
        part = max(0.0, min(1.0, left / decisions[i].params_per_unit))
        keep[i] += part
        left -= part * decisions[i].params_per_unit
    keep = round_keep(problem, np.array(keep)).keep
    best = [{j for *_, j in sorted(mine)[:k]} for mine, k in zip(ranked, keep, strict=True)]
    return [torch.tensor([float(j in mine) for j in range(len(s))]) for mine, s in zip(best, scores, strict=True)]


def slow_grasprune(problem, orders):
    """Straight-through gates by autograd: z = m + p - p.detach() multiplies the inputs of the output projections."""
    model, rng, z = tiny("llama"), np.random.default_rng(0), []
    for block, layer in enumerate(model.model.layers):
        for kind, linear in enumerate((layer.self_attn.o_proj, layer.mlp.down_proj)):

            def multiply(_, inputs, i=2 * block + kind):
                order, width = orders[i], inputs[0].shape[-1] // len(orders[i])
                by_index = torch.zeros_like(z[i])
                by_index[torch.from_numpy(order)] = z[i]
                return (inputs[0] * by_index.repeat_interleave(width),)

            linear.register_forward_pre_hook(multiply)  # fmt: skip

    def descend(steps, gates_of):
        x = [torch.zeros(d.n_units, dtype=torch.float64, requires_grad=True) for d in problem.decisions]
        optimizer = torch.optim.AdamW(x, lr=1e-2, betas=(0.9, 0.99), weight_decay=0)
        for _ in range(steps):
            z[:] = gates_of(x)
            window = int(rng.choice(6, size=1, replace=False)[0])
            optimizer.zero_grad()
            model(WINDOWS.search[[window]], labels=WINDOWS.search[[window]]).loss.backward()
            optimizer.step()
        return x

    def straight_through(s):
        p = [torch.sigmoid(each / 1.5) for each in s]
        m = slow_gates(problem, [each.detach().numpy() for each in p])
        return [m_i + p_i - p_i.detach() for m_i, p_i in zip(m, p, strict=True)]

    scores = descend(8, straight_through)
    mask = slow_gates(problem, [s.detach().numpy() for s in scores])
    gamma = descend(2, lambda g: [m * (1 + 0.5 * torch.tanh(each)) for m, each in zip(mask, g, strict=True)])
    return [m * (1 + 0.5 * torch.tanh(each.detach())) for m, each in zip(mask, gamma, strict=True)]


def test_it_keeps_the_units_and_scales_of_a_slow_loop_of_autograd():
    _, calibration, found = search()
    orders = list(calibration.statistics.unit_orders("wanda").values())
    expected = slow_grasprune(found.problem, orders)
    assert found.cost.evaluations == 10 and found.cost.n_tokens == 30 * 20
    assert {row["stage"] for row in found.trace} == {"gates", "scales"}
    for decision, order, gates in zip(found.problem.decisions, orders, expected, strict=True):
        factors = found.allocation.units[decision.name][order]
        np.testing.assert_array_equal(factors != 0, gates.numpy() != 0, err_msg=decision.name)
        np.testing.assert_allclose(factors, gates.numpy(), rtol=1e-4)


def test_the_straight_through_slope_is_that_of_a_sigmoid():
    method = create("grasprune", {"temperature": 0.7})
    scores = np.linspace(-3, 3, 7)
    slope = (np.exp(-(scores - 1e-6) / 0.7) + 1) ** -1 - (np.exp(-(scores + 1e-6) / 0.7) + 1) ** -1
    np.testing.assert_allclose(method.straight_through(scores), -slope / 2e-6, rtol=1e-6)


def excess_losses(model):
    """Of windows of the selection text, over the dense model's."""
    with torch.no_grad():
        return [float(token_losses(each, WINDOWS.selection).double().mean()) for each in (model, tiny("llama"))]


@pytest.mark.parametrize("options", [{}, {"align": 4}, {"attention_units": "query-heads"}], ids=str)
def test_the_cut_model_is_the_gated_one(options):
    """Units and scales pass from the search to weights: the last answer's loss is that of the model that is left."""
    prunable, calibration, found = search(**options)
    masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut_of())
    assert len(masks.updates) == 6
    api.install(prunable, found.problem, masks, cut_of())
    ours, dense = excess_losses(prunable.model)
    assert ours - dense == pytest.approx(found.answers[-1].loss, abs=1e-6)
    assert found.answers[0].loss != found.answers[-1].loss


def test_without_scales_nothing_is_updated_and_ridge_makes_up_for_the_units_that_were_chosen():
    prunable, calibration, found = search(params={"scale_share": 0.0})
    assert {row["stage"] for row in found.trace} == {"gates"}
    chosen = {name: np.flatnonzero(units) for name, units in found.allocation.units.items()}
    for compensation, n_updates in (("none", 0), ("ridge", 6)):
        masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut_of(compensation))
        assert len(masks.updates) <= n_updates and bool(masks.updates) == bool(n_updates)
        assert all(np.array_equal(masks.kept[name], units) for name, units in chosen.items())
    order = calibration.statistics.unit_orders("wanda")
    assert any(set(units) != set(order[name][: len(units)]) for name, units in chosen.items()), "all as by the score"


@pytest.mark.parametrize(("compensation", "keeps"), [("none", True), ("bias", True), ("ridge", False)])
def test_scales_become_part_of_the_weights_unless_these_are_solved_for_anew(compensation, keeps):
    prunable, calibration, found = search(params={"learning_rate": 0.5})
    ones = {name: np.sign(units) for name, units in found.allocation.units.items()}
    plain = Allocation(found.problem.problem_id, found.allocation.keep, ones)
    scaled, other = (
        api.make_masks(prunable, calibration, found.problem, each, cut_of(compensation)).updates
        for each in (found.allocation, plain)
    )
    assert (scaled.keys() != other.keys()) == keeps
    assert all(np.array_equal(scaled[name], other[name]) for name in other) != (compensation == "bias")
    if keeps:
        weight, units = scaled["model.layers.0.mlp.down_proj.weight"], found.allocation.units["block00.ffn"]
        dense = prunable.linear("model.layers.0.mlp.down_proj").weight.numpy()
        np.testing.assert_allclose(weight, dense[:, units != 0] * units[units != 0], rtol=1e-5)


@pytest.mark.parametrize("compensation", ["ridge", "ridge-dense"])
def test_where_ridge_follows_no_step_is_spent_on_scales(compensation):
    _, _, found = search(cut=cut_of(compensation))
    _, _, without = search(params={"scale_share": 0.0})
    assert len(found.trace) == 10 and {row["stage"] for row in found.trace} == {"gates"}
    assert all((found.allocation.units[name] == units).all() for name, units in without.allocation.units.items())
    _, _, biased = search(cut=cut_of("bias"))
    assert [row["stage"] for row in biased.trace] == 8 * ["gates"] + 2 * ["scales"]


def test_a_killed_search_goes_on_from_its_journal():
    prunable, calibration, found = search()
    journal, method = MemoryJournal(), create("grasprune", {})
    options = {"sparsity": 0.3, "cut": cut_of(), "budget": BUDGET, "checkpoints": (0.5, 1.0)}
    api.allocate(prunable, calibration, method, journal=journal, **options)
    resumed = MemoryJournal(journal.entries[:7])
    again = api.allocate(prunable, calibration, method, journal=resumed, **options)
    assert len(resumed.entries) == len(journal.entries) - 7
    assert again.answers == found.answers and again.cost.n_tokens == found.cost.n_tokens
    assert all((again.allocation.units[name] == units).all() for name, units in found.allocation.units.items())


def test_units_that_are_worth_more_are_found():
    """Of each decision a random third lowers the loss when it stays; the order that is given says nothing of it."""
    problem = structured_problem(0.3)
    reward = SyntheticReward(problem)
    worth = [np.random.default_rng(i).permutation(n) % 3 == 0 for i, n in enumerate(problem.n_units)]
    reward.noise = [noise + 0.02 * good for noise, good in zip(reward.noise, worth, strict=True)]
    tracker = Tracker(problem, reward, SearchBudget(100, 4), method="grasprune", seed=0)
    create("grasprune", {"scale_share": 0.0}).run(tracker, np.random.default_rng(0))
    kept = [gates.astype(bool) for gates in tracker.answers[-1].gates]
    good, other = (
        np.concatenate([k[w == is_good] for k, w in zip(kept[1::2], worth[1::2], strict=True)]).mean()
        for is_good in (True, False)
    )
    assert good > 0.95 and other < 0.8


def test_without_tokens_for_a_backward_pass_attention_stays_whole():
    problem = structured_problem(0.3)
    allocation, tracker = run_search(create("grasprune", {}), problem, SyntheticReward(problem), SearchBudget(2, 1))
    assert allocation == ffn_only_allocation(problem) and not tracker.rows
    assert tracker.answers[-1].gates is None


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_gates_to_the_budget_are_those_of_a_slow_loop(target):
    problem = keep_whole(structured_problem(target), lambda d: d.block == "block02", share=target)
    scores = np.random.default_rng(0).normal(size=int(problem.n_units.sum())).round(1)  # with ties
    gates = by_decision(problem, best_gates(problem, scores))
    for ours, theirs in zip(gates, slow_gates(problem, by_decision(problem, scores)), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
    assert len({tuple(each) for each in gates}) > 6


def test_units_that_do_not_fit_the_allocation_and_single_weights_are_refused():
    prunable, calibration, found = search()
    units = dict(found.allocation.units)
    units["block01.ffn"] = np.ones_like(units["block01.ffn"])
    with pytest.raises(
        BudgetError, match=r"keeps \d+ units of block01\.ffn, but the factors on its units say otherwise"
    ):
        Allocation(found.problem.problem_id, found.allocation.keep, units).check(found.problem)
    with pytest.raises(BudgetError, match=r"units of block00\.attention, but the factors"):
        Allocation(found.problem.problem_id, found.allocation.keep, {}).check(found.problem)
    with pytest.raises(ConfigError, match="scores of units are known of structured pruning only"):
        cut = make_cut("unstructured", score="wanda", compensation="none", pruner="magnitude")
        api.allocate(prunable, calibration, create("grasprune", {}), sparsity=0.3, cut=cut, granularity="unstructured")
    with pytest.raises(ConfigError, match="knows no fitness kl"):
        api.allocate(prunable, calibration, create("grasprune", {}), sparsity=0.3, cut=cut_of(), fitness="kl")
    with pytest.raises(ParameterError, match="temperature = 0 is not a number above 0"):
        create("grasprune", {"temperature": 0})
