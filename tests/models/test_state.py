"""What is left in a model by searches and by training: nothing, also where they fail or are interrupted."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from accelerate import dispatch_model
from torch.overrides import TorchFunctionMode

from ffp import api
from ffp.allocators import create
from ffp.allocators.base import SearchBudget
from ffp.config.recover import RecoverSettings
from ffp.measure.calibration import collect
from ffp.measure.loss import window_losses
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import SlicedModel, cut
from ffp.pruning.cuts import make_cut
from tests.helpers.families import tiny, tokens

CUT = make_cut("structured", score="wanda", compensation="none", pruner="wanda")
WINDOWS = api.Windows(tokens(4), tokens(4), tokens(2))


class Interrupt(TorchFunctionMode):
    """Raises KeyboardInterrupt once: when the operation of this number begins, or when it has ended."""

    def __init__(self, number: int, *, ended: bool):
        super().__init__()
        self.left, self._ended = number, ended

    def __torch_function__(self, operation, types, arguments=(), keywords=None):
        self.left -= 1
        if self.left == 0 and not self._ended:
            raise KeyboardInterrupt
        found = operation(*arguments, **keywords or {})
        if self.left == 0 and self._ended:
            raise KeyboardInterrupt
        return found


def vars_of(model):
    """All that is set on each module itself, hooks among it, but for parameters, which have tests of their own."""
    return {
        name: {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in vars(module).items()
            if key not in ("_parameters", "_buffers", "_modules")
        }
        for name, module in model.named_modules()
    }


def search(prunable, calibration=None, name="random-search", **options):
    calibration = calibration or api.calibrate(prunable, WINDOWS)
    options = {"budget": SearchBudget(4, 1), **options}
    return api.allocate(prunable, calibration, create(name, {}), sparsity=0.4, cut=CUT, **options)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    ("family", "units"),
    [("llama", "kv-groups"), ("phi3", "single-query-heads"), pytest.param("opt", "kv-groups", marks=pytest.mark.long)],
)
def test_the_model_is_dense_again_wherever_a_search_is_interrupted(family, units, ended):
    """At each operation while units are sorted and while widths change, refitted or not."""
    prunable = PrunableModel(tiny(family, num_hidden_layers=1), attention_units=units)
    before, around = copy.deepcopy(prunable.model.state_dict()), vars_of(prunable.model)
    statistics = collect(prunable, tokens(4), batch_tokens=80, grams=True)
    order = statistics.unit_orders("wanda")
    refits = statistics.refits(order)
    refits.pop("block00.attention")
    narrow = [max(1, module.decision.n_units // 2) for module in prunable.modules]

    def run(number):
        """Whether the interrupt came."""
        sliced = None
        try:
            with Interrupt(number, ended=ended):
                sliced = SlicedModel(prunable, order, refits)
                sliced.set_keep(narrow)
        except KeyboardInterrupt:
            return True
        finally:
            if sliced is not None:
                sliced.restore()
        return False

    number = 1
    while run(number):
        after = prunable.model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), number
        number += 1
    assert number > 50 and vars_of(prunable.model) == around


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("places", [12, pytest.param(200, marks=pytest.mark.long)])
def test_an_interrupted_search_leaves_weights_hooks_modes_and_gradients_as_they_were(places, ended):
    """At so many places from its start to its end, gradients and the way back among them."""
    model = tiny("llama", num_hidden_layers=1).train()
    model.model.layers[0].self_attn.requires_grad_(True)
    prunable, method = PrunableModel(model), create("guided-knapsack", {})
    calibration = api.calibrate(prunable, WINDOWS, grams=True)
    compensated = make_cut("structured", score="wanda", compensation="ridge", pruner="wanda", compensated_search=True)
    before, around = copy.deepcopy(model.state_dict()), vars_of(model)
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def operations(number):
        """How many there were, up to the interrupt."""
        interrupt = Interrupt(number, ended=ended)
        with contextlib.suppress(KeyboardInterrupt), interrupt:
            api.allocate(prunable, calibration, method, sparsity=0.4, cut=compensated, budget=SearchBudget(9, 1))
        return number - interrupt.left

    every = operations(10**9)
    for number in range(1, every, every // places):
        assert operations(number) >= number
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), number
        assert vars_of(model) == around, number
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == gradients, number


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("units", ["kv-groups", "single-query-heads"])
@pytest.mark.parametrize("family", ["llama", "phi3", "stablelm", "opt"])
def test_modules_have_the_attributes_forwards_and_hooks_that_they_had(family, units, hooked):
    model = tiny(family)
    if hooked:  # as a device map of several devices does
        names = [name for name, module in model.named_modules() if not list(module.children()) and module._parameters]
        model = dispatch_model(model, dict.fromkeys(names, "cpu"), main_device="cpu", force_hooks=True)
    prunable = PrunableModel(model, attention_units=units, min_keep=0)
    before, shared = vars_of(model), model.config
    sliced = SlicedModel(prunable, {m.decision.name: range(m.n_indices)[::-1] for m in prunable.modules})
    for keep in ([m.decision.n_units // 2 for m in prunable.modules], [m.decision.min_keep for m in prunable.modules]):
        sliced.set_keep(keep)
        model(tokens())
    sliced.restore()
    assert vars_of(model) == before
    assert all(vars(module).get("config", shared) is shared for module in model.modules())


def test_a_forward_that_a_caller_gave_an_attention_comes_back():
    model, calls = tiny("llama"), []
    attention = model.model.layers[1].self_attn
    own = attention.forward

    def noted(*arguments, **keywords):
        calls.append(1)
        return own(*arguments, **keywords)

    attention.forward = noted
    prunable = PrunableModel(model, min_keep=0)
    sliced = SlicedModel(prunable, {m.decision.name: range(m.n_indices) for m in prunable.modules})
    sliced.set_keep([m.decision.min_keep for m in prunable.modules])
    model(tokens())
    assert not calls  # an empty attention computes nothing
    sliced.set_keep([m.decision.n_units for m in prunable.modules])
    model(tokens())
    assert calls == [1] and attention.forward is noted


def test_parts_that_were_trained_and_parts_that_were_not_stay_so():
    model = tiny("llama").train()
    model.model.layers[0].eval()
    model.model.layers[1].self_attn.requires_grad_(True)
    before = {name: module.training for name, module in model.named_modules()}
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    search(PrunableModel(model))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == gradients


def test_a_search_for_kl_reads_a_teacher_without_dropout():
    """And draws no random number of the caller's."""
    model = tiny("opt", dropout=0.3)
    calm = search(PrunableModel(model), fitness="kl")
    model.train()
    state = torch.get_rng_state()
    assert search(PrunableModel(model), fitness="kl").trace == calm.trace
    assert torch.equal(torch.get_rng_state(), state) and model.training


def test_recovery_trains_without_dropout_and_leaves_flags_as_they_were():
    def train(model, teacher):
        settings = RecoverSettings(tokens=160, rank=2, loss="kl")
        return api.recover(PrunableModel(model), tokens(8), settings, teacher=teacher).curve

    calm = train(tiny("opt", dropout=0.3), tiny("opt", seed=1, dropout=0.3))
    model, teacher = (tiny("opt", seed=seed, dropout=0.3).train().requires_grad_(True) for seed in (0, 1))
    state = torch.get_rng_state()
    assert train(model, teacher) == calm
    assert torch.equal(torch.get_rng_state(), state)
    for each in (model, teacher):
        assert all(module.training for module in each.modules())
        assert all(parameter.requires_grad for parameter in each.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_recovery_trains_in_float32_whatever_the_callers_default(dtype):
    def losses():
        settings = RecoverSettings(tokens=320, rank=2, batch_tokens=80)
        prunable = PrunableModel(tiny("llama").float())
        return [row["loss"] for row in api.recover(prunable, tokens(8), settings).curve]

    expected = losses()
    torch.set_default_dtype(dtype)
    try:
        assert losses() == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "units", "compensated"),
    [
        ("guided-knapsack", "single-query-heads", True),
        pytest.param("fastforward", "kv-groups", False, marks=pytest.mark.long),
        ("grasprune", "kv-groups", False),
    ],
)
def test_another_default_device_of_the_caller_changes_nothing(name, units, compensated):
    """Nothing can be computed on this one, so that a tensor that does not name its device shows."""

    def prune(default):
        prunable = PrunableModel(tiny("phi3"), attention_units=units)
        with torch.device(default):
            calibration = api.calibrate(prunable, WINDOWS, grams=True)
            options = {"sparsity": 0.4, "cut": cut, "budget": SearchBudget(12, 1)}
            found = api.allocate(prunable, calibration, create(name, {}), **options)
            masks = api.make_masks(prunable, calibration, found.problem, found.allocation, cut)
            trained = api.recover(prunable, WINDOWS.search, RecoverSettings(tokens=160, rank=2)).curve
        return found.trace, {name: array.tolist() for name, array in masks.updates.items()}, trained

    cut = make_cut("structured", score="obs", compensation="ridge", pruner="wanda", compensated_search=compensated)
    assert prune("meta") == prune("cpu")


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("first", ["eager", "sdpa"])
def test_another_kind_of_attention_reaches_every_block(first, pruned):
    """Phi-3 reads its heads from a configuration; masks are made for the kind of attention that the model has now."""
    model = tiny("phi3")
    model.set_attn_implementation(first)
    prunable = PrunableModel(model)
    if pruned:
        cut(prunable, {m.decision.name: range(1, m.n_indices) for m in prunable.modules})
    else:
        search(prunable)
    losses = []
    for kind in ("eager", "sdpa"):
        model.set_attn_implementation(kind)
        losses.append(window_losses(model, tokens(), batch_tokens=40))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
