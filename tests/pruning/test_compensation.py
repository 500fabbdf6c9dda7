"""Compensation against least squares on stacked data, and against the stream it must have seen."""

import copy

import numpy as np
import pytest
import torch

from ffp.core import projection
from ffp.core.errors import ConfigError
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from ffp.models.stream import BlockStream
from ffp.pruning.compensation import compensate, load_updates, ridge_weight, scaled_outputs
from tests.helpers.families import CONFIGS, tiny, tokens


def random_kept(prunable, seed=0, target=0.4):
    problem = prunable.problem(target)
    generator = np.random.default_rng(seed)
    keep = projection.project(problem, generator.normal(size=len(problem.decisions))).keep
    return {
        u.name: np.sort(generator.permutation(u.n_units)[:k]).astype(np.int32)
        for u, k in zip(problem.decisions, keep, strict=True)
    }


def compensated(prunable, kept, updates):
    """The prunable's model, cut and updated."""
    cut(prunable, kept)
    load_updates(prunable, {name: value.numpy() for name, value in updates.items()})
    return prunable.model


def inputs_of(model, path, windows):
    seen = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten(0, -2)))
    with torch.no_grad():
        model(windows)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("same_stream", [True, False])
def test_ridge_equals_least_squares_on_stacked_data(same_stream):
    torch.manual_seed(0)
    x, weight = torch.randn(300, 24) @ torch.randn(24, 24), torch.randn(10, 24)
    goal = x if same_stream else x + 0.1 * torch.randn(300, 24)
    columns = torch.tensor([0, 3, 4, 9, 10, 11, 17, 20])
    k, w = x[:, columns].double(), weight.double()
    missing = goal.double() @ w.T - k @ w[:, columns].T
    found = ridge_weight(torch.triu(k.T @ k), k.T @ missing, w, columns, 0.05)
    alpha = 0.05 * (k**2).sum(0).mean()
    left = torch.cat([k, alpha.sqrt() * torch.eye(8, dtype=torch.float64)])
    right = torch.cat([goal.double() @ w.T, alpha.sqrt() * w[:, columns].T])
    expected = torch.linalg.lstsq(left, right).solution.T
    assert torch.linalg.norm(found - expected) / torch.linalg.norm(expected) < 1e-4
    if same_stream:
        removed = torch.tensor([i for i in range(24) if i not in columns])
        solved = torch.linalg.solve(k.T @ k + alpha * torch.eye(8, dtype=torch.float64), k.T @ x[:, removed].double())
        torch.testing.assert_close(found, w[:, columns] + w[:, removed] @ solved.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_stream_equals_the_whole_model(family):
    model, windows = tiny(family), tokens(5)
    stream = BlockStream(PrunableModel(model), windows, batch_tokens=40)
    for block in range(3):
        stream.advance(block)
    with torch.no_grad():
        last = model.base_model(input_ids=windows)
    (norm,) = [m for name, m in model.named_modules() if name.endswith("norm") and ".layers." not in name]
    with torch.no_grad():
        final = norm(torch.cat(stream.hidden))
    torch.testing.assert_close(final, last.last_hidden_state, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["bias", "ridge", "ridge-dense"])
@pytest.mark.parametrize("family", ["llama", "phi3", "opt", "gpt_neox"])
def test_updates_reproduce_the_compensated_stream(family, kind, monkeypatch):
    """Cut and updated, the model's hidden states are those at the end of the compensation's own stream."""
    model, windows = tiny(family), tokens(6)
    prunable = PrunableModel(model)
    kept = random_kept(prunable)
    before = [parameter.clone() for parameter in model.parameters()]
    streams = []
    monkeypatch.setattr(
        "ffp.pruning.compensation.BlockStream", lambda *a, **k: streams.append(BlockStream(*a, **k)) or streams[0]
    )
    updates = compensate(prunable, kept, windows, kind=kind, batch_tokens=40, ridge=0.01)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    pruned = compensated(prunable, kept, updates)
    again = BlockStream(PrunableModel(pruned), windows, batch_tokens=40)
    for block in range(3):
        again.advance(block)
    torch.testing.assert_close(torch.cat(streams[0].hidden), torch.cat(again.hidden), rtol=1e-6, atol=1e-6)


def test_ridge_sees_the_stream_that_is_pruned_so_far():
    """The last FFN's weights equal a ridge on activations of a model whose earlier modules are compensated."""
    model, windows = tiny("llama"), tokens(6)
    prunable = PrunableModel(model)
    kept = random_kept(prunable)
    whole = {**kept, "block02.ffn": np.arange(40)}
    half = PrunableModel(tiny("llama"))
    earlier = compensate(half, whole, windows, kind="ridge", batch_tokens=40, ridge=0.01)
    updates = compensate(prunable, kept, windows, kind="ridge", batch_tokens=40, ridge=0.01)
    path = "model.layers.2.mlp.down_proj"
    x = inputs_of(compensated(half, whole, earlier), path, windows)
    columns = torch.from_numpy(kept["block02.ffn"]).long()
    weight = tiny("llama").get_submodule(path).weight
    k, missing = x[:, columns], x @ weight.T - x[:, columns] @ weight[:, columns].T
    expected = ridge_weight(k.T @ k, k.T @ missing, weight, columns, 0.01)
    torch.testing.assert_close(updates[f"{path}.weight"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["bias", "ridge", "ridge-dense"])
def test_modules_that_lose_nothing_keep_their_weights_unless_they_mend_earlier_errors(kind):
    prunable = PrunableModel(tiny("llama"))
    kept = {**random_kept(prunable), "block01.attention": np.arange(4), "block02.ffn": np.arange(40)}
    kept = {u.name: kept[u.name][: u.n_units] for u in prunable.problem(0.4).decisions}
    updates = compensate(prunable, kept, tokens(6), kind=kind, batch_tokens=40)
    whole = {"model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj"}
    changed = {name.rpartition(".")[0] for name in updates}
    assert len(changed) == 6 - (0 if kind == "ridge-dense" else 2)
    assert bool(whole & changed) == (kind == "ridge-dense")


def test_a_bias_beside_scaled_weights_is_that_of_a_model_whose_kept_columns_were_scaled_before():
    prunable, other = PrunableModel(tiny("llama")), PrunableModel(tiny("llama"))
    kept = {**random_kept(prunable), "block01.ffn": np.arange(40)}
    generator = np.random.default_rng(1)
    scales = {name: generator.uniform(0.5, 1.5, len(index)).astype(np.float32) for name, index in kept.items()}
    scaled = scaled_outputs(prunable, kept, scales)
    for module in other.modules:
        width = module.output_width
        for index, scale in zip(kept[module.decision.name], scales[module.decision.name], strict=True):
            other.linear(module.output).weight.data[:, index * width : (index + 1) * width] *= float(scale)
    expected = compensate(other, kept, tokens(6), kind="bias", batch_tokens=40)
    found = compensate(prunable, kept, tokens(6), kind="bias", batch_tokens=40, scaled=scaled)
    losing = [module for module in prunable.modules if len(kept[module.decision.name]) < module.n_indices]
    assert len(scaled) == 6 > len(expected) == len(losing) > 0
    assert found.keys() == expected.keys() | scaled.keys()
    for name, value in {**scaled, **expected}.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_compensation_lowers_the_error_of_the_first_module_it_touches():
    windows = tokens(6)
    path = "model.layers.0.self_attn.o_proj"
    kept = {**random_kept(PrunableModel(tiny("llama"))), "block00.attention": np.array([1])}
    dense = tiny("llama")
    goal = inputs_of(dense, path, windows) @ dense.get_submodule(path).weight.T + dense.get_submodule(path).bias
    errors = {}
    for kind in ("none", "bias", "ridge"):
        prunable = PrunableModel(tiny("llama"))
        updates = {} if kind == "none" else compensate(prunable, kept, windows, kind=kind, batch_tokens=40)
        model = compensated(prunable, kept, updates)
        linear = model.get_submodule(path)
        errors[kind] = torch.linalg.norm(inputs_of(model, path, windows) @ linear.weight.T + linear.bias - goal).item()
    assert errors["ridge"] < errors["none"]
    assert errors["bias"] < errors["none"]


@pytest.mark.parametrize(("units", "name", "kept"), [
    ({"align": 8}, "block02.ffn", 5),  # as many channels as there are bundles of 8
    ({"attention_units": "query-heads"}, "block01.attention", 3),  # as many heads as a KV group has
])  # fmt: skip
def test_a_module_is_whole_only_with_all_of_its_channels_or_heads(units, name, kept):
    prunable = PrunableModel(tiny("llama"), **units)
    whole = {module.decision.name: np.arange(module.n_indices) for module in prunable.modules}
    one = next(module for module in prunable.modules if module.decision.name == name)
    assert kept == one.decision.n_units < one.n_indices
    updates = compensate(prunable, {**whole, name: np.arange(kept)}, tokens(6), kind="ridge", batch_tokens=40)
    assert list(updates) == [f"{one.output}.weight"]


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["bias", "ridge", "ridge-dense"])
def test_numbers_of_the_pruned_stream_that_overflow_are_one_line(kind):
    prunable = PrunableModel(tiny("llama").half())
    blocks = [copy.deepcopy(block.state_dict()) for block in prunable.blocks]
    for name in ("up_proj", "gate_proj"):  # in block 1, so that block 0 is compensated before
        prunable.linear(f"model.layers.1.mlp.{name}").weight.data.mul_(3e3)
    kept = {m.decision.name: range(max(1, m.n_indices - 3)) for m in prunable.modules}
    line = r"^numbers of the pruned model overflow in float16 at model\.layers\.1\.mlp\.down_proj, so that .*Use dtype"
    with pytest.raises(ConfigError, match=line):
        compensate(prunable, kept, tokens(4), kind=kind, batch_tokens=40)
    for block, before in zip(prunable.blocks[::2], blocks[::2], strict=True):
        assert all(torch.equal(block.state_dict()[name], tensor) for name, tensor in before.items())
