"""Training after pruning: against plain loops, from any interruption, in every family and precision."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from ffp import api
from ffp.config.recover import RecoverSettings
from ffp.core.errors import ArtifactError, ConfigError, FfpError
from ffp.measure.loss import last_hidden, token_divergences, window_losses
from ffp.measure.recovery import SAVE_EVERY, rise_and_fall, window_order
from ffp.models.adapters import Adapters
from ffp.models.placement import offload
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut, mask
from ffp.pruning.compensation import load_updates, spread_updates
from tests.helpers.families import tiny, tokens

FAMILIES = [  # all forms of linears
    "llama",
    "phi3",
    "opt",
    "gpt_neox",
    *(pytest.param(name, marks=pytest.mark.long) for name in ("qwen3", "gemma2", "cohere2", "olmo2")),
]
SETTINGS = RecoverSettings(tokens=20 * 64, rank=4, alpha=8, learning_rate=0.02, batch_tokens=40)


def pruned(family: str = "llama", dtype: torch.dtype = torch.float32) -> PrunableModel:
    """A tiny model that lost units of its second block."""
    prunable = PrunableModel(tiny(family).to(dtype))
    cut(prunable, kept_of(prunable))
    return prunable


def kept_of(prunable: PrunableModel) -> dict[str, list[int]]:
    """All units but the first of the second block's modules, if they have another."""
    return {m.decision.name: list(range(int(m.block == 1 and m.n_indices > 1), m.n_indices)) for m in prunable.modules}


def recover(prunable, windows=None, settings=SETTINGS, **options):
    windows = tokens(16) if windows is None else windows
    return api.recover(prunable, windows, settings, **{"seed": 3, "batch_tokens": 40, **options})


def modules(model):
    return {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_and_nothing_of_peft_stays(family):
    prunable = pruned(family)
    before, shapes = modules(prunable.model), {n: p.shape for n, p in prunable.model.named_parameters()}
    windows = tokens(16)
    losses = [float(window_losses(prunable.model, windows, batch_tokens=400).mean())]
    found = recover(prunable, windows)
    losses.append(float(window_losses(prunable.model, windows, batch_tokens=400).mean()))
    assert losses[1] < losses[0] - 0.05
    assert found.curve[0]["loss"] > found.curve[-1]["loss"]
    assert modules(prunable.model) == before
    assert {n: p.shape for n, p in prunable.model.named_parameters()} == shapes
    assert not any(p.requires_grad for p in prunable.model.parameters())
    assert found.updates.keys() == {f"{path}.weight" for path in prunable.decision_names("structured")}


def test_the_updates_are_the_new_weights_and_all_others_stay():
    prunable, before = pruned(), pruned()
    found = recover(prunable)
    old, new = before.model.state_dict(), prunable.model.state_dict()
    for name, value in new.items():
        if name in found.updates:
            assert np.array_equal(found.updates[name], value.numpy()) and not torch.equal(value, old[name])
        else:
            assert torch.equal(value, old[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_of_which_nothing_is_left_are_passed_over(family):
    prunable = PrunableModel(tiny(family).float(), min_keep=0)
    cut(prunable, {m.decision.name: [] if m.block == 1 else list(range(m.n_indices)) for m in prunable.modules})
    found = recover(prunable)
    assert found.curve[0]["loss"] > found.curve[-1]["loss"]
    assert found.updates and all(array.size for array in found.updates.values())


def test_kv_heads_that_query_heads_share_unequally_are_not_trained():
    prunable = PrunableModel(tiny("llama").float(), attention_units="single-query-heads")
    heads = iter(([0, 1, 2, 3], range(6), [0, 1, 3, 4]))
    cut(prunable, {m.decision.name: next(heads) if m.kind == "attention" else range(40) for m in prunable.modules})
    found = recover(prunable)
    assert found.curve[0]["loss"] > found.curve[-1]["loss"]
    names = {f"model.layers.{block}.self_attn.{kv}_proj.weight" for block in range(3) for kv in "kv"}
    assert names - found.updates.keys() == {name for name in names if ".0." in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_weights_have_their_places_in_the_dense_shapes(family):
    prunable, dense = pruned(family), PrunableModel(tiny(family).float())
    found, kept = recover(prunable), kept_of(dense)
    mask(dense, kept)
    load_updates(dense, spread_updates(dense, kept, found.updates))
    ids = tokens(2)
    torch.testing.assert_close(dense.model(ids).logits, prunable.model(ids).logits, rtol=1e-3, atol=1e-3)
    again = pruned(family)
    load_updates(again, found.updates)
    assert torch.equal(again.model(ids).logits, prunable.model(ids).logits)


@pytest.mark.bad_input
def test_weights_of_another_cut_are_refused_with_their_file():
    found = recover(pruned())
    with pytest.raises(
        ArtifactError, match=r"x.safetensors has .* but this cut has .*\. Run the rule that makes it again"
    ):
        load_updates(PrunableModel(tiny("llama")), found.updates, source="x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merged_model_computes_what_the_adapters_did(dtype):
    """W + alpha / rank B A, added in float32 and rounded once."""
    prunable = pruned(dtype=dtype)
    old = {path: prunable.linear(path).weight.data.clone() for path in prunable.decision_names("structured")}
    ids = tokens(2)
    with torch.no_grad(), Adapters(prunable, rank=3, alpha=6.0, seed=1) as adapters:
        for parameter in adapters.parameters.values():
            assert parameter.dtype == torch.float32
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(parameter)))
        beside = prunable.model(ids).logits.float()
        pairs = {path: [adapters.parameters[f"{path}.{name}"].detach().double() for name in "BA"] for path in old}
        adapters.merge()
    for path, weight in old.items():
        expected = (weight.double() + 2.0 * pairs[path][0] @ pairs[path][1]).to(dtype)
        found = prunable.linear(path).weight.data
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected)
    merged = prunable.model(ids).logits.float()
    assert (merged - beside).abs().mean() < {torch.float32: 1e-5}.get(dtype, 0.2)


def test_one_step_equals_adamw_written_out():
    """The first step with all windows at once: the gradient of the mean loss, clipped, through AdamW's formula."""
    prunable, windows = pruned(dtype=torch.float64), tokens(4)
    settings = SETTINGS.model_copy(update={"tokens": 80, "batch_tokens": 80, "warmup": 0.0})
    with Adapters(prunable, rank=4, alpha=8.0, seed=3) as adapters:
        loss = torch.nn.functional.cross_entropy(
            prunable.model(windows).logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()
        )
        loss.backward()
        gradients = {name: p.grad.double() for name, p in adapters.parameters.items()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        stepped = {}
        for name, parameter in adapters.parameters.items():
            g = gradients[name] / max(1.0, norm)
            stepped[name] = parameter.detach().double() - 0.02 * g / (g.abs() + 1e-8)
    path = next(iter(prunable.decision_names("structured")))
    weight = prunable.linear(path).weight.data.clone()
    found = recover(prunable, windows, settings, batch_tokens=20)
    assert found.curve[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert found.curve[0]["learning_rate"] == 0.02 and len(found.curve) == 1
    expected = weight + 2.0 * stepped[f"{path}.B"] @ stepped[f"{path}.A"]
    assert np.allclose(found.updates[f"{path}.weight"], expected.numpy(), atol=1e-5)


def test_it_is_deterministic_and_depends_on_the_seed_alone():
    first, models = recover(pruned()), [pruned(), pruned()]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = recover(models[0]), recover(models[1], seed=4)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers went on"
    assert all(np.array_equal(first.updates[name], again.updates[name]) for name in first.updates)
    assert first.curve == again.curve != other.curve


def test_keeping_activations_gives_the_same_numbers():
    kept = SETTINGS.model_copy(update={"checkpoint": False})
    first, second = recover(pruned()), recover(pruned(), settings=kept)
    assert first.curve == second.curve
    assert all(np.array_equal(first.updates[name], second.updates[name]) for name in first.updates)


class Memory:
    """Keeps states, and stops the training like a kill after so many."""

    def __init__(self, limit=math.inf):
        self.kept, self.limit = [], limit

    def load(self):
        return self.kept[-1] if self.kept else None

    def save(self, arrays):
        self.kept.append(copy.deepcopy(arrays))
        if len(self.kept) >= self.limit:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stops", [1, 2])
def test_a_stopped_training_ends_with_the_same_bytes(stops):
    straight, memory, prunable = recover(pruned()), Memory(stops), pruned()
    weights = copy.deepcopy(prunable.model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        recover(prunable, state=memory)
    assert all(torch.equal(value, weights[name]) for name, value in prunable.model.state_dict().items())
    memory.limit = math.inf
    again = recover(prunable, state=memory)
    assert len(memory.kept[0]["curve"]) == SAVE_EVERY
    assert again.curve == straight.curve and again.cost.n_tokens == straight.cost.n_tokens
    assert all(again.updates[name].tobytes() == straight.updates[name].tobytes() for name in straight.updates)
    assert again.cost.earlier_s > 0


def test_kl_is_the_divergence_from_the_dense_model_and_falls():
    dense, prunable, windows = tiny("llama").float(), pruned(), tokens(16)
    ours, theirs = (m(windows).logits[:, :-1].log_softmax(-1) for m in (prunable.model, dense))
    slow = (theirs.exp() * (theirs - ours)).sum(-1)
    with torch.no_grad():
        goal = last_hidden(dense, windows)
        assert token_divergences(prunable.model, windows, goal).numpy() == pytest.approx(
            slow.numpy(), rel=1e-3, abs=1e-5
        )
    settings = SETTINGS.model_copy(update={"loss": "kl"})
    found = recover(prunable, windows, settings, teacher=dense)
    with torch.no_grad():
        after = token_divergences(prunable.model, windows, goal)
    assert float(after.mean()) < 0.8 * float(slow.mean())
    assert found.cost.n_tokens == 4 * SETTINGS.tokens


def test_tokens_and_steps_are_counted():
    found = recover(pruned(), tokens(16), SETTINGS.model_copy(update={"tokens": 300, "batch_tokens": 100}))
    assert [row["tokens"] for row in found.curve] == [100, 200, 300]
    assert found.cost.n_tokens == 900 and found.cost.evaluations == 0 and found.cost.wall_s > 0


def test_a_short_text_is_read_again_and_said_so(caplog):
    caplog.set_level("INFO")
    recover(pruned(), tokens(3), SETTINGS.model_copy(update={"tokens": 160}))
    assert "recover: 160 tokens, 2.7 passes over a text of 60 tokens" in caplog.text
    assert "recover: step 4/4, loss" in caplog.text


def test_every_window_is_read_once_a_pass():
    order = window_order(5, 12, seed=1)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert len(order) == 12 and list(order[:5]) != list(order[5:10])
    assert list(window_order(5, 3, seed=1)) == list(order[:3])


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_the_learning_rate_rises_to_its_highest_and_falls(steps, warmup):
    shares = [rise_and_fall(step, steps, warmup) for step in range(steps)]
    top = shares.index(max(shares))
    assert all(0 < share <= 1 for share in shares)
    assert shares[: top + 1] == sorted(shares[: top + 1]) and shares[top:] == sorted(shares[top:], reverse=True)
    assert warmup > 0.5 or max(shares) == 1


def test_float16_keeps_small_gradients():
    found = recover(pruned(dtype=torch.float16))
    assert found.curve[-1]["loss"] < found.curve[0]["loss"] - 0.05


@pytest.mark.bad_input
def test_what_cannot_be_trained_is_refused_in_one_line():
    lost = pruned()
    offload(lost.model, lost.blocks, torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match=r"offload keeps on the host\. Leave one out"):
        recover(lost)
    with pytest.raises(ConfigError, match="loss 'kl' of recovery takes a teacher"):
        recover(pruned(), settings=SETTINGS.model_copy(update={"loss": "kl"}))
    with pytest.raises(ConfigError, match="loss 'ce' of recovery takes no teacher"):
        recover(pruned(), teacher=tiny("llama"))
    broken = pruned()
    broken.linear(next(iter(broken.decision_names("structured")))).weight.data.fill_(float("nan"))
    before = modules(broken.model)
    with pytest.raises(
        FfpError, match=r"loss of recovery is nan at step 1: numbers overflow\. Lower its learning_rate"
    ):
        recover(broken)
    assert modules(broken.model) == before


@pytest.mark.bad_input
@pytest.mark.parametrize(("dtype", "alpha"), [(torch.float32, 3e38), (torch.float16, 1e8)])
def test_weights_that_the_last_step_makes_infinite_are_refused(dtype, alpha):
    """No loss is computed with them; the linears are what they were."""
    model, before = pruned(dtype=dtype), pruned(dtype=dtype).model.state_dict()
    one = SETTINGS.model_copy(update={"tokens": 40, "rank": 1, "learning_rate": 0.9, "warmup": 0.0, "alpha": alpha})
    said = rf"^recovery makes \S+weight not finite in {str(dtype)[6:]}, with alpha = .*overflow\. Lower its lea"
    with pytest.raises(FfpError, match=said):
        recover(model, settings=one)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


@pytest.mark.bad_input
def test_a_missing_peft_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'peft is not installed\. Run: pip install "ffp\[recover\]"'):
        recover(pruned())
