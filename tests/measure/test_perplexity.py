"""Perplexity against full logits, windows against a plain cut."""

import math

import numpy as np
import pytest
import torch

from ffp.core.errors import ConfigError, FfpError
from ffp.measure.perplexity import perplexity
from ffp.measure.windows import SEPARATOR, first_free, later_windows, token_windows
from tests.measure.slow import WORDS, slow_losses


@pytest.mark.parametrize("batch_tokens", [1, 25, 1000])
def test_perplexity_equals_a_loop_over_full_logits(model, batch_tokens):
    windows = torch.randint(len(WORDS), (5, 12), generator=torch.Generator().manual_seed(1))
    losses = slow_losses(model, windows)
    found = perplexity(model, windows, batch_tokens=batch_tokens)
    assert found["value"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert found["stderr"] == pytest.approx(math.exp(losses.mean()) * losses.mean(1).std(ddof=1) / 5**0.5, rel=1e-4)
    assert found["loss_by_window"] == pytest.approx(list(losses.mean(1)), rel=1e-5)
    assert (found["n_windows"], found["context"], found["n_tokens"]) == (5, 12, 55)


def test_stderr_equals_the_spread_of_resampled_windows(model):
    windows = torch.randint(len(WORDS), (150, 8), generator=torch.Generator().manual_seed(2))
    found = perplexity(model, windows, batch_tokens=400)
    draws = np.random.default_rng(0).integers(0, 150, (4000, 150))
    assert found["stderr"] == pytest.approx(np.exp(np.array(found["loss_by_window"])[draws].mean(1)).std(), rel=0.08)


def test_one_window_has_no_error_and_half_precision_keeps_float32_losses(model):
    windows = torch.randint(len(WORDS), (1, 40), generator=torch.Generator().manual_seed(3))
    full = perplexity(model, windows, batch_tokens=40)
    assert full["stderr"] is None
    half = perplexity(model.to(torch.bfloat16), windows, batch_tokens=40)
    assert half["value"] == pytest.approx(full["value"], rel=0.05)
    # A bfloat16 loss near 5 would be a multiple of 1/32.
    assert abs(half["loss_by_window"][0] * 32 - round(half["loss_by_window"][0] * 32)) > 1e-6


def test_an_overflow_is_an_error_that_names_the_remedy(model):
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(FfpError, match=r"mean loss on 2 windows is nan .* overflow in float32\. Use dtype"):
        perplexity(model, torch.zeros((2, 8), dtype=torch.int64), batch_tokens=8)


def test_a_window_of_one_token_is_refused_and_no_fault_of_the_model(model):
    with pytest.raises(ConfigError, match=r"^nothing is predicted in a window of 1 token\. Give windows of at least 2"):
        perplexity(model, torch.zeros((2, 1), dtype=torch.int64), batch_tokens=8)
    assert perplexity(model, torch.zeros((2, 2), dtype=torch.int64), batch_tokens=8)["n_tokens"] == 2


def test_windows_are_consecutive_cuts_of_the_joined_documents(tokenizer):
    documents = ["one two", "three", "four five six"]
    text = "\n\n".join(documents)
    found = token_windows(tokenizer, documents, context=6, windows=0, name="test text")
    cuts = [text[i : i + 6] for i in range(0, len(text) - 5, 6)]
    assert ["".join(WORDS[i] for i in row) for row in found.tolist()] == cuts
    assert token_windows(tokenizer, documents, context=6, windows=2, name="test text").tolist() == found[:2].tolist()


@pytest.mark.parametrize("used", [1, 5, 20, 47, 48, 49, 60, 90])
def test_later_windows_hold_nothing_of_documents_that_the_first_tokens_reach(tokenizer, used):
    """One token a character, so that what is reached is known exactly."""
    documents = ["abcdefgh" * 3, "ijkl" * 5, "mnop" * 6, "qrst" * 8, "uvwx" * 9]
    reached = [n for n in range(5) if len(SEPARATOR.join(documents[:n])) + (2 if n else 0) < used]
    free = first_free(tokenizer, documents, used)
    assert max(reached) < free <= max(reached) + 2
    if free < 5:
        found = later_windows(tokenizer, documents, used_tokens=used, context=6, windows=2, name="text")
        assert "".join(WORDS[i] for i in found.flatten()) == SEPARATOR.join(documents[free:])[:12]


def test_a_text_that_calibration_uses_up_is_refused(tokenizer):
    with pytest.raises(
        ConfigError, match=r"no document of the text is left for recovery: calibration takes 20 tokens of"
    ):
        later_windows(tokenizer, ["abc", "defghi" * 3], used_tokens=20, context=4, windows=1, name="text")
    with pytest.raises(ConfigError, match=r"the text behind the first 5 tokens has 3 tokens, 0 windows of 4"):
        later_windows(tokenizer, ["abcdefgh" * 3, "abc"], used_tokens=5, context=4, windows=1, name="text")


@pytest.mark.parametrize(
    ("context", "windows", "message"),
    [
        (4, 9, r"the test text has 13 tokens, 3 windows of 4: fewer than 9 windows\. Lower .* longer text\."),
        (50, 0, r"the test text has 13 tokens, 0 windows of 50: fewer than one window\. Lower"),
    ],
)
def test_an_error_on_a_short_text_names_its_size(tokenizer, context, windows, message):
    with pytest.raises(ConfigError, match=message):
        token_windows(tokenizer, ["abc def", "ghij"], context=context, windows=windows, name="test text")
