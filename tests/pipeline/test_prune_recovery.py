"""Recovery by `ffp prune` and `ffp.prune`: before and after, both shapes, a copy or the model itself, kills."""

from __future__ import annotations

import copy
import json
import shlex

import numpy as np
import pytest
import torch

import ffp
from ffp.cli import main
from ffp.core.errors import ConfigError
from ffp.store.files import sha256
from tests.helpers import tiny

RECOVER = {"tokens": 1280, "rank": 4, "batch_tokens": 128, "learning_rate": 0.02}
SMALL = {"calibration": {"windows": 4, "context": 64}, "evaluation": {"windows": 4, "context": 64}, "tokens": 0}
SIZES = ("--context", "64", "--calibration-tokens", "256", "--threads", "1")
WORDS = ("--recover", "lora", "--recover-tokens", "1280", "--recover-rank", "4",
         "--recover-param", "learning_rate=0.02", "--recover-param", "batch_tokens=128")  # fmt: skip


def prune(loaded, texts, **options):
    return ffp.prune(*loaded, sparsity=0.3, text=texts, **{**SMALL, "recover": RECOVER, **options})


def test_table_json_and_card_have_before_and_after(loaded, texts, tmp_path):
    plain = prune(copy.deepcopy(loaded), texts, recover="none")
    found = prune(loaded, texts)
    body = found.as_dict()
    assert found.model is loaded[0]
    assert body["recovery"]["perplexity_before"] == plain.as_dict()["pruned"]["perplexity"]
    assert body["pruned"]["perplexity"]["value"] < body["recovery"]["perplexity_before"]["value"]
    assert body["recovery"]["tokens"] == 3 * 1280 and len(body["recovery"]["curve"]) == 10
    assert body["keep"] == plain.as_dict()["keep"] and plain.as_dict()["recovery"] is None
    assert body["params"] == plain.as_dict()["params"]
    assert "recover" in found.seconds and "evaluate the recovered model" in found.seconds
    lines = found.summary().splitlines()
    assert lines[2].startswith("before recovery") and lines[2].endswith(
        "LoRA of rank 4, 1,280 tokens, fitted to the text"
    )
    assert "ridge compensation, then LoRA of rank 4" in found.summary()
    assert "before recovery" not in plain.summary()
    found.save(tmp_path / "small")
    card = (tmp_path / "small/README.md").read_text()
    assert f"Perplexity before it: {found.before['value']:.4g}" in card and "'rank': 4" in card
    ids = torch.arange(40)[None]
    torch.testing.assert_close(ffp.load_pruned(tmp_path / "small")(ids).logits, found.model(ids).logits)


def test_zeros_in_the_dense_shapes_stay_zeros_and_compute_the_same(loaded, texts):
    small, wide = prune(copy.deepcopy(loaded), texts), prune(loaded, texts, dense_shape=True)
    assert wide.model is loaded[0]
    down = [model.model.layers[1].mlp.down_proj.weight for model in (small.model, wide.model)]
    assert down[1].shape[1] == 64 > down[0].shape[1]
    assert (down[1] == 0).all(0).sum() == down[1].shape[1] - down[0].shape[1]
    ids = torch.arange(40)[None]
    torch.testing.assert_close(small.model(ids).logits, wide.model(ids).logits, rtol=1e-3, atol=1e-3)
    assert small.as_dict()["recovery"]["curve"] == wide.as_dict()["recovery"]["curve"]
    assert small.as_dict()["params"] == wide.as_dict()["params"]


@pytest.mark.parametrize("dense_shape", [False, True])
def test_the_dense_model_can_be_the_teacher(dense_shape, loaded, texts):
    settings = {"tokens": 6400, "rank": 4, "batch_tokens": 128, "learning_rate": 0.004, "loss": "kl"}
    found = prune(loaded, texts, recover=settings, dense_shape=dense_shape).as_dict()["recovery"]
    losses = [row["loss"] for row in found["curve"]]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) and found["tokens"] == 4 * 6400


def test_a_copy_leaves_the_model_as_it_was(loaded, texts):
    before = copy.deepcopy(loaded[0].state_dict())
    found = prune(loaded, texts, in_place=False, evaluate=False)
    assert found.as_dict()["recovery"]["perplexity_before"] is None
    assert all(torch.equal(value, before[name]) for name, value in loaded[0].state_dict().items())


def test_no_window_of_recovery_is_one_of_calibration(loaded, texts):
    from ffp.config.pruning import prune_settings
    from ffp.pipeline.texts import cut_recovery_windows, cut_windows, open_text

    settings = prune_settings(0.3, recover=RECOVER, **SMALL)
    text = open_text(texts, data=None)
    used = cut_windows(loaded[1], text, settings).calibration
    trained = cut_recovery_windows(loaded[1], text, settings)
    calibrated = loaded[1].decode(used.flatten())
    first = text.documents["calibration"]
    reached = [document for document in first if document[:100] in calibrated]
    assert reached and loaded[1].decode(trained.flatten()).startswith(first[len(reached)][:100])
    assert trained.shape == (20, 64)
    spans = {tuple(row[start : start + 24]) for row in used.tolist() for start in range(41)}
    assert not spans & {tuple(row[start : start + 24]) for row in trained.tolist() for start in range(41)}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recover": "lroa"}, r"recover.method = 'lroa': .*'lora'"),
        ({"recover": {"rank": 0}}, r"recover.rank = '0': .*greater than or equal to 1"),
        ({"recover": {"ranks": 4}}, r"unknown key 'recover.ranks': did you mean rank"),
        ({"recover": {"learning_rate": 3}}, r"recover.learning_rate = '3': .*less than 1"),
        ({"recover": {"loss": "mse"}}, r"recover.loss = 'mse'"),
        ({"granularity": "unstructured"}, "recovery serves structured pruning only; leave it out"),
        (
            {"calibration": {"windows": 5000, "context": 64}},
            r"no document of the calibration text \(given text\) is left",
        ),
    ],
)
def test_bad_input_is_refused_before_a_token_is_spent(options, message, loaded, texts, monkeypatch):
    monkeypatch.setattr(type(loaded[0].base_model), "forward", lambda *_, **__: pytest.fail("a token was spent"))
    with pytest.raises(ConfigError, match=message) as refusal:
        prune(loaded, texts, **options)
    assert len(str(refusal.value).splitlines()) == 1


def command(*words: str) -> int:
    return main(["prune", "tiny", "--sparsity", "0.3", "--text", "docs", "--tokens", "0", *SIZES, *words])


def test_the_command_prints_how_to_make_it_again(folder, capsys, hub_modules):
    assert command("--out", "small", *WORDS) == 0
    printed = capsys.readouterr().out
    assert "before recovery" in printed
    again = next(line.strip() for line in printed.splitlines() if line.strip().startswith("ffp prune tiny"))
    assert "--recover lora --recover-tokens 1280 --recover-rank 4" in again
    assert main([*shlex.split(again)[1:-1], "again"]) == 0
    assert sha256(folder / "again/model.safetensors") == sha256(folder / "small/model.safetensors")
    capsys.readouterr()
    assert command("--out", "figures", *WORDS, "--json", "--no-evaluate") == 0
    assert json.loads(capsys.readouterr().out)["recovery"]["tokens"] == 3 * 1280
    assert not list(folder.glob(".small*"))


def test_a_dry_run_counts_recovery(folder, capsys):
    counts = []
    for words in ((), WORDS, (*WORDS, "--recover-param", "loss=kl")):
        assert command("--out", "small", "--dry-run", *words) == 0
        printed = capsys.readouterr().out
        assert ("recovery    LoRA of rank 4, 1,280 tokens" in printed) == bool(words)
        counts.append(
            int(next(line for line in printed.splitlines() if "tokens, about" in line).split()[1].replace(",", ""))
        )
    tested = 3 * 128  # perplexity is measured once more
    assert np.diff(counts).tolist() == [3 * 1280 + tested, 1280]


@pytest.mark.fault
def test_a_killed_recovery_goes_on_and_ends_as_an_undisturbed_one(folder):
    options = [*WORDS, "--recover-tokens", "19200"]
    words = ["ffp.cli", "prune", "tiny", "--sparsity", "0.3", "--text", "docs", "--tokens", "0", *SIZES, *options]
    printed = tiny.kill_and_run_again(
        folder, words, lambda: bool(list(folder.glob(".small.work-*/recover.state.safetensors")))
    )
    assert "resuming: recovery after step" in printed


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recover-tokens", "100"), "--recover-tokens has no effect without recovery. Add --recover lora"),
        (("--recover-param", "alpha=3"), "--recover-param has no effect without recovery"),
        (("--recover", "lora", "--recover-param", "alpha"), "--recover-param 'alpha' is not NAME=VALUE"),
        (("--recover", "lora", "--recover-param", "alpa=3"), "unknown key 'recover.alpa': did you mean alpha"),
        (("--recover", "lora", "--offload"), "which offload keeps on the host. Leave one out"),
        (("--recover", "lora", "--calibration-tokens", "999936"), "is left for recovery"),
    ],
)
def test_bad_options_are_refused_in_one_line_before_the_search(words, message, folder, capsys, monkeypatch):
    monkeypatch.setattr(ffp.api, "calibrate", lambda *_, **__: pytest.fail("a token was spent"))
    assert command("--out", "small", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert not (folder / "small").exists()
