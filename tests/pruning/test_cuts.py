"""A cut's arrays make the same model again; candidates of a search are the models that a cut would make."""

import numpy as np
import pytest
import torch

from ffp import api
from ffp.allocators import create
from ffp.allocators.base import SearchBudget
from ffp.core import projection
from ffp.core.errors import ArtifactError, ConfigError
from ffp.measure.calibration import collect
from ffp.measure.journal import MemoryJournal
from ffp.measure.reward import ModelReward
from ffp.measure.text import Text
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import StructuredCut, WeightCut
from ffp.pruning.masked import MaskedModel
from ffp.pruning.pruners import PRUNERS
from ffp.pruning.structured import count_kept
from tests.helpers.families import tiny, tokens

GRANULARITIES = ["unstructured", "n-of-4"]


def calibrated(granularity, family="llama"):
    prunable = PrunableModel(tiny(family).float())
    return collect(prunable, tokens(4), batch_tokens=40).for_granularity(granularity)


def random_allocation(prunable, granularity, target=0.5, seed=0):
    problem = prunable.problem(target, granularity)
    logits = np.random.default_rng(seed).normal(size=len(problem.decisions))
    return problem, projection.project(problem, logits)


def logits(prunable):
    with torch.no_grad():
        return prunable.model(tokens(2)).logits


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_masks_and_updates_make_the_pruned_model_again(family, granularity, pruner):
    stats, cut = calibrated(granularity, family), WeightCut(granularity, pruner)
    problem, allocation = random_allocation(stats.prunable, granularity)
    masks, updates = cut.make(problem, allocation, stats, tokens(4), batch_tokens=40)
    assert bool(updates) == PRUNERS[pruner].changes_kept == (pruner == "sparsegpt")
    assert count_kept(problem, masks, "masks") == list(allocation.keep)
    other = PrunableModel(tiny(family).float())
    dense = other.model_params()
    sparsity, params = cut.install(other, problem, masks, updates, source="masks")
    assert sparsity == pytest.approx(problem.sparsity_of(allocation.keep), abs=1e-12)
    assert dense - params == round(sparsity * problem.total_params)
    assert params == dense - sum(int((other.linear(p).weight == 0).sum()) for p in other.decision_names(granularity))
    torch.testing.assert_close(logits(other), logits(stats.prunable))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("pruner", ["wanda-dense", "magnitude"])
def test_candidates_are_what_the_pruner_would_make(granularity, pruner):
    stats = calibrated(granularity)
    masked = WeightCut(granularity, pruner).candidates(stats)
    assert isinstance(masked, MaskedModel)
    dense = logits(PrunableModel(tiny("llama").float()))
    torch.testing.assert_close(logits(masked.prunable), dense)
    for seed in range(3):  # one after the other: no candidate may leave traces in the next
        other = calibrated(granularity)
        problem, allocation = random_allocation(other.prunable, granularity, 0.3 + 0.2 * seed, seed)
        WeightCut(granularity, pruner).make(problem, allocation, other, tokens(4), batch_tokens=40)
        masked.set_allocation(allocation)
        for path in other.prunable.decision_names(granularity):
            assert bool((masked.prunable.linear(path).weight == other.prunable.linear(path).weight).all()), path
    masked.set_keep(masked.prunable.problem(0.5, granularity).n_units.tolist())
    torch.testing.assert_close(logits(masked.prunable), dense)
    masked.set_allocation(allocation)
    masked.restore()
    assert torch.equal(logits(masked.prunable), dense)


def test_the_reward_of_single_weights_is_the_ratio_of_perplexities():
    stats = calibrated("unstructured")
    windows = tokens(6)
    dense = np.array([float(stats.prunable.model(w[None], labels=w[None]).loss) for w in windows])
    masked = WeightCut("unstructured", "sparsegpt").candidates(stats)
    texts = Text("search", windows[:4], dense[:4]), Text("selection", windows[4:], dense[4:])
    reward = ModelReward(masked, *texts, batch_tokens=40)
    problem, allocation = random_allocation(stats.prunable, "unstructured")
    other = calibrated("unstructured")
    WeightCut("unstructured", "wanda-dense").make(problem, allocation, other, tokens(4), batch_tokens=40)
    pruned = [float(other.prunable.model(w[None], labels=w[None]).loss) for w in windows[:2]]
    assert reward(allocation, windows=[0, 1]) == pytest.approx(np.exp(dense[:2].mean() - np.mean(pruned)), rel=1e-5)
    assert (reward.evaluations, reward.spent_tokens) == (1, 40)


def test_the_reward_of_kl_is_that_of_whole_logits():
    stats, windows = calibrated("unstructured"), tokens(6)
    dense = stats.prunable.model(windows).logits[:, :-1].log_softmax(-1)
    masked = WeightCut("unstructured", "wanda").candidates(stats)
    texts = [
        Text(name, part, np.ones(len(part))) for name, part in (("search", windows[:4]), ("selection", windows[4:]))
    ]
    reward = ModelReward(masked, *texts, batch_tokens=40, fitness="kl")
    problem, allocation = random_allocation(stats.prunable, "unstructured")
    assert reward(projection.dense(problem), windows=[0, 3]) == pytest.approx(1, abs=1e-6)
    value = reward(allocation, windows=[0, 1, 3])
    pruned = masked.model(windows).logits[:, :-1].log_softmax(-1)
    divergence = (dense.exp() * (dense - pruned)).sum(-1)
    assert value == pytest.approx(float(torch.exp(-divergence[[0, 1, 3]].mean())), rel=1e-4)
    assert reward.select(allocation) == pytest.approx(float(torch.exp(-divergence[4:].mean())), rel=1e-4)
    with pytest.raises(ConfigError, match="knows no fitness kl"):
        reward.marginal_utility(allocation, windows=[0])


def test_files_that_do_not_fit_are_refused():
    stats, cut = calibrated("unstructured"), WeightCut("unstructured", "sparsegpt")
    problem, allocation = random_allocation(stats.prunable, "unstructured")
    masks, updates = cut.make(problem, allocation, stats, tokens(4), batch_tokens=40)
    path = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ArtifactError, match=r"the updates beside here do not fit the mask of .*q_proj\. Apply again\."):
        other = {**updates, path: updates[path][:-1]}
        cut.install(PrunableModel(tiny("llama").float()), problem, masks, other, source="here")
    with pytest.raises(ArtifactError, match=r"here does not fit the model: 'lm_head\.weight' belongs to no decision"):
        count_kept(problem, {**masks, "lm_head.weight": masks[path]}, "here")
    with pytest.raises(ArtifactError, match=r"here removes \d+ weights, less than 0\.6 of them\. Apply again\."):
        cut.install(PrunableModel(tiny("llama").float()), problem.at(0.6), masks, updates, source="here")


@pytest.mark.parametrize(
    ("fault", "dense_shape"),
    [("bias", True), ("shape", False), ("shape", True), ("name", False), ("name", True), ("weights", False)],
)
def test_an_install_that_is_refused_leaves_the_model_as_it_was(fault, dense_shape):
    granularity = "unstructured" if fault == "weights" else "structured"
    cut = WeightCut(granularity, "sparsegpt") if fault == "weights" else StructuredCut("wanda", "bias")
    stats = calibrated(granularity, "mistral")
    problem, allocation = random_allocation(stats.prunable, granularity, 0.3)
    masks, updates = cut.make(problem, allocation, stats, tokens(4), batch_tokens=40)
    last = max(updates)
    faulty = {
        "bias": updates,
        "name": {**updates, "lm_head.weight": updates[last]},
        "shape": {**updates, last: updates[last][:-1]},
        "weights": {**updates, last: updates[last][:-1]},
    }[fault]
    model = tiny("mistral").float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError if fault == "bias" else ArtifactError):
        cut.install(PrunableModel(model), problem, masks, faulty, source="masks", dense_shape=dense_shape)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_heads_and_channels_are_cut_or_zeroed():
    stats, cut = calibrated("structured"), StructuredCut("wifv", "bias")
    problem, allocation = random_allocation(stats.prunable, "structured", 0.3)
    masks, updates = cut.make(problem, allocation, stats, tokens(4), batch_tokens=40)
    found = []
    for dense_shape in (False, True):
        other = PrunableModel(tiny("llama").float())
        sparsity, _ = cut.install(other, problem, masks, updates, source="masks", dense_shape=dense_shape)
        assert sparsity == problem.sparsity_of(allocation.keep)
        found.append(logits(other))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(found[0], logits(stats.prunable), atol=0.1)


def table_of(pruner, journal=None, granularity="unstructured"):
    stats, windows = calibrated(granularity), tokens(6)
    dense = np.array([float(stats.prunable.model(w[None], labels=w[None]).loss) for w in windows])
    masked = WeightCut(granularity, pruner).candidates(stats)
    texts = Text("search", windows[:4], dense[:4]), Text("selection", windows[4:], dense[4:])
    return stats, ModelReward(masked, *texts, batch_tokens=40, journal=journal)


def output_gradients(path, ids):
    """Gradients of the summed token losses at a linear's outputs, (tokens, out), and its inputs, (tokens, in)."""
    model, seen = tiny("llama").float(), {}

    def keep(_, inputs, output):
        seen["x"], seen["y"] = inputs[0].flatten(0, 1), output.requires_grad_()
        output.retain_grad()

    model.get_submodule(path).register_forward_hook(keep)
    (model(ids, labels=ids).loss * ids[:, 1:].numel()).backward()
    return seen["y"].grad.flatten(0, 1).double(), seen["x"].detach().double()


@pytest.mark.parametrize("pruner", ["wanda", "magnitude"])
def test_costs_of_single_weights_are_the_diagonal_of_a_dense_quadratic_form(pruner):
    """The form of one linear's change, differentiated twice by autograd; the masks say which weights leave."""
    stats, reward = table_of(pruner)
    path, chosen = "model.layers.1.self_attn.k_proj", [0, 2]
    at = list(stats.prunable.decision_names("unstructured")).index(path)
    reward(random_allocation(stats.prunable, "unstructured")[1], windows=[1])  # leaves its masks behind
    table = reward.removal_costs(chosen)
    assert reward.spent_tokens == 20 + 3 * 2 * 20 and len(table) == 21
    g, _ = output_gradients(path, reward.search.windows[chosen])
    _, x = output_gradients(path, tokens(4))  # the calibration text
    weight = tiny("llama").get_submodule(path).weight.detach()

    def form(change):
        return (g @ change @ x.T).square().sum() / len(x) / (2 * 2 * 19)

    hessian = torch.autograd.functional.hessian(form, torch.zeros_like(weight), vectorize=True)
    diagonal = hessian.reshape(weight.numel(), -1).diagonal().view_as(weight)
    kept, costs = table[at]
    assert kept[0] == 0 and kept[-1] == weight.numel() and costs[-1] == 0
    groups = 1 if pruner == "magnitude" else len(weight)
    for index in (0, 40, 64, 100, 127):
        if (weight.numel() - kept[index]) % groups:
            continue
        keep = stats.prunable.problem(0.0, "unstructured").n_units
        keep[at] = kept[index]
        reward.candidates.set_keep(keep.tolist())
        gone = stats.prunable.linear(path).weight == 0
        assert int(gone.sum()) == weight.numel() - kept[index]
        expected = 0.5 * float((weight.square() * diagonal)[gone].sum())
        assert costs[index] == pytest.approx(expected, rel=1e-4)
    assert (np.diff(costs) <= 0).all() and costs[0] > 0


def test_the_table_of_single_weights_keeps_more_where_the_loss_is_more_sensitive():
    stats, _ = table_of("wanda")
    calibration = api.Calibration(
        api.Windows(tokens(4), tokens(6), tokens(3)), {"search": np.ones(6), "selection": np.ones(3)}, stats
    )
    cut, found = WeightCut("unstructured", "wanda"), {}
    for sensitive in (1.0, 4.0):
        linear = stats.prunable.linear("model.layers.2.mlp.down_proj")
        linear.weight.data *= sensitive
        answer = api.allocate(
            stats.prunable, calibration, create("fisher-table", {}), sparsity=0.5, cut=cut, granularity="unstructured",
            budget=SearchBudget(6, 1),
        )  # fmt: skip
        assert answer.cost.n_tokens == 3 * 2 * 20 and [row["stage"] for row in answer.trace] == ["table"]
        found[sensitive] = answer.keep["block02.ffn.down_proj"]
    assert found[4.0] > found[1.0]


def test_costs_of_single_weights_come_from_the_journal_and_patterns_have_none():
    journal = MemoryJournal()
    first = table_of("wanda", journal)[1].removal_costs([1])
    again = table_of("wanda", MemoryJournal(journal.entries))[1]
    again._backward = None
    assert all((a[1] == b[1]).all() for a, b in zip(first, again.removal_costs([1]), strict=True))
    with pytest.raises(ConfigError, match="costs of removals are known of units and of single weights only"):
        table_of("wanda", granularity="n-of-4")[1].removal_costs([1])
