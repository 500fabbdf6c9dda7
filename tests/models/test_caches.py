"""Keys and values that are kept, where a whole attention is gone in a model of sliding and full attention."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, QuantizedCache

import ffp
from ffp.measure.shared_prefixes import score_answers
from ffp.models.formats import Transformers
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from tests.helpers.families import tiny, tokenizer, tokens

SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = ("gemma2", "gemma3_text", "olmo3", "exaone4", "cohere2")
# The first attention of its kind is gone, so that masks of that kind read their length from it.
BY_KIND = pytest.mark.parametrize("kinds", [[SLIDING, FULL] * 2, [FULL, SLIDING] * 2], ids=["full", "sliding"])
ROWS = [tokens()[0].tolist(), tokens()[1, :9].tolist()]  # longer than the window, and filled up on the left
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # of float32; a wrong length is off by 0.07 or more


def without_second_attention(family, kinds):
    model = tiny(family, num_hidden_layers=4, sliding_window=16, layer_types=kinds).float()
    prunable = PrunableModel(model, min_keep=0)
    kept = {m.decision.name: range(m.n_indices) for m in prunable.modules}
    cut(prunable, kept | {"block01.attention": range(0)})
    return prunable


def filled_up(rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[2] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def whole(model, rows):
    """Logits behind each row, which passes alone and as a whole."""
    return torch.cat([model(torch.tensor([row]), use_cache=False).logits[:, -1] for row in rows])


@torch.no_grad()
def step_by_step(model, rows, steps=3):
    """Logits behind each row of a batch whose last tokens pass one by one."""
    ids, mask = filled_up(rows)
    positions, n, cache, start = (mask.cumsum(1) - 1).clamp_min(0), ids.shape[1], None, 0
    for end in range(n - steps, n + 1):
        out = model(
            ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions[:, start:end],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache, start = out.past_key_values, end
    return out.logits[:, -1]


def generated(model, rows, **options):
    ids, mask = filled_up(rows)
    words = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    return model.generate(ids, attention_mask=mask, **words, **options)[:, ids.shape[1] :].tolist()


@BY_KIND
@pytest.mark.parametrize("family", MIXED)
def test_logits_with_a_cache_equal_those_of_whole_rows(family, kinds):
    model = without_second_attention(family, kinds).model
    torch.testing.assert_close(step_by_step(model, ROWS), whole(model, ROWS), **CLOSE)


@BY_KIND
def test_answers_behind_shared_tokens_score_as_whole_rows(kinds):
    model = without_second_attention("olmo3", kinds).model
    stem, answers = ROWS[0][:4], [[[5, 6, 7], [8, 9]], [[5], [3, 4, 5]]]
    rows = [[*stem, *ROWS[0][4:12]], [*stem, *ROWS[1][:3]]]  # within the window, see find_shared
    found = score_answers(model, rows, answers, batch_tokens=500, stem=len(stem))
    for row, of_row, scores in zip(rows, answers, found, strict=True):
        for answer, (likely, _) in zip(of_row, scores, strict=True):
            places = [whole(model, [row + answer[:i]]).log_softmax(-1)[0, token] for i, token in enumerate(answer)]
            assert likely == pytest.approx(float(sum(places)), rel=1e-4)


@BY_KIND
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "prefill_chunk_size": 4},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["dynamic", "beams", "static", "static-in-parts", "lookup"],
)
def test_every_cache_generates_what_none_does(options, kinds):
    model = without_second_attention("exaone4", kinds).model
    rows = ROWS[:1] if "prompt_lookup_num_tokens" in options else ROWS
    beams = {"num_beams": options.get("num_beams", 1)}
    expected = [generated(model, [row], use_cache=False, **beams)[0] for row in rows]
    assert generated(model, rows, **options) == expected


@BY_KIND
def test_saved_checkpoints_count_the_tokens_too(kinds, tmp_path, hub_modules):
    prunable = without_second_attention("gemma3_text", kinds)
    Transformers().save(prunable, tokenizer(), tmp_path)
    expected = whole(prunable.model, ROWS)
    remote = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, dtype="auto")
    for loaded in (remote, ffp.load_pruned(tmp_path, device="cpu")):
        torch.testing.assert_close(step_by_step(loaded, ROWS), expected, **CLOSE)
        assert generated(loaded, ROWS, cache_implementation="static") == generated(prunable.model, ROWS)


def test_an_attention_that_is_gone_keeps_one_number_a_token_and_nothing_where_keys_are_quantised():
    prunable = PrunableModel(tiny("llama").float(), min_keep=0)
    kept = {m.decision.name: range(m.n_indices) for m in prunable.modules}
    cut(prunable, kept | {"block01.attention": range(0)})
    with torch.no_grad():
        cache = prunable.model(tokens(2, 7), use_cache=True).past_key_values
    assert cache.layers[1].keys.shape == cache.layers[1].values.shape == (2, 1, 7, 1)
    assert not cache.layers[1].keys.any()
    quantised = QuantizedCache("fp8", prunable.config)
    with torch.no_grad():
        prunable.model(tokens(2, 7), past_key_values=quantised)
        prunable.model(tokens(2, 1), past_key_values=quantised)
    assert [layer.get_seq_length() for layer in quantised.layers] == [8, 0, 8]
