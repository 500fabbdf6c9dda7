"""`ffp.prune` and `ffp prune` on a tokenizer that adds a BOS: every text, every figure, and what is refused."""

from __future__ import annotations

import json
import shlex

import pytest
import torch

import ffp
from ffp.cli import main
from ffp.config.pruning import prune_settings
from ffp.core.errors import AssetError, ConfigError
from ffp.measure.windows import token_windows
from ffp.pipeline.prune import cut_text
from ffp.pipeline.texts import open_text
from ffp.store.files import sha256
from tests.helpers import tiny
from tests.pipeline.test_prune import SMALL
from tests.pipeline.test_prune_command import prune, refused

SEARCH = {"method": "random-search", "recover": {"method": "lora", "tokens": 1280}}
EOS = 1  # of the tiny model; the BOS of its tokenizer here


@pytest.fixture
def beginning(loaded):
    """The tiny model with a tokenizer that adds a BOS."""
    model, tokenizer = loaded
    return model, tiny.with_bos(tokenizer)


def windows_of(prunable, tokenizer, texts, bos):
    """Windows of all texts by name."""
    text, settings = open_text(texts, data=None), prune_settings(0.3, bos=bos, **SEARCH, **SMALL)
    cut = cut_text(prunable, tokenizer, text, settings, evaluate=True)
    windows, test, recovery = cut.fitted, cut.test, cut.training
    return {**dict(windows.items()), "test": test, "recovery": recovery}


def test_all_texts_begin_alike(beginning, texts):
    from ffp.models.prunable import PrunableModel

    prunable = PrunableModel(beginning[0])
    auto, never, once = (windows_of(prunable, beginning[1], texts, bos) for bos in ("auto", "never", "once"))
    assert set(auto) == {"calibration", "search", "selection", "test", "recovery"}
    for name, ids in auto.items():
        assert (ids[:, 0] == EOS).all() and not (ids[:, 1:] == EOS).any(), name
        assert not (never[name] == EOS).any() and once[name].flatten().tolist().count(EOS) == 1 == once[name][0, 0]
        assert ids.shape == never[name].shape == once[name].shape
        if name != "recovery":  # which begins where calibration stopped
            assert ids[0, 1:].tolist() == never[name][0, :-1].tolist() == once[name][0, 1:].tolist()


def test_the_figures_are_those_of_such_windows_and_say_so(beginning, texts, tmp_path):
    model, tokenizer = beginning
    documents = open_text(texts, data=None).documents["test"]
    windows = token_windows(tokenizer, documents, context=64, windows=4, name="test")
    with torch.no_grad():
        plain = [float(model(row[None], labels=row[None]).loss) for row in windows]
    pruned = ffp.prune(model, tokenizer, sparsity=0.3, text=texts, tokens=0, **SMALL)
    assert pruned.dense.ppl["loss_by_window"] == pytest.approx(plain, rel=1e-6)
    assert pruned.dense.ppl["n_tokens"] == 4 * 63
    assert pruned.bos == pruned.dense.ppl["bos"] == pruned.pruned.ppl["bos"] == "always"
    assert "252 test tokens, a BOS in each window" in pruned.summary()
    figures = pruned.as_dict()
    assert figures["bos"] == figures["pruned"]["perplexity"]["bos"] == "always"
    card = (pruned.save(tmp_path / "small") / "README.md").read_text()
    assert "| perplexity, 252 tokens, a BOS in each window |" in card and "bos='always'" in card
    assert ", a BOS in each window." in next(line for line in card.splitlines() if line.startswith("- Calibration"))


def test_never_gives_what_a_tokenizer_without_one_gives(loaded, texts):
    from copy import deepcopy

    found = []
    for tokenizer, options in (
        (deepcopy(loaded[1]), {}), (tiny.with_bos(deepcopy(loaded[1])), {"bos": "never"}),
        (tiny.with_bos(deepcopy(loaded[1])), {}),
    ):  # fmt: skip
        pruned = ffp.prune(
            loaded[0], tokenizer, sparsity=0.3, text=texts, method="owl", in_place=False, **options, **SMALL
        )
        found.append((pruned.allocation.keep, pruned.dense.ppl, pruned.pruned.ppl))
    assert found[0] == found[1] and found[0][1]["value"] != found[2][1]["value"]


@pytest.mark.bad_input
def test_what_does_not_fit_is_refused_before_a_token_is_spent(loaded, texts, monkeypatch):
    monkeypatch.setattr(type(loaded[0].base_model), "forward", lambda *_, **__: pytest.fail("a token was spent"))
    model, tokenizer = loaded

    def refuses(error, match, **options):
        with pytest.raises(error, match=match) as refusal:
            ffp.prune(model, tokenizer, sparsity=0.3, text=texts, tokens=0, **{**SMALL, **options})
        assert len(str(refusal.value).splitlines()) == 1

    refuses(ConfigError, "^bos is 'always', but the tokenizer has no BOS token", bos="always")
    refuses(ConfigError, "^bos = 'yes'", bos="yes")
    tiny.with_bos(tokenizer)
    evaluation = {"context": 129, "windows": 1}  # one more than there are positions, the BOS included
    refuses(ConfigError, "the context of the test text = 129 exceeds the 128 positions", evaluation=evaluation)
    tiny.with_bos(tokenizer, "<new>")
    refuses(AssetError, "^the calibration text has the token id 400, but the model's embedding ends at 399")
    refuses(AssetError, "^the calibration text has the token id 400", bos="once")


def test_the_command_says_and_repeats_it(folder, capsys, hub_modules):
    from transformers import AutoTokenizer

    assert prune("source", "--out", "plain", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["bos"] == plain["dense"]["perplexity"]["bos"] == "never"
    assert "has no BOS token" in refused(capsys, "source", "--bos", "always")
    tiny.with_bos(AutoTokenizer.from_pretrained("source")).save_pretrained("source")
    assert prune("source", "--out", "small", "--dry-run") == 0
    assert "docs.jsonl, a BOS in each window\n" in capsys.readouterr().out
    assert prune("source", "--out", "small", "--bos", "once") == 0
    printed = capsys.readouterr().out
    assert "test tokens, a BOS at the start of the text" in printed
    again = next(line.strip() for line in printed.splitlines() if line.strip().startswith("ffp prune source"))
    assert " --bos once " in again
    assert main([*shlex.split(again)[1:-1], "again"]) == 0
    assert sha256(folder / "again/model.safetensors") == sha256(folder / "small/model.safetensors")
    capsys.readouterr()
    assert prune("source", "--out", "never", "--json", "--bos", "never") == 0
    figures = json.loads(capsys.readouterr().out)
    assert [figures[key] for key in ("bos", "keep")] == [plain[key] for key in ("bos", "keep")]
    assert figures["pruned"]["perplexity"] == plain["pruned"]["perplexity"]
