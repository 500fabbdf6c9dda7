"""Single weights: masks against loops, SparseGPT against elimination with explicit inverses, the stream of a model."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from ffp.allocators.heuristics.uniform import uniform_allocation
from ffp.config.grid import Pruner as PrunerName
from ffp.core import projection
from ffp.core.errors import ArtifactError, ConfigError, FfpError
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import make_cut
from ffp.pruning.pruners import PRUNERS, Pruner, find_pruner, saliency
from ffp.pruning.sparsegpt import exactly, sparsegpt
from ffp.pruning.unstructured import pack_masks, prune_weights, removals, unpack_masks
from ffp.pruning.weights import removal_rank, smallest
from tests.helpers.families import CONFIGS, tiny, tokens


def slow_smallest(score, remove):
    """Take weights one round after another: in each, every group gives its smallest, the least salient group first."""
    left = [sorted((float(v), j) for j, v in enumerate(row)) for row in score]
    gone = np.zeros(score.shape, dtype=bool)
    turn = 0
    while remove:
        for row in sorted(range(len(score)), key=lambda i: (left[i][turn][0], i)):
            if remove:
                gone[row, left[row][turn][1]] = True
                remove -= 1
        turn += 1
    return gone


@pytest.mark.parametrize("remove", [0, 1, 5, 11, 12, 20, 24])
@pytest.mark.parametrize("shape", [(6, 4), (1, 24), (24, 1)])
def test_groups_lose_their_smallest_weights_in_rounds(shape, remove):
    score = torch.from_numpy(np.random.default_rng(0).integers(0, 9, size=shape)).float()
    gone = smallest(score, remove)
    assert int(gone.sum()) == remove
    assert (gone.numpy() == slow_smallest(score.numpy(), remove)).all()


def test_masks_are_nested_and_ranks_give_the_order_of_removal():
    score = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    masks = [smallest(score, remove) for remove in range(0, 1500, 7)]
    assert all(bool((small <= large).all()) for small, large in itertools.pairwise(masks))
    rank = removal_rank(score)
    assert rank.dtype == torch.int16
    assert bool(((rank < 60) == smallest(score, 300)).all())
    assert removal_rank(score[:, :8]).dtype == torch.uint8


@pytest.mark.parametrize("size", [256, 1 << 15])
def test_ranks_compare_with_the_size_of_their_group(size):
    assert bool((removal_rank(torch.rand(1, size)) < size).all())


def test_each_pruner_compares_weights_within_its_groups():
    weight, sq_mean = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([4.0, 9.0], dtype=torch.float64)
    assert find_pruner("wanda").grouped_scores(weight, sq_mean, 0).tolist() == [[2.0, 6.0], [6.0, 12.0]]
    assert find_pruner("magnitude").grouped_scores(weight, None, 0).tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert find_pruner("wanda").grouped_scores(torch.ones(3, 8), torch.ones(8), 4).shape == (6, 4)


def test_the_configuration_and_the_table_know_the_same_pruners():
    assert set(get_args(PrunerName)) == set(PRUNERS)


def test_an_unknown_pruner_is_refused():
    message = r"unknown pruner 'wnada': did you mean wanda"
    with pytest.raises(ConfigError, match=message):
        make_cut("unstructured", score="wanda", compensation="none", pruner="wnada")
    with pytest.raises(ConfigError, match=message):
        prune_weights(PrunableModel(tiny("llama")), {}, pruner="wnada")


def test_a_pruner_is_an_entry_of_the_table(monkeypatch):
    """One by the largest weights: its own score prunes and ranks, on what it says that it reads."""
    score = lambda weight, sq_mean: -weight.abs().float()  # noqa: E731
    monkeypatch.setitem(PRUNERS, "largest", Pruner(reads="nothing", score=score))
    prunable = PrunableModel(tiny("llama"))
    path = next(iter(prunable.decision_names("unstructured")))
    weight = prunable.linear(path).weight.data.clone()
    masks = prune_weights(prunable, {path: len(weight)}, pruner="largest")
    assert (~masks[path]).sum(1).tolist() == [1] * len(weight)
    assert bool((weight.abs().argmax(1) == (~masks[path]).int().argmax(1)).all())


def slow_sparsegpt(weight, gram, quota, m=0, *, block=128, damping=0.01):
    """Elimination of one column after the other, the inverse of what is left computed anew each time."""
    w, out, columns = weight.double().clone(), weight.shape[0], weight.shape[1]
    h = gram.double().clone()
    h += damping * h.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    gone = torch.zeros_like(w, dtype=torch.bool)
    for j in range(columns):
        if j % (m or block) == 0:
            stop = min(j + (m or block), columns)
            # the pivots of the elimination that is to come, for the columns of this block
            pivots = torch.stack([torch.linalg.inv(h[c:, c:])[0, 0] for c in range(j, stop)])
            score = w[:, j:stop] ** 2 / pivots
            order = score.flatten().argsort() if not m else None
            if m:
                for row in range(out):
                    gone[row, j + score[row].argsort()[: quota(j, stop) // out]] = True
            else:
                for flat in order[: quota(j, stop)].tolist():
                    gone[flat // (stop - j), j + flat % (stop - j)] = True
        inverse = torch.linalg.inv(h[j:, j:])
        error = torch.where(gone[:, j], w[:, j], 0.0) / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0]
        w[gone[:, j], j] = 0
    return w, gone


@pytest.mark.parametrize("m", [0, 4])
def test_sparsegpt_equals_elimination_with_explicit_inverses(m):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight, remove = torch.randn(6, 24, generator=generator), 6 * 24 // 2 if m else 77
    settings = {"block": 8, "damping": 0.03}
    found, gone = sparsegpt(weight, x.T @ x, exactly(remove, 24), m, **settings)
    expected, expected_gone = slow_sparsegpt(weight, x.T @ x, exactly(remove, 24), m, **settings)
    assert int(gone.sum()) == remove
    assert bool((gone == expected_gone).all())
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    assert not found[gone].any()


def test_sparsegpt_errs_less_than_its_mask_alone():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, 16, generator=generator) @ torch.randn(16, 64, generator=generator)
    x += torch.randn(500, 64, generator=generator)
    weight = torch.randn(32, 64, generator=generator)
    updated, gone = sparsegpt(weight, x.T @ x, exactly(weight.numel() // 2, 64))
    wanda = weight.masked_fill(smallest(saliency(weight, x.square().mean(0)), weight.numel() // 2), 0)
    errors = [float((x @ (weight - w).T).norm()) for w in (updated, weight.masked_fill(gone, 0), wanda)]
    assert errors[0] < 0.7 * min(errors[1:])


def test_dead_inputs_lose_their_weights_first_and_a_bad_hessian_is_named():
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(3))
    x[:, 5] = 0
    updated, gone = sparsegpt(torch.ones(4, 8), x.T @ x, exactly(4, 8))
    assert bool(gone[:, 5].all()) and not updated[:, 5].any()
    with pytest.raises(FfpError, match=r"the inputs of q_proj give no positive definite Hessian\. Calibrate on more"):
        sparsegpt(torch.ones(4, 8), -torch.eye(8), exactly(4, 8), name="q_proj")


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("granularity", ["unstructured", "n-of-4"])
@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_pruners_zero_exactly_what_the_allocation_removes(family, granularity, pruner):
    prunable = PrunableModel(tiny(family))
    problem = prunable.problem(0.6, granularity)
    allocation = uniform_allocation(problem)
    m = 4 if granularity == "n-of-4" else 0
    remove = removals(prunable, granularity, allocation.keep)
    moments = {path: np.ones(prunable.linear(path).in_features) for path in remove}
    masks = prune_weights(prunable, remove, pruner=pruner, m=m, windows=tokens(3), batch_tokens=20, sq_means=moments)
    zeros = sum(int((prunable.linear(path).weight == 0).sum()) for path in remove)
    total = sum(prunable.linear(path).weight.numel() for path in remove)
    assert zeros == sum(remove.values()) == sum(int((~mask).sum()) for mask in masks.values())
    assert zeros / total == pytest.approx(problem.sparsity_of(allocation.keep), abs=1e-12)
    assert 0 <= zeros - 0.6 * total < (1 if m == 0 else total / 3 / 4 + 1)
    back = unpack_masks(prunable, pack_masks(masks), "masks")
    assert all(bool((back[path] == masks[path]).all()) for path in masks)


@pytest.mark.parametrize("family", CONFIGS)
def test_wanda_sees_its_own_block_whole_and_those_before_it_pruned(family):
    """Against whole forwards: after each block, statistics of the next one from the model as it stands."""
    prunable, windows = PrunableModel(tiny(family)), tokens(4)
    remove = {p: prunable.linear(p).weight.numel() // 2 for p in prunable.decision_names("unstructured")}
    found = prune_weights(prunable, remove, pruner="wanda", windows=windows, batch_tokens=40)
    other = PrunableModel(tiny(family))
    for block in range(3):
        seen = {}

        def note(module, inputs, seen=seen):
            seen[module] = inputs[0].flatten(0, -2).square().mean(0)

        hooks = [other.linear(path).register_forward_pre_hook(note) for path, _ in other.linears(block)]
        with torch.no_grad():
            other.model(windows)
        for hook in hooks:
            hook.remove()
        for path, _ in other.linears(block):
            weight = other.linear(path).weight.data
            gone = smallest(saliency(weight, seen[other.linear(path)]), remove[path])
            weight.masked_fill_(gone, 0)
            assert int((gone == found[path]).sum()) <= 2, path  # near-ties between float32 sums


def test_a_linear_that_is_no_multiple_of_m_is_refused():
    prunable = PrunableModel(tiny("llama"))
    assert prunable.problem(0.5, "n-of-8").decisions[0].n_units == 8
    prunable.linear("model.layers.1.mlp.down_proj").in_features = 41
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.down_proj has 41 inputs, which do not divide into groups"):
        prunable.problem(0.5, "n-of-8")


def test_masks_of_another_model_are_refused():
    prunable = PrunableModel(tiny("llama"))
    masks = {
        p: torch.ones_like(prunable.linear(p).weight, dtype=torch.bool) for p in prunable.decision_names("unstructured")
    }
    packed = pack_masks(masks)
    packed["model.layers.0.self_attn.q_proj.weight"] = packed["model.layers.0.self_attn.q_proj.weight"][:-1]
    with pytest.raises(ArtifactError, match=r"m\.safetensors has no mask of .*q_proj with 2304 weights\. Apply"):
        unpack_masks(prunable, packed, "m.safetensors")
    assert projection.dense(prunable.problem(0.5, "unstructured")).keep[0] == 2304
