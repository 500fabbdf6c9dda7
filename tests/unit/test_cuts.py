"""A cut's arrays make the same model again; candidates of a search are the models that a cut would make."""

import numpy as np
import pytest
import torch

from ffp import budget
from ffp.calibration import Calibration, collect
from ffp.cuts import StructuredCut, WeightCut
from ffp.models.adapter import Adapter
from ffp.pruning.masked import MaskedModel
from ffp.pruning.masks import count_kept
from ffp.reward import SlicedReward, Text
from ffp.types import ArtifactError, ConfigError
from tests.contracts.families import tiny, tokens

GRANULARITIES = ["unstructured", "n-of-4"]


def calibrated(granularity, family="llama"):
    adapter = Adapter(tiny(family).float())
    return Calibration(adapter, collect(adapter, tokens(4), batch_tokens=40), 80, granularity=granularity)


def random_allocation(adapter, granularity, target=0.5, seed=0):
    problem = adapter.problem(target, granularity)
    logits = np.random.default_rng(seed).normal(size=len(problem.units))
    return problem, budget.project(problem, logits)


def logits(adapter):
    with torch.no_grad():
        return adapter.model(tokens(2)).logits


@pytest.mark.parametrize("pruner", ["wanda", "wanda-dense", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_masks_and_updates_make_the_pruned_model_again(family, granularity, pruner):
    stats, cut = calibrated(granularity, family), WeightCut(granularity, pruner)
    problem, allocation = random_allocation(stats.adapter, granularity)
    masks, updates = cut.make(problem, allocation, stats, tokens(4), 40)
    assert bool(updates) == (pruner == "sparsegpt")
    assert count_kept(problem, masks, "masks") == list(allocation.keep)
    other = Adapter(tiny(family).float())
    dense = other.model_params()
    sparsity, params = cut.install(other, problem, masks, updates, "masks")
    assert sparsity == pytest.approx(problem.sparsity_of(allocation.keep), abs=1e-12)
    assert dense - params == round(sparsity * problem.total_params)
    assert params == dense - sum(int((other.linear(p).weight == 0).sum()) for p in other.decisions(granularity))
    torch.testing.assert_close(logits(other), logits(stats.adapter))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("pruner", ["wanda-dense", "magnitude"])
def test_candidates_are_what_the_pruner_would_make(granularity, pruner):
    stats = calibrated(granularity)
    masked = WeightCut(granularity, pruner).candidates(stats)
    assert isinstance(masked, MaskedModel)
    dense = logits(Adapter(tiny("llama").float()))
    torch.testing.assert_close(logits(masked.adapter), dense)
    for seed in range(3):  # one after the other: no candidate may leave traces in the next
        other = calibrated(granularity)
        problem, allocation = random_allocation(other.adapter, granularity, 0.3 + 0.2 * seed, seed)
        WeightCut(granularity, pruner).make(problem, allocation, other, tokens(4), 40)
        masked.set_allocation(allocation)
        for path in other.adapter.decisions(granularity):
            assert bool((masked.adapter.linear(path).weight == other.adapter.linear(path).weight).all()), path
    masked.set_keep([unit.n_groups for unit in masked.adapter.problem(0.5, granularity).units])
    torch.testing.assert_close(logits(masked.adapter), dense)


def test_the_reward_of_single_weights_is_the_ratio_of_perplexities():
    stats = calibrated("unstructured")
    windows = tokens(6)
    dense = np.array([float(stats.adapter.model(w[None], labels=w[None]).loss) for w in windows])
    masked = WeightCut("unstructured", "sparsegpt").candidates(stats)
    texts = Text("search", windows[:4], dense[:4]), Text("selection", windows[4:], dense[4:])
    reward = SlicedReward(masked, *texts, batch_tokens=40)
    problem, allocation = random_allocation(stats.adapter, "unstructured")
    other = calibrated("unstructured")
    WeightCut("unstructured", "wanda-dense").make(problem, allocation, other, tokens(4), 40)
    pruned = [float(other.adapter.model(w[None], labels=w[None]).loss) for w in windows[:2]]
    assert reward(allocation, windows=[0, 1]) == pytest.approx(np.exp(dense[:2].mean() - np.mean(pruned)), rel=1e-5)
    assert (reward.evaluations, reward.spent_tokens) == (1, 40)


def test_the_reward_of_kl_is_that_of_whole_logits():
    stats, windows = calibrated("unstructured"), tokens(6)
    dense = stats.adapter.model(windows).logits[:, :-1].log_softmax(-1)
    masked = WeightCut("unstructured", "wanda").candidates(stats)
    texts = [
        Text(name, part, np.ones(len(part))) for name, part in (("search", windows[:4]), ("selection", windows[4:]))
    ]
    reward = SlicedReward(masked, *texts, batch_tokens=40, fitness="kl")
    problem, allocation = random_allocation(stats.adapter, "unstructured")
    assert reward(budget.dense(problem), windows=[0, 3]) == pytest.approx(1, abs=1e-6)
    value = reward(allocation, windows=[0, 1, 3])
    pruned = masked.model(windows).logits[:, :-1].log_softmax(-1)
    divergence = (dense.exp() * (dense - pruned)).sum(-1)
    assert value == pytest.approx(float(torch.exp(-divergence[[0, 1, 3]].mean())), rel=1e-4)
    assert reward.select(allocation) == pytest.approx(float(torch.exp(-divergence[4:].mean())), rel=1e-4)
    with pytest.raises(ConfigError, match="knows no fitness kl"):
        reward.marginal_utility(allocation, windows=[0])


def test_files_that_do_not_fit_are_refused():
    stats, cut = calibrated("unstructured"), WeightCut("unstructured", "sparsegpt")
    problem, allocation = random_allocation(stats.adapter, "unstructured")
    masks, updates = cut.make(problem, allocation, stats, tokens(4), 40)
    path = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ArtifactError, match=r"the updates beside here do not fit the mask of .*q_proj\. Apply again\."):
        other = {**updates, path: updates[path][:-1]}
        cut.install(Adapter(tiny("llama").float()), problem, masks, other, "here")
    with pytest.raises(ArtifactError, match=r"here does not fit the model: 'lm_head\.weight' belongs to no decision"):
        count_kept(problem, {**masks, "lm_head.weight": masks[path]}, "here")
    with pytest.raises(ArtifactError, match=r"here removes \d+ weights, less than 0\.6 of them\. Apply again\."):
        cut.install(Adapter(tiny("llama").float()), problem.at(0.6), masks, updates, "here")


def test_heads_and_channels_are_cut_or_zeroed():
    stats, cut = calibrated("structured"), StructuredCut("wifv", "bias")
    problem, allocation = random_allocation(stats.adapter, "structured", 0.3)
    masks, updates = cut.make(problem, allocation, stats, tokens(4), 40)
    found = []
    for dense_shape in (False, True):
        other = Adapter(tiny("llama").float())
        sparsity, _ = cut.install(other, problem, masks, updates, "masks", dense_shape=dense_shape)
        assert sparsity == problem.sparsity_of(allocation.keep)
        found.append(logits(other))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(found[0], logits(stats.adapter), atol=0.1)
