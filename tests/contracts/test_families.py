"""What every family in the table must do: permute without changing the function, slice what a mask would zero."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import ffp
from ffp import budget
from ffp.models.adapter import Adapter
from ffp.models.export import save_pruned
from ffp.models.families import FAMILIES, family_of
from ffp.models.loss import token_losses
from ffp.models.sliced import SlicedModel, cut, mask
from ffp.pruning.compensate import compensate, load_updates, spread_updates
from ffp.pruning.masks import kept_units
from ffp.types import ConfigError
from tests.contracts.families import CONFIGS, tiny, tokens

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def random_orders(adapter, seed=0):
    generator = np.random.default_rng(seed)
    return {unit.budget.name: generator.permutation(unit.budget.n_groups) for unit in adapter.units}


def random_keep(adapter, seed=0):
    problem = adapter.problem(0.4)
    return budget.project(problem, np.random.default_rng(seed).normal(size=len(problem.units)) * 2).keep


def prefix_units(adapter, orders, keep):
    return {u.budget.name: np.sort(orders[u.budget.name][:k]) for u, k in zip(adapter.units, keep, strict=True)}


def test_every_family_of_the_table_is_covered():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_permuted_dense_logits_equal_the_original(family):
    model = tiny(family)
    before = logits(model)
    adapter = Adapter(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    SlicedModel(adapter, random_orders(adapter))
    assert any(not torch.equal(weights[name], p) for name, p in model.named_parameters())
    torch.testing.assert_close(logits(model), before, **EXACT)


@pytest.mark.parametrize("family", CONFIGS)
def test_sliced_equals_masked_equals_cut(family):
    masked, removed, sliced = tiny(family), tiny(family), tiny(family)
    adapter = Adapter(sliced)
    orders, keep = random_orders(adapter), random_keep(adapter)
    kept = prefix_units(adapter, orders, keep)
    mask(Adapter(masked), kept)
    cut(Adapter(removed), kept)
    view = SlicedModel(adapter, orders)
    view.set_keep(keep)
    expected = logits(masked)
    assert not torch.allclose(expected, logits(tiny(family)), atol=1e-3)
    torch.testing.assert_close(logits(sliced), expected, **EXACT)
    torch.testing.assert_close(logits(removed), expected, **EXACT)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_aligned_slices_equal_masked_ones_and_meet_the_budget(family):
    masked, sliced = tiny(family), tiny(family)
    adapter = Adapter(sliced, align=8)
    problem = adapter.problem(0.4)
    orders = {unit.budget.name: np.random.default_rng(0).permutation(unit.n_indices) for unit in adapter.units}
    allocation = budget.project(problem, np.random.default_rng(1).normal(size=len(problem.units)) * 2)
    kept = kept_units(problem, allocation, orders)
    channels = [len(kept[unit.budget.name]) for unit in adapter.units if unit.kind == "ffn"]
    assert all(count % 8 == 0 for count in channels) and len(set(channels)) > 1
    dense = Adapter(masked)
    mask(dense, kept)
    view = SlicedModel(adapter, orders)
    view.set_allocation(allocation)
    torch.testing.assert_close(logits(sliced), logits(masked), **EXACT)
    removed = dense.problem(0.4).sparsity_of([len(kept[unit.budget.name]) for unit in dense.units])
    assert removed == problem.sparsity_of(allocation.keep) >= 0.4


def test_an_align_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"align 16 does not divide the 40 FFN channels of .*down_proj\. Lower it"):
        Adapter(tiny("llama"), align=16)


@pytest.mark.parametrize("compensation", ["bias", "ridge"])
@pytest.mark.parametrize("family", CONFIGS)
def test_exported_checkpoints_reload_to_equal_logits(family, compensation, tmp_path, hub_modules):
    """With their own code and without it; what the first saves again reloads too."""
    model = tiny(family)
    adapter = Adapter(model)
    kept = prefix_units(adapter, random_orders(adapter), random_keep(adapter))
    updates = compensate(adapter, kept, tokens(6), kind=compensation, batch_tokens=40)
    cut(adapter, kept)
    load_updates(adapter, {name: tensor.numpy() for name, tensor in updates.items()})
    save_pruned(adapter, tmp_path / "a")
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "a", trust_remote_code=True, dtype="auto")
    remote.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", trust_remote_code=True, dtype="auto")
    expected = logits(model)
    for loaded in (ffp.load_pruned(tmp_path / "a", device="cpu"), remote, again):
        torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)
        assert Adapter(model).model_params() == sum(p.numel() for p in set(loaded.parameters()))
    words = {"max_new_tokens": 6, "do_sample": False}
    assert remote.generate(tokens(1), **words).tolist() == model.generate(tokens(1), **words).tolist()


@pytest.mark.parametrize("family", CONFIGS)
def test_dense_shaped_checkpoints_reload_by_stock_classes(family, tmp_path):
    pruned, dense = tiny(family), tiny(family)
    adapter = Adapter(pruned)
    kept = prefix_units(adapter, random_orders(adapter), random_keep(adapter))
    new = compensate(adapter, kept, tokens(6), kind="ridge", batch_tokens=40)
    updates = {name: tensor.numpy() for name, tensor in new.items()}
    cut(adapter, kept)
    load_updates(adapter, updates)
    mask(Adapter(dense), kept)
    load_updates(Adapter(dense), spread_updates(Adapter(dense), kept, updates))
    dense.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert type(stock).__module__.startswith("transformers.models")
    torch.testing.assert_close(logits(stock), logits(pruned), **EXACT)


@pytest.mark.parametrize("family", CONFIGS)
def test_switching_back_and_forth_leaves_no_trace(family):
    model = tiny(family)
    adapter = Adapter(model)
    view = SlicedModel(adapter, random_orders(adapter))
    before = logits(model)
    view.set_keep(random_keep(adapter, 1))
    view.set_keep(random_keep(adapter, 2))
    view.set_keep([unit.budget.n_groups for unit in adapter.units])
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_removed_equal_the_budgets(family):
    model = tiny(family)
    adapter = Adapter(model)
    keep = random_keep(adapter)
    dense, problem = adapter.model_params(), adapter.problem(0.4)
    block_linears = sum(
        p.numel() for b in range(3) for path, _ in adapter.linears(b) for p in adapter.linear(path).parameters()
    )
    assert problem.total_params == block_linears
    cut(adapter, prefix_units(adapter, random_orders(adapter), keep))
    assert dense - adapter.model_params() == round(problem.sparsity_of(keep) * problem.total_params)


@pytest.mark.parametrize("family", CONFIGS)
def test_chunked_losses_equal_the_models_own(family):
    model, ids = tiny(family), tokens()
    expected = torch.nn.functional.cross_entropy(
        logits(model)[:, :-1].reshape(-1, 97).float(), ids[:, 1:].reshape(-1), reduction="none"
    ).view(2, -1)
    with torch.no_grad():
        losses = token_losses(model, ids, chunk=7)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)


def test_kv_groups_move_with_their_query_heads():
    """Keeping one KV group of a GQA model keeps its 3 query heads and o_proj columns, and no others."""
    model = tiny("llama")
    adapter, original = Adapter(model), copy.deepcopy(model)
    attention = [u for u in adapter.units if u.kind == "attention"]
    assert [u.budget.n_groups for u in attention] == [2, 2, 2]
    everything = {u.budget.name: range(u.budget.n_groups) for u in adapter.units}
    cut(adapter, {**everything, "block01.attention": [1]})
    old, new = (m.model.layers[1].self_attn for m in (original, model))
    torch.testing.assert_close(new.q_proj.weight, old.q_proj.weight[24:48])
    torch.testing.assert_close(new.k_proj.weight, old.k_proj.weight[8:16])
    torch.testing.assert_close(new.v_proj.bias, old.v_proj.bias[8:16])
    torch.testing.assert_close(new.o_proj.weight, old.o_proj.weight[:, 24:48])


def test_an_unknown_family_is_refused_with_what_an_entry_needs():
    with pytest.raises(ConfigError, match=r"model family 'mamba' is not in the table.*paths of its blocks"):
        family_of("mamba")
