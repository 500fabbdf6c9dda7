"""GGUF files: llama.cpp computes what PyTorch computes, makes the same tokens, and what it cannot hold is refused."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from benchmarks.llama_cpp import losses
from ffp.core.errors import ConfigError
from ffp.models.formats import gguf_quantize
from ffp.models.formats.gguf import ARCHITECTURES, Gguf
from ffp.models.formats.gguf_tensors import padded_heads
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut, mask
from ffp.pruning.compensation import compensate, load_updates
from tests.helpers.families import CONFIGS, tiny, tokens
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.vocabularies import SIZE, TEXTS, byte_level, sentencepiece

TOKENIZER = byte_level("gpt-2")
IDS = tokens(1, 20)[0].tolist()
FIRST = 6  # the prompt of the first comparison has more than one token
TIED = [(family, tied) for family in ARCHITECTURES for tied in (True, False) if tied or family != "qwen3"]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip


def random(family, **changes):
    return tiny(family, vocab_size=SIZE, **({"tie_word_embeddings": True} | changes))


def chosen(prunable, heads=(2, 1, 2), channels=(40, 7, 33)):
    """The last units of each module, as many as said."""
    sizes = {"attention": heads, "ffn": channels}
    counts = {module.decision.name: (module.decision.n_units, sizes[module.kind]) for module in prunable.modules}
    return {name: range(n - each[int(name[5:7])], n) for name, (n, each) in counts.items()}


def torch_log_probs(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits.double().log_softmax(-1)[0, FIRST:].numpy()


def log_probs(file):
    with LlamaCpp(file) as engine:
        return engine.log_probs(IDS, SIZE, first=FIRST)


def assert_equal(file, model):
    np.testing.assert_allclose(log_probs(file), torch_log_probs(model), rtol=1e-4, atol=1e-4)


def written(prunable, folder, **options):
    """The file of a cut model, whose format says nothing."""
    assert Gguf(**options).save(prunable, TOKENIZER, folder).notes == []
    (file,) = folder.glob("*.gguf")
    return file


def fields(file):
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.mark.parametrize("pad", [1, 32])
@pytest.mark.parametrize(("family", "tied"), TIED)
def test_llama_cpp_computes_what_pytorch_computes(family, tied, pad, tmp_path):
    """Blocks of different sizes, odd widths; biases in llama and qwen2."""
    model = random(family, tie_word_embeddings=tied)
    prunable = PrunableModel(model)
    cut(prunable, chosen(prunable))
    file = written(prunable, tmp_path, pad=pad)
    assert_equal(file, model)
    assert fields(file)[f"{ARCHITECTURES[family]}.feed_forward_length"] == ([40, 7, 33] if pad == 1 else [64, 32, 64])


@pytest.mark.parametrize("pad", [1, 32])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_query_heads_of_every_kv_group_may_go(family, pad, tmp_path):
    model = random(family)
    prunable = PrunableModel(model, attention_units="query-heads")
    heads = iter(([0, 1, 3, 5], [2, 4], range(6)))
    cut(prunable, {m.decision.name: next(heads) if m.kind == "attention" else range(33) for m in prunable.modules})
    assert [prunable.sizes(block)["num_attention_heads"] for block in range(3)] == [4, 2, 6]
    assert_equal(written(prunable, tmp_path, pad=pad), model)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_whole_model_is_written_too(family, tmp_path):
    model = random(family)
    file = written(PrunableModel(model), tmp_path)
    assert_equal(file, model)
    found = losses(file, [IDS], threads=1)[0, FIRST:]
    expected = -torch_log_probs(model)[np.arange(len(found)), IDS[FIRST + 1 :]]
    np.testing.assert_allclose(np.nanmean(found), expected[~np.isnan(found)].mean(), rtol=1e-4)


@pytest.mark.parametrize("rope", [LLAMA3, {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}])
def test_scaled_rotary_positions_agree(rope, tmp_path):
    model, plain = (random("llama", rope_parameters=own) for own in (rope, {"rope_theta": 500.0}))
    file = written(PrunableModel(model), tmp_path)
    assert_equal(file, model)
    assert abs(torch_log_probs(model) - torch_log_probs(plain)).max() > 0.1


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_biases_that_compensation_adds_are_kept(family, tmp_path):
    model = random(family)
    prunable = PrunableModel(model)
    kept = chosen(prunable)
    updates = compensate(prunable, kept, tokens(6), kind="bias", batch_tokens=40)
    cut(prunable, kept)
    load_updates(prunable, {name: tensor.numpy() for name, tensor in updates.items()})
    assert model.model.layers[1].mlp.down_proj.bias.abs().max() > 0.1
    assert_equal(written(prunable, tmp_path), model)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("gone", ["attention", "ffn", "both"])
@pytest.mark.parametrize("blocks", [[0], [1], [2], [0, 1, 2]])
def test_blocks_without_attention_or_ffn_are_exact(blocks, gone, family, biased, tmp_path):
    """Compared with zeros in the dense shape, since transformers runs no attention without heads."""
    if biased and family == "qwen3":
        pytest.skip("openelm has no biases")
    changes = {"attention_bias": biased} | ({"mlp_bias": biased} if family == "llama" else {})
    model, dense = random(family, **changes), random(family, **changes)
    prunable = PrunableModel(model)
    heads, channels = [2, 1, 2], [40, 7, 33]
    for block in blocks:
        heads[block] *= gone == "ffn"
        channels[block] *= gone == "attention"
    kept = chosen(prunable, heads, channels)
    cut(prunable, kept)
    mask(PrunableModel(dense), kept)
    assert_equal(written(prunable, tmp_path, pad=1), dense)


def test_what_is_gone_takes_no_space_where_the_architecture_can_do_without(tmp_path):
    model = random("llama", attention_bias=False, mlp_bias=False)
    prunable = PrunableModel(model)
    cut(prunable, chosen(prunable, (0, 0, 2), (40, 0, 0)))
    file = written(prunable, tmp_path, pad=1)
    found = fields(file)
    sizes = [
        found[f"deci.{name}"] for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    ]
    assert sizes == [[1, 0, 6], [1, 0, 2], [40, 0, 32]]
    assert not [tensor.name for tensor in GGUFReader(file).tensors if tensor.name.startswith("blk.1.")]


@pytest.mark.parametrize("saved", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", [None, "F32", "F16", "BF16"])
def test_a_file_has_the_models_own_precision_or_that_asked_for(dtype, saved, tmp_path):
    model = random("llama").to(gguf_quantize.FLOATS[saved])
    file = written(PrunableModel(model), tmp_path, quantize=(dtype,) if dtype else ())
    kind = dtype or saved
    assert file.name == f"model-{kind}.gguf"
    assert {tensor.tensor_type.name for tensor in GGUFReader(file).tensors} == {"F32", kind}
    tolerance = 0.5 if "BF16" in (saved, kind) else 0.05
    np.testing.assert_allclose(log_probs(file), torch_log_probs(model.float()), atol=tolerance)


def test_weights_beyond_the_range_of_f16_are_refused(tmp_path):
    model = random("llama")
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ConfigError, match=r"beyond the range of F16\. Write the GGUF file in BF16 or F32\.$"):
        Gguf(quantize=("F16",)).save(PrunableModel(model), TOKENIZER, tmp_path)


def wide(family="llama"):
    """A model in which K-quants fit all matrices but those that pruning narrows."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}
    model = random(family, **sizes, **({"attention_bias": False} if family == "qwen3" else {}))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.mul_(0.2)
    prunable = PrunableModel(model)
    cut(prunable, chosen(prunable, (2, 1, 1), (512, 300, 259)))
    return prunable


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", gguf_quantize.QUANTISED)
@pytest.mark.parametrize("pad", [1, 32, 256])
def test_quantised_files_compute_nearly_the_same(kind, family, pad, tmp_path):
    prunable = wide(family)
    lines = Gguf(quantize=(kind,), pad=pad).save(prunable, TOKENIZER, tmp_path).notes
    (file,) = tmp_path.iterdir()
    assert file.name == f"model-{kind}.gguf"
    found, expected = log_probs(file), torch_log_probs(prunable.model)
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert error < (0.06 if kind == "Q8_0" else 0.5)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    if kind == "Q4_K_M":
        assert types["blk.1.ffn_down.weight"] == {1: "F16", 32: "Q5_0", 256: "Q4_K"}[pad]
        assert (
            types["token_embd.weight"]
            == types["blk.2.ffn_down.weight" if pad == 256 else "token_embd.weight"]
            == "Q6_K"
        )
    assert bool(lines) == (pad == 1 or (pad == 32 and kind == "Q4_K_M"))


def test_what_has_another_type_is_said(tmp_path):
    lines = Gguf(quantize=("Q8_0", "Q4_K_M"), pad=1).save(wide(), TOKENIZER, tmp_path).notes
    assert lines == [
        "Q8_0: 2 of 22 matrices as F16, since their width is no multiple of 32",
        "Q4_K_M: 4 of 22 matrices as F16 or Q5_0, since their width is no multiple of 256",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model-Q4_K_M.gguf", "model-Q8_0.gguf"]


def test_pieces_are_quantised_like_the_whole(monkeypatch):
    tensor = torch.randn(37, 256, generator=torch.Generator().manual_seed(0))
    for kind in ("Q4_K", "Q6_K", "Q5_1", "Q8_0"):
        whole = gguf_quantize.encode(tensor, gguf_quantize.Type[kind])
        monkeypatch.setattr(gguf_quantize, "CHUNK", 1024)
        np.testing.assert_array_equal(gguf_quantize.encode(tensor, gguf_quantize.Type[kind]), whole)
        monkeypatch.undo()


def test_padded_heads_are_the_fewest_that_fit():
    """Against all counts up to a bound."""
    for pad in (1, 32, 256):
        for groups in range(5):
            for per_group in range(1, 5):
                for width in (8, 48, 64, 128):
                    found = padded_heads(groups, per_group, width, pad)
                    allowed = [
                        (g * q, g, q)
                        for g in range(max(1, groups), 70)
                        for q in range(per_group, 70)
                        if g * q * width % pad == 0
                    ]
                    assert found == min(allowed)[1:]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2"])
def test_llama_cpp_makes_the_tokens_of_byte_level_tokenizers(pre, bos, tmp_path):
    tokenizer = byte_level(pre, bos=bos)
    check_tokens(tokenizer, tmp_path, TEXTS)


@pytest.mark.parametrize("scheme", ["prepend", "first", "always", "never"])
def test_llama_cpp_makes_the_tokens_of_sentencepiece_tokenizers(scheme, tmp_path):
    """But for spaces at the start and after special tokens, where transformers' Metaspace goes its own way."""
    texts = TEXTS
    if scheme in ("first", "always"):
        texts = [text for text in TEXTS if not text.startswith((" ", "<"))]
    check_tokens(sentencepiece(scheme), tmp_path, texts)


def check_tokens(tokenizer, folder, texts):
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    Gguf().save(PrunableModel(random("llama")), tokenizer, folder)
    messages = [{"role": "user", "content": "Hi 123"}]
    with LlamaCpp(folder / "model-F32.gguf") as engine:
        for text in texts:
            for special in (True, False):
                ids = tokenizer(text, add_special_tokens=special)["input_ids"]
                assert engine.tokenize(text, special=special) == ids, text
        ids = tokenizer("Größe <tool> 😀")["input_ids"]
        assert engine.detokenize(ids).strip() == tokenizer.decode(ids, skip_special_tokens=False).strip()
        assert engine.template(messages) == tokenizer.apply_chat_template(messages, tokenize=False)


def refused(match, model, tokenizer=TOKENIZER, units="kv-groups", **options):
    with pytest.raises(ConfigError, match=match) as caught:
        Gguf(**options).check(PrunableModel(model, attention_units=units), tokenizer)
    assert "\n" not in str(caught.value)


def test_what_can_be_written_passes_the_check():
    for family in ARCHITECTURES:
        Gguf(quantize=("Q8_0", "Q4_K_M")).check(PrunableModel(random(family)), TOKENIZER)


@pytest.mark.bad_input
@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in ARCHITECTURES])
def test_families_without_an_architecture_are_refused(family):
    refused(
        rf"no architecture for a pruned {family}: .*Use --format transformers, or --format dense-shape",
        tiny(family),
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("qwen3", {"tie_word_embeddings": False}, "a pruned qwen3 only if its embeddings are tied"),
        ("mistral", {"sliding_window": 16}, r"mistral with a sliding window \(16 tokens\)"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "rope scaling 'yarn'"),
        ("qwen3", {"rope_parameters": LLAMA3}, r"rope scaling 'llama3' .* a pruned qwen3 \(known: default\)"),
        ("llama", {"hidden_act": "gelu"}, "llama with gelu"),
        (
            "qwen3",
            {"attention_bias": True},
            "a pruned qwen3 whose own attention has biases .*Use --format transformers",
        ),
    ],
)
def test_what_an_architecture_lacks_is_refused(family, changes, match):
    refused(match, random(family, **changes))


@pytest.mark.bad_input
def test_query_heads_that_share_kv_heads_unequally_are_refused():
    refused(
        "query heads that share KV heads unequally. Take attention_units: query-heads",
        random("llama"),
        units="single-query-heads",
    )


@pytest.mark.bad_input
def test_settings_that_make_no_sense_are_refused():
    model = random("llama")
    refused("pad is 0. Give 1", model, pad=0)
    refused("GGUF type 'Q3_X' is unknown. Choose from F32, F16, BF16, Q8_0, Q4_0, Q4_K_M", model, quantize=("Q3_X",))


@pytest.mark.bad_input
def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    model = random("llama")
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    refused(r'xllamacpp is not installed\. Run: pip install "ffp\[llama-cpp\]"', model, quantize=("Q4_K_M",))
    Gguf(quantize=("Q8_0",)).check(PrunableModel(model), TOKENIZER)


@pytest.mark.bad_input
def test_biases_that_compensation_adds_to_qwen3_are_refused(tmp_path):
    prunable = PrunableModel(random("qwen3"))
    kept = chosen(prunable)
    updates = compensate(prunable, kept, tokens(6), kind="bias", batch_tokens=40)
    cut(prunable, kept)
    load_updates(prunable, {name: tensor.numpy() for name, tensor in updates.items()})
    with pytest.raises(ConfigError, match=r"_proj has a bias, .*openelm.*compensation ridge or none"):
        Gguf().save(prunable, TOKENIZER, tmp_path)


@pytest.mark.bad_input
def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = random("llama")
    refused(r"has a token of id 1490, but the model's embedding has 97 rows", tiny("llama"))
    for change, match in [
        (
            {"pre_tokenizer": pre_tokenizers.Whitespace()},
            r"its pre-tokenizer is not known \(\{\"type\": \"Whitespace\"\}\)",
        ),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "its pre-tokenizer is not known"),
        ({"normalizer": normalizers.Lowercase()}, "llama.cpp has no normalizer Lowercase"),
        ({"model": models.WordLevel({"a": 0}, "a")}, "its model is WordLevel, not BPE"),
    ]:
        tokenizer = byte_level("gpt-2")
        for name, value in change.items():
            setattr(tokenizer.backend_tokenizer, name, value)
        refused(match, model, tokenizer)
    tokenizer = sentencepiece("prepend")
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    refused("what it does before BPE is not known", model, tokenizer)
    body = sentencepiece("prepend").backend_tokenizer
    part = models.BPE(
        {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}, [("a", "b"), ("ab", "c")], byte_fallback=True
    )
    core = Tokenizer(part)
    core.normalizer = body.normalizer
    refused("its merges do not make 'a?bc' of all its parts", model, type(TOKENIZER)(tokenizer_object=core))


@pytest.mark.parametrize("quantize", [(), ("Q4_0", "Q8_0")])
def test_the_card_says_how_to_run_the_file(quantize, tmp_path):
    saved = Gguf(quantize=quantize).save(PrunableModel(random("llama")), TOKENIZER, tmp_path)
    assert saved.library == "gguf"
    name = f"model-{quantize[0]}.gguf" if quantize else "model-F32.gguf"
    assert (tmp_path / name).is_file() and saved.language == "shell"
    assert saved.run[0].startswith(f"llama-cli -m PATH/{name}")
    assert f"FROM ./{name}" in saved.text and "xllamacpp 2026.10" in saved.text
