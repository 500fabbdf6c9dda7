"""The bytes that predicted tokens spell, beside a loop over windows, for tokenizers of both kinds."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ffp.measure.perplexity import perplexity
from ffp.measure.spelled import byte_places, predicted_bytes
from ffp.measure.windows import SEPARATOR, token_windows
from tests.helpers.vocabularies import TEXTS, byte_level, sentencepiece
from tests.measure.slow import WORDS

MAKERS = {
    "byte-level": lambda bos: byte_level("gpt-2", bos=bos),
    "sentencepiece, blank before the first word": lambda bos: sentencepiece("first", bos=bos),
    "sentencepiece, blank before the text": lambda bos: sentencepiece("prepend", bos=bos),
}
DOCUMENTS = [text for text in TEXTS if text.strip() and "<|" not in text]


def slow_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> int:
    """Bytes that a token stands for by its name alone; the blank before the text is counted."""
    name = tokenizer.convert_ids_to_tokens(token)
    if re.fullmatch("<0x..>", name):
        return 1
    return len(name) if "Ġ" in tokenizer.get_vocab() else len(name.replace("▁", " ").encode())


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("bos", ["never", "once", "always"])
@pytest.mark.parametrize("context", [2, 7, 50])
def test_predicted_bytes_equal_a_loop_over_the_tokens_of_every_window(make, bos, context):
    """Contexts are short, so that many windows end within a character."""
    tokenizer = make(bos != "never")
    windows = token_windows(tokenizer, DOCUMENTS, context=context, windows=0, name="text", bos=bos)
    predicted = [token for window in windows.tolist() for token in window[1:]]
    expected = sum(slow_bytes(tokenizer, token) for token in predicted)
    whole = tokenizer(SEPARATOR.join(DOCUMENTS), add_special_tokens=False)["input_ids"]
    if predicted[0] == whole[0] and "Ġ" not in tokenizer.get_vocab():
        expected -= 1  # the blank before the text, which is none of it
    found = predicted_bytes(tokenizer, DOCUMENTS, context=context, windows=len(windows), bos=bos)
    assert found == expected


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_all_tokens_together_spell_the_text(make):
    text = SEPARATOR.join(text for text in TEXTS if text.strip())  # also those with the names of special tokens
    ids, places = byte_places(make(False), text)
    assert places[0] == 0 and places[-1] == len(text.encode()) and len(places) == len(ids) + 1
    assert (places[1:] >= places[:-1]).all()


def test_text_that_a_tokenizer_normalises_counts_as_it_stands():
    """NFC makes one character of a letter and its accent, which are three bytes of the text."""
    text = "cafe\u0301 e\u0301e\u0301 " * 20
    assert byte_places(byte_level("qwen2"), text)[1][-1] == len(text.encode())


def test_bits_per_byte_is_the_loss_of_all_predicted_tokens_over_their_bytes(model):
    windows = torch.randint(len(WORDS), (5, 12), generator=torch.Generator().manual_seed(1))
    found = perplexity(model, windows, batch_tokens=100, n_bytes=200)
    nats = sum(11 * loss for loss in found["loss_by_window"])
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 200, rel=1e-12) and found["n_bytes"] == 200
    assert "bits_per_byte" not in perplexity(model, windows, batch_tokens=100)


def test_bits_per_byte_compares_tokenizers(model):
    """A uniform guess over 256 bytes is 8 bits a byte, whatever the tokens are: here one byte or one character each."""
    tokenizer = byte_level("gpt-2")
    tokens = tokenizer(SEPARATOR.join(DOCUMENTS), add_special_tokens=False)["input_ids"]
    sizes = [slow_bytes(tokenizer, token) for token in tokens]
    n_bytes = predicted_bytes(tokenizer, DOCUMENTS, context=len(tokens), windows=1, bos="never")
    nats = sum(size * math.log(256) for size in sizes[1:])
    assert nats / math.log(2) / n_bytes == pytest.approx(8)


def test_a_tokenizer_that_does_not_say_where_tokens_stand_gives_no_bytes():
    assert predicted_bytes(SimpleNamespace(is_fast=False), DOCUMENTS, context=8, windows=1) is None
