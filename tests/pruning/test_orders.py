"""Orders of removal against loops that solve for every candidate anew."""

import pytest
import torch

from ffp.config.grid import GRAM_SCORES
from ffp.measure.calibration import collect
from ffp.models.prunable import PrunableModel
from ffp.models.refit import damped
from ffp.pruning.orders import ORDERS, obs, pairwise
from tests.helpers.families import tiny, tokens


def inputs(units, width):
    torch.manual_seed(units + width)
    n = units * width
    x = torch.randn(200, n, dtype=torch.float64) @ torch.randn(n, n, dtype=torch.float64)
    return x.T @ x / 200, torch.randn(6, n, dtype=torch.float64)


def columns(units, width):
    return [unit * width + i for unit in units for i in range(width)]


def error(weight, gram, kept, removed, refit):
    """tr(dW H dW^T) if `removed` leave, with `kept` as they are or refitted."""
    change = -weight.clone()
    change[:, kept] = 0
    if refit and kept:
        change[:, kept] = weight[:, removed] @ torch.linalg.solve(gram[kept][:, kept], gram[kept][:, removed]).T
    return torch.trace(change @ gram @ change.T).item()


@pytest.mark.parametrize(("units", "width"), [(12, 1), (5, 3)])
@pytest.mark.parametrize("name", ["pairwise", "obs"])
def test_each_removal_is_the_one_that_adds_least(name, units, width):
    gram, weight = inputs(units, width)
    refit = name == "obs"
    h = damped(gram) if refit else gram
    left, removed = list(range(units)), []
    while left:
        costs = {
            p: error(weight, h, columns([u for u in left if u != p], width), columns([*removed, p], width), refit)
            for p in left
        }
        worst = min(left, key=lambda p: (costs[p], -p))
        left.remove(worst)
        removed.append(worst)
    assert ORDERS[name](weight, gram, width).tolist() == removed[::-1]


def test_rounds_come_near_one_by_one():
    gram, weight = inputs(96, 1)
    kept = obs(weight, gram, 1)[:48].tolist()
    rest = [i for i in range(96) if i not in kept]
    single = obs(weight[:, :32], gram[:32, :32], 1)
    assert sorted(single.tolist()) == list(range(32))
    best = pairwise(weight, gram, 1)[:48].tolist()
    other = [i for i in range(96) if i not in best]
    h = damped(gram)
    assert error(weight, h, kept, rest, True) < error(weight, h, best, other, True)


def test_of_equal_units_the_higher_index_leaves_first():
    gram, weight = torch.eye(6, dtype=torch.float64), torch.ones(3, 6, dtype=torch.float64)
    assert pairwise(weight, gram, 1).tolist() == obs(weight, gram, 1).tolist() == list(range(6))


def test_a_models_units_are_ordered_and_the_grid_knows_the_names():
    assert set(GRAM_SCORES) == set(ORDERS)
    prunable = PrunableModel(tiny("llama"))
    statistics = collect(prunable, tokens(4), batch_tokens=40, grams=True)
    for name in ORDERS:
        for module in prunable.modules:
            found = statistics.unit_orders(name)[module.decision.name]
            assert sorted(found.tolist()) == list(range(module.n_indices))


def test_gram_matrices_are_those_of_the_inputs_and_change_no_other_statistic():
    prunable = PrunableModel(tiny("llama"))
    plain = collect(prunable, tokens(4), batch_tokens=40)
    found = collect(prunable, tokens(4), batch_tokens=40, grams=True)
    assert all((plain.to_arrays()[name] == value).all() for name, value in found.to_arrays().items())
    for module in prunable.modules:
        gram = found.gram(module, torch.arange(module.n_indices * module.output_width))
        assert torch.equal(gram, gram.T)
        torch.testing.assert_close(
            gram.diagonal().double(), torch.from_numpy(found.moments[module.output].sq_mean), rtol=1e-5, atol=1e-9
        )
    with pytest.raises(Exception, match="holds no Gram matrices"):
        plain.unit_orders("obs")


def test_wide_units_have_one_order_on_one_thread_and_on_several():
    torch.manual_seed(0)
    width, x, weight = 192, torch.randn(2000, 576) @ torch.randn(576, 576), torch.randn(96, 576)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(obs(weight, x.T @ x / len(x), width).tolist())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] and sorted(found[0]) == [0, 1, 2]
