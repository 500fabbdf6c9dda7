"""What every format must do for every family that it serves: give the same logits again, in its engine."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import ffp
from ffp.core import projection
from ffp.core.errors import ConfigError
from ffp.models import formats
from ffp.models.empty_blocks import without_empty_blocks
from ffp.models.families import family_of
from ffp.models.formats import DenseShape, Transformers
from ffp.models.formats.dense_shape import kept_bits
from ffp.models.formats.transformers import let_save
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut, mask
from ffp.pruning.compensation import compensate, load_updates, spread_updates
from ffp.store.layout import ExportFiles
from tests.helpers.families import CONFIGS, pruned, tiny, tokenizer, tokens

EXACT = {"rtol": 1e-9, "atol": 1e-9}
BY_FAMILY = pytest.mark.parametrize("family", CONFIGS)
# All of them where families have entries of their own, and new weights everywhere.
OWN_ENTRIES = ("llama", "phi3", "opt", "gpt_neox")
BY_COMPENSATION = pytest.mark.parametrize(
    ("family", "compensation"),
    [(family, "ridge") for family in CONFIGS] + [(f, kind) for f in OWN_ENTRIES for kind in ("none", "bias")],
)
OWN_HEAD_DIM = set(CONFIGS) - {
    "opt",
    "gpt_neox",
    "phi",
    "stablelm",
}  # elsewhere a head is as wide as the hidden size over the heads


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def save(prunable, folder, format=None):
    folder.mkdir()
    return (format or Transformers()).save(prunable, tokenizer(), folder)


def remote(folder, auto=AutoModelForCausalLM):
    return auto.from_pretrained(folder, trust_remote_code=True, dtype="auto")


def unequal(prunable, seed=0):
    """Units of an allocation that differs from block to block."""
    problem, draw = prunable.problem(0.4), np.random.default_rng(seed)
    keep = projection.project(problem, draw.normal(size=len(problem.decisions)) * 2).keep
    return {
        m.decision.name: np.sort(draw.permutation(m.decision.n_units)[:k])
        for m, k in zip(prunable.modules, keep, strict=True)
    }


@pytest.fixture(params=CONFIGS)
def saved(request, tmp_path, hub_modules):
    """(the pruned model, the folder it was saved to): blocks of unequal sizes."""
    prunable = pruned(request.param)
    assert save(prunable, tmp_path / "saved").tags == ("custom_code",)
    return prunable.model, tmp_path / "saved"


@BY_COMPENSATION
def test_transformers_reloads_to_equal_logits(family, compensation, tmp_path, hub_modules):
    """With the modelling file and without it; what each saves again reloads too."""
    model = tiny(family)
    prunable = PrunableModel(model)
    kept = unequal(prunable)
    updates = {}
    if compensation != "none":
        updates = compensate(prunable, kept, tokens(6), kind=compensation, batch_tokens=40)
    cut(prunable, kept)
    load_updates(prunable, {name: tensor.numpy() for name, tensor in updates.items()})
    save(prunable, tmp_path / "a")
    with_code, without = remote(tmp_path / "a"), ffp.load_pruned(tmp_path / "a", device="cpu")
    with_code.save_pretrained(tmp_path / "b")
    without.save_pretrained(tmp_path / "c")
    for loaded in (with_code, without, remote(tmp_path / "b"), remote(tmp_path / "c")):
        torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
        assert prunable.model_params() == sum(p.numel() for p in set(loaded.parameters()))


@pytest.mark.parametrize("more", [{}, {"attention_factor": 1.5}, {"factor": 4.0}])
@pytest.mark.parametrize("equal", [True, False])
def test_every_factor_of_a_scaled_phi3_is_kept(equal, more, tmp_path):
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors, **more}
    prunable = PrunableModel(tiny("phi3", rope_parameters=rope, original_max_position_embeddings=16))
    cut(prunable, {m.decision.name: range(2 if equal else 1 + m.block % 2) for m in prunable.modules})
    save(prunable, tmp_path / "saved")
    loaded = ffp.load_pruned(tmp_path / "saved", device="cpu")
    own = prunable.model.config.rope_parameters
    assert {key: loaded.config.rope_parameters.get(key) for key in own} == own
    torch.testing.assert_close(logits(loaded), logits(prunable.model), rtol=0, atol=0)
    scaling = json.loads((tmp_path / "saved" / "config.json").read_text())["rope_scaling"]
    assert (len(scaling) == 3) is (not more)  # version 4 refuses others


def test_the_base_model_has_the_sizes_too(saved):
    model, folder = saved
    with torch.no_grad():
        found, expected = (m(tokens()).last_hidden_state for m in (remote(folder, AutoModel), model.base_model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def pickled(model, folder):
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


def copied(model, folder):
    return copy.deepcopy(model)


@pytest.mark.parametrize("again", [pickled, copied])
@pytest.mark.parametrize("units", ["kv-groups", "single-query-heads"])
def test_copies_and_pickles_compute_with_their_own_weights(units, again, tmp_path, hub_modules):
    """An attention without heads, and one whose query heads share KV heads unequally."""
    prunable = PrunableModel(tiny("llama"), min_keep=0, attention_units=units)
    kept = {"block00.attention": [0, 1], "block01.attention": []}
    cut(prunable, {m.decision.name: kept.get(m.decision.name, range(m.n_indices)) for m in prunable.modules})
    let_save(prunable)
    prunable.model.save_pretrained(tmp_path / "saved")
    expected = logits(prunable.model)
    for model in (prunable.model, remote(tmp_path / "saved"), ffp.load_pruned(tmp_path / "saved", device="cpu")):
        found = again(model, tmp_path)
        assert type(found) is type(model) and type(found.config) is type(model.config)
        torch.testing.assert_close(logits(found), expected, rtol=0, atol=0)
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(logits(found), expected, rtol=0, atol=0)
        found.save_pretrained(tmp_path / "again")
        torch.testing.assert_close(logits(remote(tmp_path / "again")), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"cache_implementation": "static", "prefill_chunk_size": 2}]
)
def test_other_caches_give_the_same_tokens(saved, options):
    model, folder = saved
    words = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(tokens(1, 7), **words).tolist()
    assert remote(folder).generate(tokens(1, 7), **words).tolist() == expected
    assert remote(folder).generate(tokens(1, 7), **words, **options).tolist() == expected


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.long) for name in ("qwen3", "phi3"))]
)
def test_continuous_batching_gives_the_same_tokens(family, tmp_path, hub_modules):
    prunable = pruned(family)
    save(prunable, tmp_path / "saved")
    defaults = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=96)
    prompts = tokens(3, 7)
    expected = prunable.model.float().generate(prompts, generation_config=defaults)[:, 7:].tolist()
    loaded = remote(tmp_path / "saved").float()
    found = loaded.generate_batch(inputs=prompts.tolist(), generation_config=defaults, progress_bar=False)
    for answer, tokens_expected in zip(found.values(), expected, strict=True):
        assert answer.generated_tokens == tokens_expected[: len(answer.generated_tokens)]
        assert len(answer.generated_tokens) > 1


def test_per_layer_config_names_the_sizes_of_each_block(saved):
    model, folder = saved
    body, prunable = json.loads((folder / "config.json").read_text()), remote(folder)
    family = family_of(model.config.model_type)
    for number, sizes in body["per_layer_config"].items():
        block = prunable.get_submodule(f"{family.blocks}.{number}")
        heads = block.get_submodule(family.attention_output).in_features // body["head_dim"]
        assert sizes["num_attention_heads"] == heads
        assert sizes[family.ffn_width] == block.get_submodule(family.ffn_output).in_features
    assert body["model_type"] == model.config.model_type


@BY_COMPENSATION
def test_modules_and_blocks_with_nothing_left_are_not_written(family, compensation, tmp_path, hub_modules):
    prunable = PrunableModel(tiny(family), min_keep=0)
    kept = {m.decision.name: np.arange(m.n_indices // 2 + 1) for m in prunable.modules} | {
        "block00.ffn": [], "block01.attention": [], "block02.attention": [], "block02.ffn": []
    }  # fmt: skip
    updates = {}
    if compensation != "none":
        updates = compensate(prunable, kept, tokens(6), kind=compensation, batch_tokens=40)
    cut(prunable, kept)
    load_updates(prunable, {name: tensor.numpy() for name, tensor in updates.items()})
    assert prunable.linear(prunable.modules[5].output).weight.numel() == 0
    model = prunable.model
    with without_empty_blocks(prunable):
        save(prunable, tmp_path / "saved")
    assert len(prunable.blocks) == model.config.num_hidden_layers == 3
    biased = prunable.linear(prunable.modules[5].output).bias is not None  # which keeps the block
    words = {"max_new_tokens": 6, "do_sample": False}
    for loaded in (remote(tmp_path / "saved"), ffp.load_pruned(tmp_path / "saved", device="cpu")):
        assert loaded.config.num_hidden_layers == (3 if biased else 2)
        torch.testing.assert_close(logits(loaded), logits(model), **EXACT)
        expected = model.generate(tokens(1, 7), **words).tolist()
        for options in ({}, {"cache_implementation": "static"}):
            assert loaded.generate(tokens(1, 7), **words, **options).tolist() == expected


@BY_FAMILY
def test_equal_blocks_make_an_ordinary_checkpoint(family, tmp_path):
    """FFNs cut alike; attention too, where the family's class has a head size of its own."""
    prunable = PrunableModel(tiny(family))
    heads = 1 if family in OWN_HEAD_DIM else prunable.kv_heads
    cut(prunable, {m.decision.name: range(heads if m.kind == "attention" else 24) for m in prunable.modules})
    saved = save(prunable, tmp_path / "saved")
    assert not saved.tags and "trust_remote_code" not in "".join(saved.run)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert type(loaded) is type(prunable.model)
    for each in (loaded, ffp.load_pruned(tmp_path / "saved", device="cpu")):
        torch.testing.assert_close(logits(each), logits(prunable.model), rtol=0, atol=0)
    assert PrunableModel(loaded).problem(0.2).total_params == sum(d.params for d in prunable_sizes(loaded))


def prunable_sizes(model):
    return [module.decision for module in PrunableModel(model).modules]


@BY_FAMILY
def test_dense_shapes_reload_by_stock_classes_with_a_mask(family, tmp_path):
    small, dense = tiny(family), tiny(family)
    prunable, zeroed = PrunableModel(small), PrunableModel(dense)
    kept = unequal(prunable)
    new = compensate(prunable, kept, tokens(6), kind="ridge", batch_tokens=40)
    updates = {name: tensor.numpy() for name, tensor in new.items()}
    cut(prunable, kept)
    load_updates(prunable, updates)
    mask(zeroed, kept)
    load_updates(zeroed, spread_updates(zeroed, kept, updates))
    saved = save(zeroed, tmp_path / "saved", DenseShape())
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert type(stock).__module__.startswith("transformers.models")
    torch.testing.assert_close(logits(stock), logits(small), **EXACT)
    stock.requires_grad_(False)
    for parameter in stock.parameters():
        parameter.add_(1.0)
    lines = saved.text.partition("```python\n")[2].partition("```")[0].replace("PATH", str(tmp_path / "saved"))
    exec(lines, {"model": stock})  # what the card says
    bits = np.load(ExportFiles(tmp_path / "saved").mask)
    for name, parameter in dense.named_parameters():
        if name in bits:
            assert torch.equal(stock.get_parameter(name) == 0, parameter == 0), name
    assert len(bits) >= 3 * 4


def test_a_bias_that_is_zero_by_itself_may_be_tuned():
    prunable = PrunableModel(tiny("qwen2"))
    for module in prunable.modules:
        for segment in module.segments:
            if (bias := prunable.linear(segment.linear).bias) is not None:
                bias.data.zero_()
    mask(prunable, {m.decision.name: range(1 if m.kind == "attention" else 24) for m in prunable.modules})
    bits = np.unpackbits(kept_bits(prunable)["model.layers.0.self_attn.q_proj.bias"], count=48)
    assert bits.tolist() == [1] * 24 + [0] * 24


@pytest.mark.parametrize("family", sorted(CONFIGS.keys() & TARGETS.keys()))
def test_peft_finds_its_targets_trains_merges_and_reloads(family, tmp_path, hub_modules):
    save(pruned(family), tmp_path / "saved")
    model = get_peft_model(remote(tmp_path / "saved"), LoraConfig(task_type="CAUSAL_LM", r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = logits(model)
    model(tokens(), labels=tokens()).loss.backward()
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(remote(tmp_path / "saved"), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), expected)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(remote(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)


def test_the_parents_tokenizer_files_are_kept_and_both_versions_know_their_class(tmp_path):
    tokenizer().save_pretrained(tmp_path / "parent")
    own = (tmp_path / "parent" / "tokenizer.json").read_bytes().replace(b'"version"', b'"version" ')
    (tmp_path / "parent" / "tokenizer.json").write_bytes(own)
    for folder, parent in (("kept", tmp_path / "parent"), ("written", None)):
        (tmp_path / folder).mkdir()
        Transformers().save(pruned("llama"), tokenizer(), tmp_path / folder, parent=parent)
        body = json.loads((tmp_path / folder / "tokenizer_config.json").read_text())
        assert body["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert AutoTokenizer.from_pretrained(tmp_path / folder)("ab").input_ids == tokenizer()("ab").input_ids
    assert (tmp_path / "kept" / "tokenizer.json").read_bytes() == own


def test_an_unknown_format_or_option_is_refused():
    with pytest.raises(ConfigError, match=r"no format 'ggfu': "):
        formats.create("ggfu")
    with pytest.raises(ConfigError, match="the format dense-shape has no option 'pad'"):
        formats.create("dense-shape", pad=32)
    assert formats.create("transformers", pad=None).words() == []
    assert formats.create("dense-shape").words() == ["--format", "dense-shape"]


def test_equal_blocks_whose_heads_do_not_divide_the_width_get_a_modelling_file(tmp_path):
    """LLaMA's own configuration refuses 3 heads at a width of 32."""
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=48, vocab_size=96))
    prunable = PrunableModel(llama.eval())
    cut(prunable, {m.decision.name: range(3 if m.kind == "attention" else 24) for m in prunable.modules})
    saved = save(prunable, tmp_path / "saved")
    assert saved.tags and "trust_remote_code" in "".join(saved.run)
    loaded = ffp.load_pruned(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(logits(loaded), logits(llama), rtol=0, atol=0)
