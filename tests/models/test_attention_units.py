"""Query heads as units: one of every KV group, or single ones; KV heads stay in both."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import ffp
from ffp.core import projection
from ffp.measure.calibration import collect
from ffp.models.formats import Transformers
from ffp.models.modeling_pruned import select_heads
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import SlicedModel, cut, mask
from ffp.pruning.compensation import compensate, load_updates
from ffp.pruning.structured import kept_units
from tests.helpers.families import CONFIGS, tiny, tokenizer, tokens

JOINT = {family for family in CONFIGS if PrunableModel(tiny(family)).is_joint(0)}
GROUPED = [family for family, (_, own) in CONFIGS.items() if "num_key_value_heads" in own and family not in JOINT]
OWN_HEAD_DIM = [family for family in GROUPED if family not in ("phi", "stablelm")]  # a head's width is no ratio there
UNITS = ["query-heads", "single-query-heads"]
BY_FAMILY = pytest.mark.parametrize("family", GROUPED)
BY_UNITS = pytest.mark.parametrize("units", UNITS)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def prunable(family, units, **options):
    return PrunableModel(tiny(family), attention_units=units, **options)


def random_orders(found, seed=0):
    draw = np.random.default_rng(seed)
    return {m.decision.name: m.bundled(torch.from_numpy(draw.permutation(m.n_indices))).numpy() for m in found.modules}


def random_allocation(problem, seed=0):
    return projection.project(problem, np.random.default_rng(seed).normal(size=len(problem.decisions)) * 2)


@BY_UNITS
@BY_FAMILY
def test_sliced_equals_masked_equals_cut(family, units):
    sliced, masked, removed = (prunable(family, units) for _ in range(3))
    problem, orders = sliced.problem(0.4), random_orders(sliced)
    assert problem.total_params == PrunableModel(tiny(family)).problem(0.4).total_params
    before, dense = logits(sliced.model), removed.model_params()
    view = SlicedModel(sliced, orders)
    torch.testing.assert_close(logits(sliced.model), before, **EXACT)
    for seed in (1, 0):
        allocation = random_allocation(problem, seed)
        view.set_allocation(allocation)
    kept = kept_units(problem, allocation, orders)
    mask(masked, kept)
    cut(removed, kept)
    assert not torch.allclose(logits(masked.model), before, atol=1e-3)
    for found in (sliced, removed):
        torch.testing.assert_close(logits(found.model), logits(masked.model), **EXACT)
    assert dense - removed.model_params() == problem.removed_by(allocation.keep)
    view.restore()
    torch.testing.assert_close(logits(sliced.model), before, **EXACT)


@torch.inference_mode()
def test_heads_that_are_selected_in_inference_mode_can_be_trained_afterwards():
    """As they are on the device of the first forward, which ffp's own timing may be."""
    linear = torch.nn.Linear(8, 16, device="meta")
    select_heads(linear, [0, 0, 3], 4)
    assert not linear.columns.is_inference()
    assert linear(torch.ones(2, 8, device="meta")).shape == (2, 12)
    assert linear.columns.device.type == "meta" and not linear.columns.is_inference()
    with torch.inference_mode(False):
        linear(torch.ones(2, 8, device="meta")).sum().backward()


@BY_UNITS
@BY_FAMILY
def test_whole_modules_may_go(family, units):
    sliced, masked, removed = (prunable(family, units, min_keep=0) for _ in range(3))
    assert [module.decision.min_keep for module in sliced.modules] == [1, 0, 0, 0, 0, 0]
    problem, orders = sliced.problem(0.0), random_orders(sliced)
    keep = [1, 0, 0, 5, 2, 0]
    kept = {
        m.decision.name: np.sort(orders[m.decision.name][: k * m.decision.bundle])
        for m, k in zip(sliced.modules, keep, strict=True)
    }
    dense = removed.model_params()
    mask(masked, kept)
    cut(removed, kept)
    assert dense - removed.model_params() == masked.params_without(keep)
    view = SlicedModel(sliced, orders)
    view.set_keep(keep)
    words = {"max_new_tokens": 5, "do_sample": False}
    expected = masked.model.generate(tokens(1), **words).tolist()
    for found in (sliced, removed):
        torch.testing.assert_close(logits(found.model), logits(masked.model), **EXACT)
        assert found.model.generate(tokens(1), **words).tolist() == expected
    with view.gated(keep, 0.1) as gates, torch.enable_grad():
        sliced.model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    assert all(gate.sums[1, 1] > 0 for gate in gates[1:])
    assert len(problem.decisions) == 6


def test_one_query_head_leaves_every_group():
    found = prunable("llama", "query-heads")
    original = copy.deepcopy(found.model)
    everything = {module.decision.name: range(module.n_indices) for module in found.modules}
    cut(found, {**everything, "block01.attention": [0, 2, 3, 5]})
    old, new = (m.model.layers[1].self_attn for m in (original, found.model))
    torch.testing.assert_close(new.q_proj.weight, old.q_proj.weight.view(6, 8, 48)[[0, 2, 3, 5]].flatten(0, 1))
    torch.testing.assert_close(new.k_proj.weight, old.k_proj.weight)
    assert found.sizes(1)["num_attention_heads"] == 4 and found.sizes(1)["num_key_value_heads"] == 2
    assert [m.decision.n_units for m in found.modules if m.kind == "attention"] == [3, 3, 3]


@BY_UNITS
def test_the_best_heads_stay(units):
    """Of every group, or of all heads; by the same scores."""
    found = prunable("llama", units)
    statistics = collect(found, tokens(4), batch_tokens=40)
    scores = statistics.unit_orders("wanda")["block01.attention"]
    single = collect(prunable("llama", "single-query-heads"), tokens(4), batch_tokens=40)
    best = single.unit_orders("wanda")["block01.attention"]
    if units == "single-query-heads":
        assert scores.tolist() == best.tolist()
        return
    by_group = [[head for head in best if head // 3 == group] for group in range(2)]
    assert scores.tolist() == [head for pair in zip(*by_group, strict=True) for head in pair]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("family", sorted(JOINT))
def test_an_attention_whose_heads_share_a_norm_stays_one_unit(family, units):
    assert [module.decision for module in prunable(family, units).modules] == [
        module.decision for module in PrunableModel(tiny(family)).modules
    ]
    assert prunable(family, units).describe_units().startswith("a whole attention, ")


@pytest.mark.parametrize("units", ["kv-groups", *UNITS])
def test_models_without_groups_have_one_kind_of_unit(units):
    found = [module.decision for module in prunable("opt", units).modules]
    assert found == [module.decision for module in PrunableModel(tiny("opt")).modules]


@BY_UNITS
def test_one_kv_head_no_longer_keeps_attention_whole(units):
    groups = PrunableModel(tiny("llama", num_key_value_heads=1))
    assert [m.decision.n_units for m in groups.modules if m.kind == "attention"] == [1, 1, 1]
    heads = PrunableModel(tiny("llama", num_key_value_heads=1), attention_units=units)
    assert [m.decision.n_units for m in heads.modules if m.kind == "attention"] == [6, 6, 6]


def saved(family, units, folder, *, kind="ridge"):
    """A compensated model of random heads and channels, and what was written of it."""
    found = prunable(family, units)
    problem, orders = found.problem(0.4), random_orders(found)
    kept = kept_units(problem, random_allocation(problem), orders)
    updates = compensate(found, kept, tokens(6), kind=kind, batch_tokens=40)
    cut(found, kept)
    load_updates(found, {name: tensor.numpy() for name, tensor in updates.items()})
    folder.mkdir()
    return found.model, Transformers().save(found, tokenizer(), folder)


@BY_UNITS
@BY_FAMILY
def test_transformers_reloads_to_equal_logits(family, units, tmp_path, hub_modules):
    model, _ = saved(family, units, tmp_path / "a")
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "a", trust_remote_code=True, dtype="auto")
    remote.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", trust_remote_code=True, dtype="auto")
    words = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(tokens(1, 7), **words).tolist()
    for loaded in (remote, again, ffp.load_pruned(tmp_path / "a", device="cpu")):
        torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
        for options in ({}, {"cache_implementation": "static"}):
            assert loaded.generate(tokens(1, 7), **words, **options).tolist() == expected


@pytest.mark.parametrize("family", OWN_HEAD_DIM)
def test_as_many_heads_in_every_block_make_an_ordinary_checkpoint(family, tmp_path):
    found = prunable(family, "query-heads")
    cut(found, {m.decision.name: [0, 1, 3, 5] if m.kind == "attention" else range(24) for m in found.modules})
    tmp_path.joinpath("saved").mkdir()
    written = Transformers().save(found, tokenizer(), tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert not written.tags
    assert type(loaded) is type(found.model)
    torch.testing.assert_close(logits(loaded), logits(found.model), rtol=0, atol=0)


@BY_FAMILY
def test_heads_that_share_unequally_need_code_also_where_all_shapes_look_ordinary(family, tmp_path, hub_modules):
    """Two query heads of one group and two KV heads: the shapes of an attention with a KV head for each."""
    found = prunable(family, "single-query-heads")
    cut(found, {m.decision.name: [0, 1] if m.kind == "attention" else range(24) for m in found.modules})
    tmp_path.joinpath("saved").mkdir()
    assert "custom_code" in Transformers().save(found, tokenizer(), tmp_path / "saved").tags
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True, dtype="auto")
    for each in (loaded, ffp.load_pruned(tmp_path / "saved", device="cpu")):
        torch.testing.assert_close(logits(each), logits(found.model), rtol=0, atol=0)
