"""A BOS in windows: which tokenizers add one, where it stands, what perplexity is then; beside lm-eval."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tokenizers import processors

from ffp.core.errors import ConfigError
from ffp.measure.bos import adds_bos, place_bos
from ffp.measure.language_model import language_model
from ffp.measure.perplexity import perplexity
from ffp.measure.windows import SEPARATOR, later_windows, token_windows
from tests.helpers.tiny import with_bos
from tests.helpers.vocabularies import byte_level, sentencepiece
from tests.measure.conftest import character_tokenizer
from tests.measure.slow import WORDS

DOCUMENTS = ["one two", "three", "four five six", "</s>seven</s>"]
BOS = WORDS.index("</s>")


@pytest.fixture
def beginning():
    """The tokenizer of one token a character that begins each text with </s>."""
    return with_bos(character_tokenizer(), "</s>")


def ids(text):
    """One token a character; </s> is one too."""
    return [WORDS.index(word) for part in text.split("</s>") for word in ["</s>", *part]][1:]


def slow_windows(text, context, placed):
    """Window by window, token by token."""
    left, found = ids(text), []
    if placed != "never" and left[0] == BOS:
        left.pop(0)
    if placed == "once":
        left.insert(0, BOS)
    while True:
        window = [BOS] if placed == "always" else []
        while left and len(window) < context:
            window.append(left.pop(0))
        if len(window) < context:
            return found
        found.append(window)


@pytest.mark.parametrize(
    "make", [lambda bos: byte_level("gpt-2", bos=bos), lambda bos: sentencepiece("first", bos=bos)]
)
@pytest.mark.parametrize("bos", [True, False])
def test_a_tokenizer_is_asked_whether_it_adds_a_bos(make, bos):
    found = make(bos)
    assert adds_bos(found) == bos and found.bos_token_id is not None
    assert place_bos(found, "auto") == ("always" if bos else "never")
    assert [place_bos(found, asked) for asked in ("always", "once", "never")] == ["always", "once", "never"]


def test_another_token_around_a_text_is_no_bos(tokenizer):
    begin, end = ("[UNK]", 0), ("</s>", BOS)
    for template in ("$A </s>", "[UNK] $A", "[UNK] $A </s>"):
        own = with_bos(character_tokenizer(), "</s>")
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(template, None, [begin, end])
        assert not adds_bos(own)
    assert tokenizer.bos_token_id is None and not adds_bos(tokenizer)


@pytest.mark.parametrize("context", [2, 3, 7, 16])
@pytest.mark.parametrize("placed", ["always", "once", "never"])
@pytest.mark.parametrize("documents", [DOCUMENTS, DOCUMENTS[::-1]])
def test_windows_are_those_of_a_slow_loop(documents, placed, context, beginning):
    found = token_windows(beginning, documents, context=context, windows=0, name="text", bos=placed)
    assert found.tolist() == slow_windows(SEPARATOR.join(documents), context, placed)
    assert found.dtype == torch.int64 and found.shape[1] == context
    assert not (placed != "never" and found[0, :2].tolist() == [BOS, BOS])


def test_by_default_the_tokenizer_decides_and_never_gives_what_a_plain_tokenizer_gives(tokenizer, beginning):
    def cut(by, **options):
        return token_windows(by, DOCUMENTS, context=6, windows=0, name="text", **options).tolist()

    assert cut(beginning) == cut(beginning, bos="always") != cut(beginning, bos="never")
    assert cut(tokenizer) == cut(tokenizer, bos="never") == cut(beginning, bos="never")


@pytest.mark.parametrize("used", [1, 20, 47, 60])
def test_later_windows_begin_with_it_and_hold_nothing_that_earlier_ones_hold(used, beginning):
    documents = ["abcdefgh" * 3, "ijkl" * 5, "mnop" * 6, "qrst" * 8, "uvwx" * 9]
    first = token_windows(beginning, documents, context=used, windows=1, name="text", bos="once")
    later = later_windows(beginning, documents, used_tokens=used, context=6, windows=2, name="text")
    assert later[:, 0].tolist() == [BOS, BOS] and BOS not in later[:, 1:]
    assert not set(first.flatten().tolist()) & set(later[:, 1:].flatten().tolist())


def test_perplexity_is_that_of_a_plain_computation_and_of_lm_eval(model, beginning):
    """lm-eval scores the text of each window behind one BOS; characters are tokens, bytes and here the only unit."""
    from lm_eval.api.metrics import weighted_perplexity
    from lm_eval.models.huggingface import HFLM

    windows = token_windows(beginning, DOCUMENTS[:3] * 4, context=16, windows=0, name="text")
    found = perplexity(model, windows, batch_tokens=48)
    with torch.no_grad():
        plain = [float(model(row[None], labels=row[None]).loss) for row in windows]
    assert found["loss_by_window"] == pytest.approx(plain, rel=1e-6)
    assert found["n_tokens"] == windows[:, 1:].numel() == 15 * len(windows)
    texts = ["".join(WORDS[i] for i in row[1:]) for row in windows]
    lm = HFLM(pretrained=model, tokenizer=beginning, batch_size=1, max_length=16, add_bos_token=False)
    scores = lm.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in texts], disable_tqdm=True)
    bytes_of = [(score, len(text.encode())) for score, text in zip(scores, texts, strict=True)]
    assert found["value"] == pytest.approx(weighted_perplexity(bytes_of), rel=1e-6)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("text", ["a question", "</s>a question"])
def test_tasks_begin_as_windows_do(begins, text, model, beginning):
    """Also where lm-eval, left to itself, would do as the tokenizer does."""
    tokens = ids("a question")
    plain = character_tokenizer()
    plain.add_special_tokens({"bos_token": "</s>"})
    for own in (beginning, plain):
        lm = language_model(model, own, 64, begins=begins)
        assert lm.tok_encode(text) == [BOS] * (begins or text.startswith("</s>")) + tokens


@pytest.mark.bad_input
def test_what_cannot_be_done_is_refused(tokenizer, beginning):
    def refused(match, by, **options):
        with pytest.raises(ConfigError, match=match) as refusal:
            token_windows(by, DOCUMENTS, **{"context": 6, "windows": 0, "name": "test text", **options})
        assert len(str(refusal.value).splitlines()) == 1

    for asked in ("always", "once"):
        refused(rf"^bos is '{asked}', but the tokenizer has no BOS token\. Give auto or never\.$", tokenizer, bos=asked)
    refused(r"^bos is 'allways': did you mean always", tokenizer, bos="allways")
    refused(r"^a context of 1 holds the BOS and nothing of the test text\. Give at least 2\.$", beginning, context=1)
    size = len(ids(SEPARATOR.join(DOCUMENTS)))
    refused(rf"has {size} tokens, {size // 5} windows of 6, with a BOS each: fewer than 99", beginning, windows=99)
    assert token_windows(tokenizer, DOCUMENTS, context=1, windows=0, name="text").shape == (size, 1)
