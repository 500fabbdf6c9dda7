"""The references' outputs: counts and units equal, masks to 1 in 10,000, from the library and from the command line."""

import json

import numpy as np
import pytest
import torch

from ffp.models.prunable import PrunableModel
from tests.helpers.reference import DATA, build
from tests.parity import __main__ as command
from tests.parity import compare
from tests.parity.settings import Settings

GOLDEN = json.loads((DATA / "golden.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("reference")
    model, tokens = build()
    model.save_pretrained(place / "model")
    np.save(place / "tokens.npy", tokens.numpy())
    return place


def test_the_rebuilt_model_is_the_references_one():
    model, tokens = build()
    logits = model(tokens[:1]).logits[0]
    expected = GOLDEN["dense_logits_sequence0"]
    torch.testing.assert_close(logits[0, :4], torch.tensor(expected["first_position_first4"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[-1, :4], torch.tensor(expected["last_position_first4"]), rtol=1e-4, atol=1e-4)
    assert float(logits.double().abs().sum()) == pytest.approx(expected["sum_abs_float64"], rel=1e-5)


@pytest.mark.parametrize("method", ["wanda", "owl"])
def test_masks_of_single_weights(method):
    model, tokens = build()
    settings = Settings(method, 0.6)
    result = compare.run(PrunableModel(model), tokens, settings)
    assert result.kept["masks"] == GOLDEN[method][0]["masks"]
    assert compare.check(result, DATA / "golden.json", settings)["equal"]
    found = compare.check(result, DATA / f"{method}_0.6_keep.npz", settings)
    assert found["differing"] <= 1e-4 * found["entries"]
    for path in PrunableModel(model).decision_names("unstructured"):
        zeros = int((model.get_submodule(path).weight == 0).sum())
        counts = GOLDEN[method][0]["masks"][f"{path}.weight"]
        assert zeros == counts["numel"] - counts["kept"]


def test_kept_units_of_flap():
    model, tokens = build()
    found = compare.run(PrunableModel(model), tokens, Settings("flap", 0.3)).kept
    expected = GOLDEN["flap"][0]
    assert {key: found[key] for key in found} == {key: expected[key] for key in found}


def test_the_command_compares_with_both_kinds_of_file(folder, capsys):
    words = ["--model-dir", str(folder / "model"), "--tokens", str(folder / "tokens.npy")]
    for method, sparsity, reference in (("owl", "0.6", "owl_0.6_keep.npz"), ("flap", "0.3", "golden.json")):
        out = folder / method
        options = ["--method", method, "--sparsity", sparsity, "--reference", str(DATA / reference), "--out", str(out)]
        assert command.main([*words, *options]) == 0
        assert json.loads((out / "parity.json").read_text())["comparison"]["reference"] == reference
    with np.load(folder / "owl" / "masks.npz") as masks:
        assert len(masks.files) == 21
    wrong = ["--method", "wanda", "--sparsity", "0.6", "--reference", str(DATA / "owl_0.6_keep.npz")]
    assert command.main([*words, *wrong, "--out", str(folder / "wrong")]) == 1
    assert "keeps 26368 weights, owl_0.6_keep.npz keeps 20992" in capsys.readouterr().err


def slow_variance(x):
    """The reference's recurrence, channel by channel and window by window."""
    mean, variance = np.zeros(x.shape[2]), np.zeros(x.shape[2])
    for n, window in enumerate(x):
        mean = mean * n / (n + 1) + window.mean(0) / (n + 1)
        if n:
            variance = variance * (n - 1) / n + ((window - mean) ** 2).sum(0) / (n + 1)
    return variance


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
def test_metrics_of_flap_equal_their_definitions(metric):
    from tests.parity.flap import Fluctuation

    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(5, 7, 6)) + 1, generator.normal(size=(4, 6))
    statistics = Fluctuation(6)
    for window in x:
        statistics.add(torch.from_numpy(window))
    norm = np.sqrt((x**2).sum((0, 1)) / 5)
    expected = {
        "IFV": slow_variance(x),
        "WIFV": slow_variance(x) * (weight**2).sum(0),
        "WIFN": (np.abs(weight) * norm).mean(0),
    }[metric]
    np.testing.assert_allclose(statistics.metric(metric, torch.from_numpy(weight)).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("structure", ["AL-MM", "UL-MM", "UL-UM"])
def test_other_structures_of_flap_remove_what_their_quotas_say(structure):
    model, tokens = build()
    found = compare.run(PrunableModel(model), tokens, Settings("flap", 0.3, structure=structure, remove_heads=3)).kept
    gone_heads, gone = 6 - sum(map(len, found["heads_kept"])), 3 * 704 - sum(found["ffn_kept_count"])
    block = 704 * 256 * 3 + 256 * 256 * 4
    if structure == "AL-MM":
        assert (gone_heads, gone) == (3, int((3 * 0.3 * block - 3 * 4 * 256 * 128) / 768))
    elif structure == "UL-MM":
        assert (gone_heads, gone) == (3, 3 * int((0.3 * block - 4 * 256 * 128) / 768))
        assert len(set(found["ffn_kept_count"])) == 1
    else:
        assert (gone_heads, gone) == (0, 3 * int(704 * 0.3))


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_n_of_m_removes_n_of_every_m(method):
    model, tokens = build()
    compare.run(PrunableModel(model), tokens[:4], Settings(method, 0.5, prune_n=2, prune_m=4))
    for path in PrunableModel(model).decision_names("unstructured"):
        zeros = (model.get_submodule(path).weight == 0).view(-1, 4).sum(1)
        assert bool((zeros == 2).all())


def test_refusals(folder, capsys):
    words = ["--model-dir", str(folder / "model"), "--out", str(folder / "x"), "--sparsity", "0.5"]
    (folder / "bad.npy").write_bytes(b"no array")
    assert command.main([*words, "--method", "wanda", "--tokens", str(folder / "bad.npy")]) == 3
    assert "bad.npy cannot be read" in capsys.readouterr().err
    tokens = ["--tokens", str(folder / "tokens.npy")]
    assert command.main([*words, *tokens, "--method", "flap", "--reference", str(DATA / "golden.json")]) == 2
    assert "has no result of flap with these settings" in capsys.readouterr().err
    assert command.main([*words, *tokens, "--method", "flap", "--structure", "AL-MM", "--remove-heads", "6"]) == 0
