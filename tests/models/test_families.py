"""What every family in the table must do: permute without changing the function, slice what a mask would zero."""

import copy
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ffp.core import projection
from ffp.core.errors import BudgetError, ConfigError
from ffp.core.problem import GRANULARITIES
from ffp.measure.calibration import collect
from ffp.measure.loss import token_losses
from ffp.models.checkpoint import load_skeleton
from ffp.models.families import FAMILIES, family_of
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import SlicedModel, cut, mask
from ffp.pruning.cuts import make_cut
from ffp.pruning.structured import kept_units
from tests.helpers.families import CONFIGS, GQA, tiny, tokenizer, tokens

BY_FAMILY = pytest.mark.parametrize("family", CONFIGS)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def random_orders(prunable, seed=0):
    generator = np.random.default_rng(seed)
    return {module.decision.name: generator.permutation(module.decision.n_units) for module in prunable.modules}


def random_keep(prunable, seed=0):
    problem = prunable.problem(0.4)
    return projection.project(problem, np.random.default_rng(seed).normal(size=len(problem.decisions)) * 2).keep


def prefix_units(prunable, orders, keep):
    return {m.decision.name: np.sort(orders[m.decision.name][:k]) for m, k in zip(prunable.modules, keep, strict=True)}


def test_every_family_of_the_table_is_covered():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_permuted_dense_logits_equal_the_original(family):
    model = tiny(family)
    before = logits(model)
    prunable = PrunableModel(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    SlicedModel(prunable, random_orders(prunable))
    assert any(not torch.equal(weights[name], p) for name, p in model.named_parameters())
    torch.testing.assert_close(logits(model), before, **EXACT)


@pytest.mark.parametrize("family", CONFIGS)
def test_sliced_equals_masked_equals_cut(family):
    masked, removed, sliced = tiny(family), tiny(family), tiny(family)
    prunable = PrunableModel(sliced)
    orders, keep = random_orders(prunable), random_keep(prunable)
    kept = prefix_units(prunable, orders, keep)
    mask(PrunableModel(masked), kept)
    cut(PrunableModel(removed), kept)
    view = SlicedModel(prunable, orders)
    view.set_keep(keep)
    expected = logits(masked)
    assert not torch.allclose(expected, logits(tiny(family)), atol=1e-3)
    torch.testing.assert_close(logits(sliced), expected, **EXACT)
    torch.testing.assert_close(logits(removed), expected, **EXACT)


@BY_FAMILY
def test_a_model_is_known_as_pruned_where_only_its_first_attention_was_cut(family):
    model = tiny(family)
    prunable = PrunableModel(model)
    whole = {module.decision.name: np.arange(module.decision.n_units) for module in prunable.modules}
    cut(prunable, {**whole, "block00.attention": np.array([0])})
    again = PrunableModel(model)
    assert again.head_dim == prunable.head_dim
    if not prunable.is_joint(0):
        assert again.sizes(0)["num_attention_heads"] < prunable.heads
        with pytest.raises(ConfigError, match="was pruned by ffp before"):
            again.problem(0.3)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"^this model has no blocks"):
        PrunableModel(tiny("llama", num_hidden_layers=0))


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_aligned_slices_equal_masked_ones_and_meet_the_budget(family):
    masked, sliced = tiny(family), tiny(family)
    prunable = PrunableModel(sliced, align=8)
    problem = prunable.problem(0.4)
    orders = {
        module.decision.name: np.random.default_rng(0).permutation(module.n_indices) for module in prunable.modules
    }
    allocation = projection.project(problem, np.random.default_rng(1).normal(size=len(problem.decisions)) * 2)
    kept = kept_units(problem, allocation, orders)
    channels = [len(kept[module.decision.name]) for module in prunable.modules if module.kind == "ffn"]
    assert all(count % 8 == 0 for count in channels) and len(set(channels)) > 1
    dense = PrunableModel(masked)
    mask(dense, kept)
    view = SlicedModel(prunable, orders)
    view.set_allocation(allocation)
    torch.testing.assert_close(logits(sliced), logits(masked), **EXACT)
    removed = dense.problem(0.4).sparsity_of([len(kept[module.decision.name]) for module in dense.modules])
    assert removed == problem.sparsity_of(allocation.keep) >= 0.4


def test_an_align_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"align 16 does not divide the 40 FFN channels of .*down_proj\. Lower align"):
        PrunableModel(tiny("llama"), align=16)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("align", [1, 8])
def test_blocks_that_stay_whole_keep_all_their_units_in_every_granularity(granularity, align):
    found = PrunableModel(tiny("llama"), min_keep=3, align=align, keep_blocks="0,-1:").problem(0.1, granularity)
    others = PrunableModel(tiny("llama"), min_keep=3, align=align).problem(0.1, granularity)
    for decision, other in zip(found.decisions, others.decisions, strict=True):
        whole = decision.block in ("block00", "block02")
        assert decision.min_keep == (decision.n_units if whole else other.min_keep)
        assert dataclasses.replace(decision, min_keep=other.min_keep) == other
    with pytest.raises(BudgetError, match="Lower the sparsity, min_keep or keep_blocks"):
        projection.project(found.at(0.4), np.zeros(len(found.decisions)))


def test_blocks_that_the_model_lacks_are_refused():
    with pytest.raises(ConfigError, match=r"'3' in keep_blocks '0,3' is empty, or leaves the model's 3 blocks"):
        PrunableModel(tiny("llama"), keep_blocks="0,3")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_nothing_is_removed_from_blocks_that_stay_whole(granularity):
    """Masks of every granularity, by an allocation that takes all it can from the other block."""
    dense, pruned = tiny("llama"), tiny("llama")
    prunable = PrunableModel(pruned, keep_blocks=":1,2")
    problem = prunable.problem(0.0, granularity)
    problem = problem.at(projection.max_sparsity(problem))
    allocation = projection.project(problem, np.zeros(len(problem.decisions)))
    chosen = make_cut(granularity, score="wanda", compensation="none", pruner="wanda")
    found = chosen.make(problem, allocation, collect(prunable, tokens(4), batch_tokens=40), tokens(4), batch_tokens=40)
    chosen.install(prunable, problem, *found, source="masks")
    for block in (0, 2):
        for path, _ in prunable.linears(block):
            torch.testing.assert_close(prunable.linear(path).weight, dense.get_submodule(path).weight, rtol=0, atol=0)
    assert prunable.linear("model.layers.1.mlp.up_proj").weight.count_nonzero() < 40 * 48


@pytest.mark.parametrize("family", CONFIGS)
def test_switching_back_and_forth_leaves_no_trace(family):
    model = tiny(family)
    original = copy.deepcopy(model.state_dict())
    prunable = PrunableModel(model)
    view = SlicedModel(prunable, random_orders(prunable))
    before = logits(model)
    view.set_keep(random_keep(prunable, 1))
    view.set_keep(random_keep(prunable, 2))
    view.set_keep([module.decision.n_units for module in prunable.modules])
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    view.set_keep(random_keep(prunable, 3))
    view.restore()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_removed_equal_the_decisions(family):
    model = tiny(family)
    prunable = PrunableModel(model)
    keep = random_keep(prunable)
    dense, problem = prunable.model_params(), prunable.problem(0.4)
    block_linears = sum(
        p.numel() for b in range(3) for path, _ in prunable.linears(b) for p in prunable.linear(path).parameters()
    )
    assert problem.total_params == block_linears
    cut(prunable, prefix_units(prunable, random_orders(prunable), keep))
    assert dense - prunable.model_params() == round(problem.sparsity_of(keep) * problem.total_params)


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


@BY_FAMILY
def test_whole_modules_may_go(family):
    """Attention and FFN of a block with nothing left: views, masks and cuts agree, and generation goes on."""
    masked, removed, sliced = tiny(family), tiny(family), tiny(family)
    prunable = PrunableModel(sliced, min_keep=0)
    least = [module.decision.min_keep for module in prunable.modules]
    assert least == [1, 0, 0, 0, 0, 0]
    kept = {m.decision.name: range(m.n_indices) for m in prunable.modules} | {
        "block00.ffn": [], "block01.attention": [], "block01.ffn": [3], "block02.attention": [], "block02.ffn": []
    }  # fmt: skip
    orders = {m.decision.name: np.arange(m.n_indices) for m in prunable.modules} | {
        "block01.ffn": np.roll(np.arange(40), -3)
    }
    mask(PrunableModel(masked), kept)
    cut(PrunableModel(removed), kept)
    view = SlicedModel(prunable, orders)
    view.set_keep([len(kept[m.decision.name]) for m in prunable.modules])
    for each in (removed, sliced):
        torch.testing.assert_close(logits(each), logits(masked), **EXACT)
        words = {"max_new_tokens": 5, "do_sample": False}
        assert each.generate(tokens(1), **words).tolist() == masked.generate(tokens(1), **words).tolist()
    with view.gated(view.keep, 0.1) as gates, torch.enable_grad():
        sliced(tokens(), labels=tokens(), use_cache=False).loss.backward()
    assert all(gate.sums[1, 1] > 0 for gate in gates[1:5])
    view.restore()
    torch.testing.assert_close(logits(sliced), logits(tiny(family)), **EXACT)


def test_kv_groups_move_with_their_query_heads():
    """Keeping one KV group of a GQA model keeps its 3 query heads and o_proj columns, and no others."""
    model = tiny("llama")
    prunable, original = PrunableModel(model), copy.deepcopy(model)
    attention = [module for module in prunable.modules if module.kind == "attention"]
    assert [module.decision.n_units for module in attention] == [2, 2, 2]
    everything = {module.decision.name: range(module.decision.n_units) for module in prunable.modules}
    cut(prunable, {**everything, "block01.attention": [1]})
    old, new = (m.model.layers[1].self_attn for m in (original, model))
    torch.testing.assert_close(new.q_proj.weight, old.q_proj.weight[24:48])
    torch.testing.assert_close(new.k_proj.weight, old.k_proj.weight[8:16])
    torch.testing.assert_close(new.v_proj.bias, old.v_proj.bias[8:16])
    torch.testing.assert_close(new.o_proj.weight, old.o_proj.weight[:, 24:48])


NORMS = [("cohere", {"use_qk_norm": True}), ("olmo2", {}), ("olmo3", {}), ("stablelm", {"qk_layernorm": True})]


@pytest.mark.parametrize(("family", "changes"), NORMS)
def test_attention_whose_heads_share_a_norm_is_one_unit(family, changes):
    """It stays, or goes as a whole: without one head, the norm over the others would have another value."""
    masked, removed = (tiny(family, **changes) for _ in range(2))
    prunable = PrunableModel(removed, min_keep=0)
    assert [module.decision.n_units for module in prunable.modules] == [1, 40] * 3
    biases = 48 + 2 * 16 if family == "stablelm" else 0
    assert prunable.modules[0].decision.params_per_unit == 2 * 48 * (48 + 16) + biases
    kept = {m.decision.name: range(m.n_indices) for m in prunable.modules} | {"block01.attention": []}
    mask(PrunableModel(masked), kept)
    cut(prunable, kept)
    torch.testing.assert_close(logits(removed), logits(masked), **EXACT)


@pytest.mark.parametrize(("family", "changes"), [("qwen3", {}), ("phi", {"qk_layernorm": True}), ("cohere", {})])
def test_heads_with_norms_of_their_own_go_one_by_one(family, changes):
    modules = PrunableModel(tiny(family, **changes)).modules
    assert {module.decision.n_units for module in modules if module.kind == "attention"} == {2}


def test_an_unknown_family_is_refused_with_what_an_entry_needs():
    with pytest.raises(ConfigError, match=r"model family 'mamba' is not in the table.*paths of its blocks"):
        family_of("mamba")


EXPERTS = ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss", "deepseek_v3", "olmoe", "granitemoe", "phimoe"]
ENCODERS = ["bert", "roberta", "distilbert", "modernbert", "t5", "bart", "vit"]


def with_adapters(model):
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=["down_proj"]))


def quantised(model, dtype):
    linear = model.model.layers[1].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(dtype), requires_grad=False)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (with_adapters, "peft.tuners.lora.layer.Linear"),
        (lambda model: quantised(model, torch.int8), "torch.nn.modules.linear.Linear"),
        (lambda model: quantised(model, torch.float8_e4m3fn), "torch.nn.modules.linear.Linear"),
    ],
)
def test_linears_with_adapters_or_quantised_weights_are_refused(change, kind):
    model = tiny("llama")
    change(model)
    line = rf"^model\.layers\.\d\.mlp\.down_proj is a {re.escape(kind)} with other weights .* without quantisation\.$"
    with pytest.raises(ConfigError, match=line):
        PrunableModel(model)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("family", "match"),
    [
        *((family, "is a mixture of experts, .* Prune a model without experts") for family in EXPERTS),
        *((family, "is no causal language model: .*the next token; prune one of these") for family in ENCODERS),
        ("gpt2", "keeps its weights transposed .* Prune a model of another family"),
        ("bloom", "ALiBi"),
        ("falcon", "KV groups"),
        *((family, "by itself, as docs/python.md shows, and prune that") for family in ("gemma3", "llava", "mistral3")),
        *((family, f"its text model, '{family}_text', is not in") for family in ("qwen2_vl", "llama4", "qwen3_5")),
    ],
)
def test_what_no_entry_holds_is_refused_with_the_reason(family, match):
    with pytest.raises(ConfigError, match=rf"^model family '{family}' .*{match}.*\.$") as caught:
        family_of(family)
    assert "\n" not in str(caught.value)


TEXT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 97, **GQA}
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
          "image_size": 28, "patch_size": 14}  # fmt: skip
WRAPPERS = {
    "Gemma3Config": ("gemma3_text", {**VISION, "model_type": "siglip_vision_model"}, {"mm_tokens_per_image": 4}),
    "LlavaConfig": ("llama", {**VISION, "model_type": "clip_vision_model"}, {"image_token_index": 5}),
    "Mistral3Config": ("mistral", {**VISION, "model_type": "pixtral"}, {"image_token_index": 5}),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_text_model_of_a_wrapper_is_saved_as_the_documentation_says(name, tmp_path):
    text_type, vision, options = WRAPPERS[name]
    config = getattr(transformers, name)(text_config={**TEXT, "model_type": text_type}, vision_config=vision, **options)
    wrapper = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float64).eval()
    for saved in (wrapper, tokenizer()):
        saved.save_pretrained(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"as docs/python\.md shows"):
        load_skeleton(tmp_path / "whole")
    section = Path("docs/python.md").read_text().partition("## A model of text and images")[2]
    exec(section.split("```")[1].removeprefix("python"), {"WHOLE": tmp_path / "whole", "TEXT": tmp_path / "text"})
    text = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype="auto")
    torch.testing.assert_close(logits(text), logits(wrapper), **EXACT)
    assert len(PrunableModel(load_skeleton(tmp_path / "text")).modules) == 4
