"""Every family placed otherwise than on one device: offloaded block by block, and spread by accelerate's device map.

There is one device here, the CPU: a "device" of another precision shows what is borrowed and what stays, and forced
hooks run accelerate's code path. What they cannot show is transfers and kernels of CUDA and MPS.
"""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook

from ffp.config import ModelConfig
from ffp.core import projection
from ffp.core.errors import ConfigError
from ffp.measure.calibration import collect
from ffp.measure.loss import window_losses
from ffp.measure.reward import ModelReward
from ffp.measure.text import Text
from ffp.models.checkpoint import dtype_of, load_model
from ffp.models.placement import BorrowBlock, choose_device, float64, forward_as, offload, replacement_block
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import SlicedModel, cut
from ffp.pruning.compensation import compensate
from tests.helpers.families import CONFIGS, tiny, tokens

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def offloaded(family):
    model = tiny(family)
    offload(model, PrunableModel(model).blocks, CPU, torch.float64)
    return model


def spread(family):
    """The model under a device map of all its parts, as accelerate dispatches it over several devices."""
    model = tiny(family)
    names = [
        name for name, module in model.named_modules() if not list(module.children()) and list(module.parameters())
    ]
    inside = [f"{PrunableModel(model).family.blocks}.{i}" for i in range(3)]
    outside = [name for name in names if not name.startswith(tuple(f"{block}." for block in inside))]
    return dispatch_model(model, dict.fromkeys([*inside, *outside], "cpu"), main_device="cpu", force_hooks=True)


PLACED = {"offloaded": offloaded, "spread": spread}


@pytest.mark.parametrize("place", PLACED.values(), ids=PLACED)
@pytest.mark.parametrize("family", CONFIGS)
def test_every_step_gives_the_same_numbers(family, place):
    """Calibration, gates and rewards of slices, compensation, and the cut model."""
    plain, placed = PrunableModel(tiny(family)), PrunableModel(place(family))
    found = [collect(prunable, tokens(4), batch_tokens=40, grams=True) for prunable in (plain, placed)]
    for path, moments in found[0].moments.items():
        np.testing.assert_allclose(moments.sq_mean, found[1].moments[path].sq_mean, rtol=1e-9)

    problem = plain.problem(0.4)
    allocation = projection.project(problem, np.random.default_rng(0).normal(size=len(problem.decisions)))
    kept = {u.name: np.arange(k) for u, k in zip(problem.decisions, allocation.keep, strict=True)}
    new = [compensate(prunable, kept, tokens(4), kind="ridge", batch_tokens=40) for prunable in (plain, placed)]
    for name, value in new[0].items():
        torch.testing.assert_close(value, new[1][name], **EXACT)

    values = [rewarded(statistics, allocation) for statistics in found]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=1e-8)

    models = PrunableModel(tiny(family)), PrunableModel(place(family))
    for prunable in models:
        cut(prunable, kept)
    losses = [window_losses(prunable.model, tokens(2), batch_tokens=40) for prunable in models]
    torch.testing.assert_close(*losses, **EXACT)


def rewarded(statistics, allocation):
    """A candidate's reward, marginal utilities and all that a search asks for, without refits and with them."""
    text, values = Text("search", tokens(3), np.zeros(3)), []
    order = {m.decision.name: np.arange(m.n_indices)[::-1].copy() for m in statistics.prunable.modules}
    for refits in (None, statistics.refits(order)):
        view = SlicedModel(statistics.prunable, order, refits, gram=statistics.gram)
        reward = ModelReward(view, text, text, batch_tokens=40)
        utility = reward.marginal_utility(allocation, windows=[0, 1])
        costs = np.concatenate([cost for _, cost in reward.removal_costs([0, 1])])
        scores = np.concatenate(reward.taylor_scores([0, 1]))
        gates = [np.arange(m.decision.n_units) % 2.0 for m in statistics.prunable.modules]
        value, slopes = reward.gate_slopes(gates, [0, 1])
        assert reward.gated(gates, [0, 1]) == pytest.approx(value, rel=1e-6)
        values += [reward(allocation, windows=[0, 2]), *utility.ravel(), *costs, *scores, value]
        values += [*np.concatenate(slopes)]
        view.restore()
    return values


def test_the_spread_model_has_accelerates_hooks():
    model = spread("llama")
    assert isinstance(model.model.layers[1]._hf_hook, AlignDevicesHook)


def test_one_block_at_a_time_is_borrowed_and_all_are_returned(monkeypatch):
    """On a device of another precision: at any time at most one block's weights are in it."""
    model = tiny("llama")
    blocks = PrunableModel(model).blocks
    offload(model, blocks, CPU, torch.float32)
    borrowed, forward = [], BorrowBlock.post_forward

    def count(hook, module, output):
        borrowed.append([block.mlp.up_proj.weight.dtype == torch.float32 for block in blocks])
        return forward(hook, module, output)

    monkeypatch.setattr(BorrowBlock, "post_forward", count)
    logits = model(tokens()).logits
    assert logits.dtype == model.lm_head.weight.dtype == torch.float32
    assert borrowed == [[True, False, False], [False, True, False], [False, False, True]]
    assert {p.dtype for block in blocks for p in block.parameters()} == {torch.float64}


def test_a_replacement_block_is_on_the_device_and_forgotten_afterwards():
    model = tiny("phi3")
    prunable = PrunableModel(model)
    offload(model, prunable.blocks, CPU, torch.float32)
    before = prunable.blocks[1]
    with replacement_block(prunable.blocks, 1, prunable.model.config):
        replacement = prunable.blocks[1]
        assert replacement is not before
        assert {p.dtype for p in replacement.parameters()} == {torch.float32}
        replacement.self_attn.config.num_attention_heads = 1
        replacement.mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(48, 3), requires_grad=False)
    assert prunable.blocks[1] is before
    assert before.mlp.down_proj.weight.shape == (48, 40)


def test_a_replacement_of_a_block_that_is_on_the_device_shares_its_weights():
    prunable = PrunableModel(tiny("llama"))
    block = prunable.blocks[0]
    with replacement_block(prunable.blocks, 0, prunable.model.config):
        assert prunable.blocks[0].mlp.up_proj.weight is block.mlp.up_proj.weight


def test_another_forward_leaves_a_hook_in_place():
    model = offloaded("llama")
    block = model.model.layers[0]
    hooked, plain = block.forward, copy.copy(torch.nn.ReLU())
    with forward_as(block, lambda x: x), forward_as(plain, lambda x: x + 1):
        assert block(3) == 3 and plain(3) == 4
    assert block.forward is hooked
    assert "forward" not in plain.__dict__


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_model_is_loaded_as_its_config_places_it(dtype, saved, tmp_path):
    tiny("qwen2").to(saved).save_pretrained(tmp_path)
    source = {"kind": "local", "path": str(tmp_path)}
    config = ModelConfig(title="Tiny", source=source, device="cpu", dtype=dtype)
    whole, offloaded = (load_model(tmp_path, config.model_copy(update={"offload": value})) for value in (False, True))
    wanted = saved if dtype == "auto" else getattr(torch, dtype)
    assert {p.dtype for p in offloaded.model.layers.parameters()} == {saved}  # on the host as in the file
    assert {p.dtype for p in whole.parameters()} == {offloaded.lm_head.weight.dtype} == {wanted}
    with torch.no_grad():
        torch.testing.assert_close(offloaded(tokens()).logits, whole(tokens()).logits)


def test_the_dtype_is_that_of_the_weights_where_the_configuration_names_none(tmp_path):
    tiny("qwen2").bfloat16().save_pretrained(tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: body[key] for key in body if key != "dtype"}))
    config = ModelConfig(title="Tiny", source={"kind": "local", "path": str(tmp_path)}, device="cpu")
    for value in (False, True):
        model = load_model(tmp_path, config.model_copy(update={"offload": value}))
        assert model.lm_head.weight.dtype == dtype_of(model, config) == torch.bfloat16


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device 'cuda' is not available on this machine\. Use device: auto or cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_sums_are_kept_in_float64():
    assert float64(torch.ones(1)).dtype == torch.float64
