"""Calibration moments and unit scores against slow loops over stored activations."""

import numpy as np
import pytest
import torch

from ffp.core.errors import ArtifactError
from ffp.measure.calibration import collect
from ffp.models.prunable import PrunableModel
from ffp.pruning.moments import InputSums, add_product
from ffp.pruning.statistics import ModelStatistics
from tests.helpers.families import tiny, tokens


def stored_inputs(model, path, windows):
    kept = []
    hook = model.get_submodule(path).register_forward_pre_hook(
        lambda m, a: kept.append(a[0].reshape(-1, a[0].shape[-1]))
    )
    with torch.no_grad():
        for window in windows:
            model(window[None])
    hook.remove()
    return torch.cat(kept).numpy()


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_moments_equal_those_of_stored_activations(family):
    model, windows = tiny(family), tokens(5)
    prunable = PrunableModel(model)
    moments = collect(prunable, windows, batch_tokens=40).moments
    assert len(moments) == 3 * len(prunable.linears(0))
    for path, found in moments.items():
        x = stored_inputs(model, path, windows)
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.sq_mean, (x**2).mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.variance, x.var(0), rtol=1e-3, atol=1e-5)


def test_unit_order_by_wanda_equals_a_loop_over_heads_and_channels():
    model = tiny("llama")
    prunable = PrunableModel(model)
    orders = collect(prunable, tokens(4), batch_tokens=80).unit_orders("wanda")
    x = stored_inputs(model, "model.layers.1.self_attn.o_proj", tokens(4))
    weight = model.model.layers[1].self_attn.o_proj.weight.numpy()
    scores = [
        sum(np.abs(weight[:, j]).mean() * np.linalg.norm(x[:, j]) for j in range(g * 24, g * 24 + 24)) for g in range(2)
    ]
    assert list(orders["block01.attention"]) == list(np.argsort(scores)[::-1])
    x = stored_inputs(model, "model.layers.2.mlp.down_proj", tokens(4))
    weight = model.model.layers[2].mlp.down_proj.weight.numpy()
    channels = [np.abs(weight[:, j]).mean() * np.linalg.norm(x[:, j]) for j in range(40)]
    assert list(orders["block02.ffn"]) == list(np.argsort(channels)[::-1])


def test_statistics_survive_as_arrays_and_those_of_another_model_are_refused():
    prunable = PrunableModel(tiny("llama"))
    stats = collect(prunable, tokens(2), batch_tokens=40)
    again = ModelStatistics.from_arrays(prunable, stats.to_arrays(), stats.n_tokens, source="x")
    assert again.n_tokens == 40
    assert again.sq_means.keys() == stats.sq_means.keys()
    assert (again.block_influence() == stats.block_influence()).all()
    with pytest.raises(ArtifactError, match=r"stats.safetensors has no statistics of .*Calibrate this model"):
        ModelStatistics.from_arrays(PrunableModel(tiny("opt")), stats.to_arrays(), 40, source="stats.safetensors")
    older = {name: array for name, array in stats.to_arrays().items() if name != "block_influence"}
    with pytest.raises(ArtifactError, match="holds no influence of blocks"):
        ModelStatistics.from_arrays(prunable, older, 40, source="x").block_influence()


def test_running_sums_equal_those_of_all_inputs_at_once():
    batches = [torch.randn(n, 300, generator=torch.Generator().manual_seed(n)) for n in (70, 200)]
    sums, small = InputSums("mean", "sq_mean", "gram"), InputSums("sq_mean", square_rows=64)
    for batch in batches:
        sums.add(batch)
        small.add(batch)
    x = torch.cat(batches).double()
    found = {"mean": sums.mean, "square": sums.sq_mean, "parts": small.sq_mean, "gram": sums.gram}
    expected = {"mean": x.mean(0), "square": (x**2).mean(0), "parts": (x**2).mean(0), "gram": x.T @ x / 270}
    for name, value in found.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    total = torch.zeros(300, 300, dtype=torch.float64)
    add_product(total, batches[0], batches[0], columns=128)
    torch.testing.assert_close(total, batches[0].double().T @ batches[0].double(), rtol=1e-4, atol=1e-4)
