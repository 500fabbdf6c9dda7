"""Heuristic baselines against their published equations written as loops, and the knapsack against brute force."""

import itertools
import math
import re

import numpy as np
import pytest

from ffp.allocators.base import SearchBudget
from ffp.allocators.heuristics.alphapruning import AlphaPruning, hill_alpha, spectrum
from ffp.allocators.heuristics.dlp import Dlp, median_saliency
from ffp.allocators.heuristics.flap import Flap, best_units, unit_scores
from ffp.allocators.heuristics.imported import Import
from ffp.allocators.heuristics.ramp import Ramp
from ffp.allocators.heuristics.shortgpt import ShortGpt
from ffp.allocators.heuristics.uniform import Uniform, uniform_allocation
from ffp.allocators.searches.error_table_dp import ErrorTableDp, interpolate
from ffp.core import projection
from ffp.core.errors import BudgetError, ConfigError
from ffp.core.knapsack import knapsack
from ffp.core.projection import kept_budget
from ffp.measure.calibration import BlockInfluence, collect
from ffp.models.prunable import PrunableModel
from tests.helpers.families import CONFIGS, tiny, tokens
from tests.helpers.synthetic import (
    SyntheticReward,
    SyntheticStats,
    run_search,
    structured_problem,
    unstructured_problem,
)


def allocate(method, problem):
    return method.allocate(problem, SyntheticStats(problem))


def removed_shares(problem, allocation):
    return 1 - np.array(allocation.keep) / problem.n_units


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.05, 0.2, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("family", CONFIGS)
def test_equal_uniform_gives_all_blocks_the_same_sizes_for_less_than_a_unit_each(family, target):
    problem = PrunableModel(tiny(family)).problem(0.0)
    problem = problem.at(min(target, projection.max_sparsity(problem)))
    allocation = Uniform(equal=True).allocate(problem, SyntheticStats(problem))
    allocation.check(problem)
    assert len(set(allocation.keep[::2])) == len(set(allocation.keep[1::2])) == 1
    slack = problem.removed_by(allocation.keep) - problem.params_to_remove
    room = [d for d, keep in allocation.items(problem) if keep < d.n_units and d.module == "ffn"]
    assert not room or slack < sum(d.params_per_unit for d in room)


@pytest.mark.parametrize("target", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("units", ["kv-groups", "query-heads", "single-query-heads"])
def test_spread_uniform_takes_its_share_from_every_kind(units, target):
    """Up to one unit of attention, the lost ones evenly spaced."""
    prunable = PrunableModel(tiny("llama", num_hidden_layers=12), attention_units=units, keep_blocks="11")
    problem = prunable.problem(target)
    keep = np.array(allocate(Uniform(spread=True), problem).keep)
    price, free = problem.params_per_unit, slice(0, -2)
    share = problem.params_to_remove / np.dot(problem.n_units[free], price[free])
    heads, channels = keep[0:-2:2], keep[1:-2:2]
    assert abs(heads.sum() - (1 - share) * problem.n_units[0:-2:2].sum()) <= 1
    assert np.ptp(heads) <= 1 and np.ptp(channels) <= 2
    assert (keep[-2:] == problem.n_units[-2:]).all()


def test_equal_uniform_leaves_whole_blocks_whole():
    problem = PrunableModel(tiny("llama"), keep_blocks="1").problem(0.3)
    allocation = Uniform(equal=True).allocate(problem, SyntheticStats(problem))
    allocation.check(problem)
    assert allocation.keep[2:4] == (2, 40) and allocation.keep[:2] == allocation.keep[4:] != (2, 40)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("family", "units"),
    [("llama", {"attention_units": "single-query-heads"}), ("opt", {}), ("llama", {"keep_blocks": "1"})],
)
def test_equal_uniform_refuses_what_only_unequal_blocks_can_meet(family, units):
    """The attention of block 0 has to keep a unit, and then those of all blocks do."""
    problem, method = PrunableModel(tiny(family), min_keep=0, **units).problem(0.5), Uniform(equal=True)
    largest = projection.max_sparsity(problem)
    with pytest.raises(
        ConfigError, match=r"^uniform with equal: true cannot remove .* Lower the sparsity, or"
    ) as error:
        method.check(problem.at(largest))
    most = float(re.search(r"at most (0\.\d{4})", str(error.value))[1])
    method.check(problem.at(most))
    allocation = method.allocate(problem.at(most), SyntheticStats(problem))
    allocation.check(problem.at(most))
    assert most < largest and all(keep in (0, 1, d.n_units) for d, keep in allocation.items(problem))
    with pytest.raises(ConfigError, match=r"^uniform with equal: true cannot remove"):
        method.check(problem.at(most + 1e-4))
    Uniform().check(problem.at(largest))


def test_ramp_is_an_arithmetic_progression():
    problem = unstructured_problem(0.5, blocks=5)
    shares = removed_shares(problem, allocate(Ramp(slope=0.2), problem))
    np.testing.assert_allclose(shares, np.repeat([0.4, 0.45, 0.5, 0.55, 0.6], 2), atol=0.002)
    downward = removed_shares(problem, allocate(Ramp(slope=-0.2), problem))
    np.testing.assert_allclose(downward, shares[::-1].reshape(5, 2)[:, ::-1].ravel(), atol=0.002)


def test_dlp_keeps_more_where_the_median_is_small():
    problem = unstructured_problem(0.7)
    stats = SyntheticStats(problem)
    medians = []
    for block in range(stats.n_blocks):
        entries = sorted(
            abs(float(w)) * math.sqrt(x.input_sq_mean[j]) for x in stats.linears(block) for row in x.weight
            for j, w in enumerate(row)
        )  # fmt: skip
        medians.append(entries[(len(entries) - 1) // 2])
        assert median_saliency(list(stats.linears(block))) == pytest.approx(medians[-1], rel=1e-5)
    importance = 1 - np.array(medians) / sum(medians)
    keep = 0.3 + 2 * 0.15 * (importance - importance.min()) / np.ptp(importance)
    keep -= (keep - 0.3).mean()
    np.testing.assert_allclose(1 - removed_shares(problem, allocate(Dlp(), problem)), np.repeat(keep, 2), atol=0.002)
    other = removed_shares(problem.at(0.55), allocate(Dlp(), problem.at(0.55)))
    assert np.ptp(other) == pytest.approx(2 * 0.07, abs=0.004)


def slow_alpha(values):
    """Every eigenvalue near the histogram's peak as a threshold; the one whose fit is nearest wins."""
    counts, edges = np.histogram(np.log10(values), 100)
    peak, best = 10 ** edges[np.argmax(counts)], (np.inf, 1.0)
    for i in range(len(values) - 1):
        if 0.95 * peak <= values[i] <= 1.5 * peak:
            tail = [v for v in values[i:]]
            alpha = 1 + len(tail) / sum(math.log(v / tail[0]) for v in tail)
            distance = max(abs(1 - (v / tail[0]) ** (1 - alpha) - rank / len(tail)) for rank, v in enumerate(tail))
            best = min(best, (distance, alpha))
    return best[1]


@pytest.mark.slow
def test_hill_alpha_equals_the_loop_and_finds_a_power_law():
    rng = np.random.default_rng(0)
    for shape in ((40, 60), (60, 40)):
        values = spectrum(rng.standard_t(3, size=shape).astype(np.float32))
        expected = np.linalg.svd(rng.standard_t(3, size=shape), compute_uv=False)
        assert len(values) == len(expected) == 40
        assert hill_alpha(values) == pytest.approx(slow_alpha(values), rel=1e-9)
    law = np.sort((1 - rng.random(20_000)) ** (-1 / 1.5))  # density ~ x^-2.5 above 1
    assert hill_alpha(law) == pytest.approx(2.5, abs=0.1)
    weight = rng.normal(size=(6, 9)).astype(np.float32)
    np.testing.assert_allclose(spectrum(weight), np.linalg.svd(weight, compute_uv=False)[::-1] ** 2, rtol=1e-3)


def test_alphapruning_scales_a_linear_map_to_the_budget():
    problem = unstructured_problem(0.5)
    stats = SyntheticStats(problem)
    alphas = np.array(
        [np.mean([hill_alpha(spectrum(x.weight)) for x in stats.linears(b)]) for b in range(stats.n_blocks)]
    )
    relative = 0.7 + 0.6 * (alphas - alphas.min()) / np.ptp(alphas)
    expected = relative * 0.5 / relative.mean()
    shares = removed_shares(problem, allocate(AlphaPruning(), problem))
    np.testing.assert_allclose(shares, np.repeat(expected, 2), atol=0.002)
    assert np.ptp(removed_shares(problem, allocate(AlphaPruning(epsilon=0), problem))) < 0.002


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
def test_flap_removes_the_worst_standardised_units(metric):
    problem = structured_problem(0.3)
    scores = unit_scores(problem, SyntheticStats(problem), metric)
    keep = allocate(Flap(metric=metric), problem).keep
    for linear in itertools.chain(*map(SyntheticStats(problem).linears, range(6))):
        if linear.output and linear.module == "attention":
            i = [d.name for d in problem.decisions].index(linear.decision)
            weight = linear.weight.astype(float)
            raw = {
                "WIFV": linear.input_var * (weight**2).sum(0),
                "IFV": linear.input_var,
                "WIFN": np.abs(weight).mean(0) * np.sqrt(linear.input_sq_mean),
            }[metric] ** 2
            standard = (raw - raw.mean()) / raw.std(ddof=1)
            np.testing.assert_allclose(scores[i], standard.reshape(3, 2).mean(1))
    # what was kept beyond the minimum scores above what was removed, but for the units that rounding moved
    worst_kept = [
        np.sort(s)[::-1][k - 1] for s, k, u in zip(scores, keep, problem.decisions, strict=True) if k > u.min_keep
    ]
    best_gone = [np.sort(s)[::-1][k] for s, k, u in zip(scores, keep, problem.decisions, strict=True) if k < u.n_units]
    assert np.median(worst_kept) >= np.median(best_gone)
    exact = best_units(problem, scores, kept_budget(problem))
    assert np.abs(exact - keep) @ problem.params_per_unit <= 2 * max(problem.params_per_unit)


def test_flap_scores_bundles_of_heads_as_the_units_that_they_are():
    """The first unit has the best query head of each KV group, the next one the second best."""
    prunable, windows = PrunableModel(tiny("llama"), attention_units="query-heads"), tokens(3)
    stats, problem = collect(prunable, windows, batch_tokens=40), prunable.problem(0.3)
    single = PrunableModel(tiny("llama"), attention_units="single-query-heads")
    of_heads = unit_scores(single.problem(0.3), collect(single, windows, batch_tokens=40), "WIFV")
    for found, heads in zip(unit_scores(problem, stats, "WIFV")[::2], of_heads[::2], strict=True):
        groups = [sorted(heads[:3], reverse=True), sorted(heads[3:], reverse=True)]
        np.testing.assert_allclose(found, np.mean(groups, axis=0))


def test_structures_of_flap():
    problem = structured_problem(0.3)
    uniform = allocate(Flap(structure="UL-UM"), problem)
    assert uniform == uniform_allocation(problem)
    attention = np.array([decision.module == "attention" for decision in problem.decisions])
    for structure, spread in (("UL-MM", 1), ("AL-MM", 0)):
        keep = np.array(allocate(Flap(structure=structure, remove_heads=6), problem).keep)
        assert int((problem.n_units - keep)[attention].sum()) == 6
        assert (len(set(keep[attention])) == 1) == bool(spread)


def test_shortgpt_empties_the_least_influential_blocks():
    problem = unstructured_problem(0.4)
    allocation = allocate(ShortGpt(), problem)
    influence = SyntheticStats(problem).block_influence()
    emptied = [block for block in range(4) if allocation.keep[2 * block] == 6]
    assert emptied == [int(np.argmin(influence))]
    full = [b for b in range(4) if allocation.keep[2 * b] == 600]
    assert set(full) == set(np.argsort(influence)[2:])


def test_block_influence_is_one_minus_the_mean_cosine():
    model = tiny("llama")
    prunable, windows = PrunableModel(model), tokens(3)
    with BlockInfluence(prunable) as influence:
        for window in windows:
            model.base_model(window[None])
    model.base_model(windows[:1])  # closed: sees no more
    states = model(windows, output_hidden_states=True).hidden_states
    for block in range(2):  # the last state of the list is behind the final norm
        a, b = states[block].flatten(0, 1).numpy(), states[block + 1].flatten(0, 1).numpy()
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert influence.value()[block] == pytest.approx(1 - cosine.mean(), abs=1e-5)


EVOPRESS = "\n".join(f"model.layers.{b}.self_attn.{p}_proj: {2 - b}" for b in range(4) for p in "qkvo")
EVOPRESS += "\n" + "\n".join(
    f"model.layers.{b}.mlp.{p}_proj: {b - 1}" for b in range(4) for p in ("gate", "up", "down")
)


def test_import_reads_levels_and_ratios(tmp_path):
    problem = unstructured_problem(0.5)
    path = tmp_path / "levels.txt"
    path.write_text(EVOPRESS)
    shares = removed_shares(problem, allocate(Import(file=str(path), step=10), problem))
    # four linears of attention at level 2 - b, three of the FFN at level b - 1; then the budget is made up for
    wanted = np.ravel([[0.5 + 4 * (2 - b) * 10 / 600, 0.5 + 3 * (b - 1) * 10 / 1500] for b in range(4)])
    assert np.abs(shares - wanted).max() < 0.04 and np.corrcoef(shares, wanted)[0, 1] > 0.99
    path.write_text("[0.3, 0.4\n 0.6 0.7]")
    np.testing.assert_allclose(
        removed_shares(problem, allocate(Import(file=str(path)), problem)),
        np.repeat([0.3, 0.4, 0.6, 0.7], 2),
        atol=0.002,
    )
    densities = allocate(Import(values=[0.7, 0.6, 0.4, 0.3], kind="density"), problem)
    assert densities == allocate(Import(file=str(path)), problem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.layers.0.mlp.up_proj: 1\nup: 2", "has the line 'up: 2', not `layer: level`"),
        ("model.layers.0.mlp.up_proj: 1", "has no level for block00.attention"),
        ("0.5 0.5", "got 2 ratios for 4 blocks"),
        ("0.5 0.5 0.5 1.5", "or some outside"),
        ("half", "holds neither levels nor ratios"),
    ],
)
def test_import_refuses_what_does_not_fit(tmp_path, text, message):
    (tmp_path / "x.txt").write_text(text)
    for refuses in (allocate, Import.check):
        with pytest.raises(ConfigError, match=message):
            refuses(Import(file=str(tmp_path / "x.txt")), unstructured_problem())
        with pytest.raises(ConfigError, match=r"gone\.txt cannot be read"):
            refuses(Import(file=str(tmp_path / "gone.txt")), unstructured_problem())


def brute_force(removed, costs, target):
    options = itertools.product(*(range(len(r)) for r in removed))
    met = [o for o in options if sum(r[i] for r, i in zip(removed, o, strict=True)) >= target]
    return min(sum(c[i] for c, i in zip(costs, o, strict=True)) for o in met)


@pytest.mark.parametrize("seed", range(20))
def test_the_knapsack_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    removed = [np.append(0, np.cumsum(rng.integers(1, 40, size=3)) * (5 if seed % 2 else 1)) for _ in range(5)]
    costs = [np.append(0.0, rng.random(3)) for _ in range(5)]
    target = int(rng.integers(1, sum(r[-1] for r in removed) + 1))
    choice = knapsack(removed, costs, target)
    assert sum(int(r[i]) for r, i in zip(removed, choice, strict=True)) >= target
    assert sum(c[i] for c, i in zip(costs, choice, strict=True)) == pytest.approx(brute_force(removed, costs, target))


def test_a_coarse_knapsack_still_meets_its_target():
    rng = np.random.default_rng(1)
    removed = [np.append(0, np.cumsum(rng.integers(1, 10**6, size=6))) for _ in range(8)]
    costs = [np.append(0.0, np.cumsum(rng.random(6))) for _ in range(8)]
    target = int(0.5 * sum(int(r[-1]) for r in removed))
    choice = knapsack(removed, costs, target, bins=300)
    assert sum(int(r[i]) for r, i in zip(removed, choice, strict=True)) >= target
    fine = knapsack(removed, costs, target)
    total = [sum(c[i] for c, i in zip(costs, picked, strict=True)) for picked in (choice, fine)]
    assert total[1] <= total[0] <= 1.1 * total[1]
    assert knapsack(removed, costs, 10**9) == [6] * 8


def test_damage_between_levels_follows_the_secant_slope():
    xs, ys = np.array([0.0, 0.2, 0.4]), np.array([0.0, 0.02, 0.16])
    np.testing.assert_allclose(interpolate(xs, ys, xs), ys)
    np.testing.assert_allclose(interpolate(xs, ys, np.array([0.1, 0.3])), [0.005, 0.3 * 0.25])


@pytest.mark.parametrize("problem", [structured_problem(0.3), unstructured_problem(0.6)])
def test_the_table_finds_what_separable_damage_asks_for(problem):
    """With damage that adds up, the knapsack must come near the best of a fine greedy descent, far below uniform.

    Nothing is held back here: such damage is known beyond the target as well.
    """
    reward = SyntheticReward(problem)
    allocation, _ = run_search(ErrorTableDp(reach=1000.0), problem, reward, SearchBudget(60, 8, 2))
    everything = range(reward.n_windows)
    loss = reward.loss(allocation.keep, reward.damage[list(everything)])
    uniform = reward.loss(uniform_allocation(problem).keep, reward.damage[list(everything)])
    assert reward.spent_tokens <= 60 * 8 * reward.window_tokens
    best = greedy(problem, reward)
    assert loss - best < 0.05 * (uniform - best)


def test_the_table_gives_no_more_of_a_decision_than_was_measured():
    """Not even where nothing seems to cost anything: free by the table, a decision would be given up whole."""
    problem = unstructured_problem(0.6)
    reward = SyntheticReward(problem)
    reward.damage = np.where(np.arange(len(problem.decisions)) % 2, reward.damage, 0.0)
    allocation, tracker = run_search(ErrorTableDp(reach=2.0), problem, reward, SearchBudget(60, 8, 2))
    most = 3 / 4  # odds of 3 to 2, twice
    shares = 1 - np.array(allocation.keep) / problem.n_units
    measured = 1 - np.array([row["keep"] for row in tracker.rows]) / problem.n_units
    assert shares.max() <= measured.max() == pytest.approx(most, abs=0.01)
    assert shares[::2].mean() > 1.2 * shares[1::2].mean()


def greedy(problem, reward):
    """Remove unit by unit, always the one that costs least a parameter."""
    keep = list(uniform_allocation(problem.at(0.0)).keep)
    damage = reward.damage.mean(0)

    def marginal(i):
        decision = problem.decisions[i]
        if keep[i] <= decision.min_keep:
            return math.inf
        share = (decision.n_units - keep[i]) / decision.n_units
        return damage[i] * ((share + 1 / decision.n_units) ** 2 - share**2) / decision.params_per_unit

    while problem.sparsity_of(keep) < problem.target:
        keep[min(range(len(keep)), key=marginal)] -= 1
    return reward.loss(keep, reward.damage)


def test_an_infeasible_target_costs_no_evaluation():
    problem = structured_problem(0.999)
    reward = SyntheticReward(problem)
    with pytest.raises(BudgetError):
        run_search(ErrorTableDp(), problem, reward, SearchBudget(60, 8, 2))
    assert reward.spent_tokens == 0
