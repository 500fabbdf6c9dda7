"""Taylor scores with one threshold: against a slow ranking of a real model's units, and the factor on attention."""

import numpy as np
import pytest

from ffp import api
from ffp.allocators import ParameterError, create
from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.core.errors import ConfigError
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import make_cut
from tests.helpers.families import tiny, tokens
from tests.helpers.synthetic import SyntheticReward, run_search, structured_problem

WINDOWS = api.Windows(tokens(4), tokens(6), tokens(3))


def slow_keep(problem, sparsity, factor):
    """Sums |gradient * weight| unit by unit, and removes the smallest sums while too much is left."""
    model = tiny("llama")
    for parameter in model.parameters():
        parameter.requires_grad_()
    model(WINDOWS.search, labels=WINDOWS.search).loss.backward()
    ranked = []
    for block, layer in enumerate(model.model.layers):
        attention, ffn = layer.self_attn, layer.mlp
        rows = {  # of the output's columns, of the inputs' rows
            "attention": [
                (attention.o_proj, 1, 24),
                (attention.q_proj, 0, 24),
                (attention.k_proj, 0, 8),
                (attention.v_proj, 0, 8),
            ],
            "ffn": [(ffn.down_proj, 1, 1), (ffn.gate_proj, 0, 1), (ffn.up_proj, 0, 1)],
        }
        for kind, n in (("attention", 2), ("ffn", 40)):
            scores = np.zeros(n)
            for linear, axis, width in rows[kind]:
                saliency = (linear.weight.grad * linear.weight).abs().detach().numpy()
                for unit in range(n):
                    part = saliency.take(range(unit * width, (unit + 1) * width), axis)
                    scores[unit] += part.sum() * (factor if kind == "attention" else 1)
            ranked += [(score, f"block{block:02d}.{kind}") for score in scores]
    keep = {decision.name: decision.n_units for decision in problem.decisions}
    price = {decision.name: decision.params_per_unit for decision in problem.decisions}
    removed, wanted = 0, sparsity * problem.total_params
    for _, name in sorted(ranked):
        if removed < wanted and keep[name] > 1:
            keep[name] -= 1
            removed += price[name]
    return keep, removed - wanted


@pytest.mark.parametrize("factor", [1.0, 0.05, 0.02])
@pytest.mark.parametrize("score", ["wanda", "obs"])
def test_it_ranks_the_units_of_a_real_model_as_a_slow_loop_does(factor, score):
    prunable = PrunableModel(tiny("llama"))
    calibration = api.calibrate(prunable, WINDOWS, grams=True)
    cut = make_cut("structured", score=score, compensation="ridge", pruner="wanda", compensated_search=score == "obs")
    method = create("taylor-global", {"attention_factor": factor, "windows": 6})
    found = api.allocate(prunable, calibration, method, sparsity=0.3, cut=cut, budget=SearchBudget(20, 1))
    expected, excess = slow_keep(found.problem, 0.3, factor)
    assert found.cost.n_tokens == 3 * 6 * 20 and found.cost.evaluations == 1
    assert excess < found.problem.decisions[1].params_per_unit, "the last unit that left was one of attention"
    assert found.keep == expected


def test_the_factor_moves_the_cut_between_attention_and_ffn():
    problem = structured_problem(0.3)
    kept = []
    for factor in (0.001, 0.05, 1.0):
        method = create("taylor-global", {"attention_factor": factor})
        allocation, _ = run_search(method, problem, SyntheticReward(problem), SearchBudget(96, 4))
        kept.append(sum(keep for decision, keep in allocation.items(problem) if decision.module == "attention"))
    assert kept == sorted(kept) and kept[0] < kept[2] == 18


def test_without_tokens_for_a_backward_pass_attention_stays_whole():
    problem = structured_problem(0.3)
    allocation, tracker = run_search(create("taylor-global", {}), problem, SyntheticReward(problem), SearchBudget(2, 1))
    assert allocation == ffn_only_allocation(problem) and not tracker.rows


def test_a_factor_of_zero_and_single_weights_are_refused():
    with pytest.raises(ParameterError, match=r"attention_factor = 0 is not a number above 0 to 1000000"):
        create("taylor-global", {"attention_factor": 0})
    prunable = PrunableModel(tiny("llama"))
    calibration = api.calibrate(prunable, WINDOWS)
    cut = make_cut("unstructured", score="wanda", compensation="none", pruner="magnitude")
    with pytest.raises(ConfigError, match="scores of units are known of structured pruning only"):
        api.allocate(
            prunable, calibration, create("taylor-global", {}), sparsity=0.3, cut=cut, granularity="unstructured"
        )
