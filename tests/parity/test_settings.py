"""Settings of the references without stored outputs, against slow and obvious versions of the described algorithms."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ffp.core.errors import ConfigError
from ffp.models.prunable import PrunableModel
from tests.parity import compare
from tests.parity.settings import METRICS, STRUCTURES, Settings
from tests.parity.weights import published_counts
from tests.pruning.test_weights import slow_sparsegpt

BLOCKS, HEADS, WIDTH, FFN = 4, 4, 8, 40


def model():
    """A float32 LLaMA of four blocks whose inputs differ in scale from feature to feature and block to block."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=HEADS * WIDTH, intermediate_size=FFN, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    made = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
        if "layers." in name and parameter.ndim == 2:
            spread = 0.3 * (1 + int(name.split(".")[2]))
            parameter.data *= torch.exp(spread * torch.randn(parameter.shape[1]))
    return made


TOKENS = torch.randint(0, 61, (6, 24), generator=torch.Generator().manual_seed(1))


def linears(made, block):
    layer = made.model.layers[block]
    names = [(layer.self_attn, f"self_attn.{x}_proj") for x in "qkvo"]
    names += [(layer.mlp, f"mlp.{x}_proj") for x in ("gate", "up", "down")]
    return {f"model.layers.{block}.{n}": getattr(owner, n.split(".")[1]) for owner, n in names}


def inputs_of(made, wanted):
    """What each linear sees in a whole forward of every window, (windows, context, in) float64."""
    seen = {path: [] for path in wanted}
    hooks = [
        linear.register_forward_pre_hook(lambda _, x, path=path: seen[path].append(x[0][0].double()))
        for path, linear in wanted.items()
    ]
    for window in TOKENS:
        made(window[None])
    for hook in hooks:
        hook.remove()
    return {path: torch.stack(xs) for path, xs in seen.items()}


def scores(linear, x):
    """|W_ij| * ||x_j||, x in (windows, context, in)."""
    return linear.weight.double().abs() * x.square().sum((0, 1)).sqrt()


def prune_block_after_block(rule, goals):
    """Each block on whole forwards of the model as it stands; rule(linear, x, goal) prunes in place."""
    made = model()
    for block in range(BLOCKS):
        wanted = linears(made, block)
        xs = inputs_of(made, wanted)
        for path, linear in wanted.items():
            rule(linear, xs[path], goals[block])
    return made


def keep(made):
    return {path: linear.weight != 0 for block in range(BLOCKS) for path, linear in linears(made, block).items()}


def assert_equal_masks(settings, expected):
    found = model()
    counts = compare.run(PrunableModel(found), TOKENS, settings).kept["masks"]
    differing = total = 0
    for path, mask in keep(expected).items():
        assert counts[f"{path}.weight"] == {"kept": int(mask.sum()), "numel": mask.numel()}, path
        differing += int((keep(found)[path] != mask).sum())
        total += mask.numel()
    assert differing <= 2e-4 * total
    assert 0.1 < sum(int(m.sum()) for m in keep(expected).values()) / total < 0.9


def drop(linear, gone):
    linear.weight.data[gone] = 0


def row_floor(linear, x, share):
    score = scores(linear, x)
    for row in range(len(score)):
        for j in score[row].argsort()[: int(score.shape[1] * share)]:
            linear.weight.data[row, j] = 0


def n_of_m(m):
    def rule(linear, x, n):
        score = scores(linear, x)
        for row in range(len(score)):
            for start in range(0, score.shape[1], m):
                for j in score[row, start : start + m].argsort()[:n]:
                    linear.weight.data[row, start + j] = 0

    return rule


def test_wanda_at_other_shares_and_n_of_m():
    assert_equal_masks(Settings("wanda", 0.45), prune_block_after_block(row_floor, [0.45] * BLOCKS))
    for n, m in ((2, 4), (5, 8)):
        settings = Settings("wanda", 0.5, prune_n=n, prune_m=m)
        assert_equal_masks(settings, prune_block_after_block(n_of_m(m), [n] * BLOCKS))


def cumulative(linear, x, share):
    """Bisection on alpha; a row gives its smallest while they sum up to at most alpha of the row."""
    score = scores(linear, x)
    low, high, alpha = 0.0, 0.8, 0.4
    while True:
        gone = torch.zeros_like(score, dtype=torch.bool)
        for row in range(len(score)):
            order, running = score[row].argsort().tolist(), 0.0
            for j in order:
                running += float(score[row, j])
                if running > alpha * float(score[row].sum()):
                    break
                gone[row, j] = True
        found = float(gone.float().mean())
        if abs(found - share) <= 0.001 or high - low < 0.001:
            return drop(linear, gone)
        if found > share:
            high, alpha = alpha, (alpha + low) / 2
        else:
            low, alpha = alpha, (alpha + high) / 2


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_the_variant_of_wanda(share):
    assert_equal_masks(Settings("wanda", share, variant=True), prune_block_after_block(cumulative, [share] * BLOCKS))


def threshold(linear, x, share):
    """All that is not above entry number int(numel * share): ties with it go too."""
    size = linear.weight.abs()
    drop(linear, size <= sorted(size.flatten().tolist())[int(size.numel() * share)])


def test_magnitude_takes_all_that_ties_with_its_threshold(monkeypatch):
    assert_equal_masks(Settings("magnitude", 0.6), prune_block_after_block(threshold, [0.6] * BLOCKS))
    made = model()
    for block in range(BLOCKS):
        for linear in linears(made, block).values():
            linear.weight.data = (linear.weight.data * 4).round() / 4
    monkeypatch.setitem(globals(), "model", lambda: __import__("copy").deepcopy(made))
    assert_equal_masks(Settings("magnitude", 0.6), prune_block_after_block(threshold, [0.6] * BLOCKS))


def one_more(block_size, damping):
    """SparseGPT by explicit inverses, one entry more than the share in every block of columns."""

    def rule(linear, x, share):
        gram, rows = x.flatten(0, 1).T @ x.flatten(0, 1), linear.out_features

        def quota(start, stop):
            return int(rows * (stop - start) * share) + 1

        new, gone = slow_sparsegpt(linear.weight, gram, quota, block=block_size, damping=damping)
        linear.weight.data = new.float()
        drop(linear, gone)

    return rule


def test_sparsegpt_with_its_settings():
    for block_size, damping in ((128, 0.01), (16, 0.1)):
        settings = Settings("sparsegpt", 0.5, block_size=block_size, damping=damping)
        assert_equal_masks(settings, prune_block_after_block(one_more(block_size, damping), [0.5] * BLOCKS))


def outliers(multiple):
    """Percent of each block's scores above a multiple of their mean, in the dense model."""
    made, found = model(), []
    for block in range(BLOCKS):
        wanted = linears(made, block)
        xs = inputs_of(made, wanted)
        entries = np.concatenate([scores(linear, xs[path]).flatten().numpy() for path, linear in wanted.items()])
        found.append(100 * (entries > multiple * entries.mean()).mean())
    return np.array(found)


def owl_shares(share, multiple, strength):
    percent = outliers(multiple)
    density = (percent - percent.min()) / np.ptp(percent) * 2 * strength
    removed = 1 - (density - density.mean() + 1 - share)
    return [max(r, 0) or 0.01 for r in removed]


@pytest.mark.parametrize(("share", "multiple", "strength"), [(0.6, 3, 0.02), (0.7, 5, 0.15), (0.3, 7, 0.5)])
def test_owl_at_other_multiples_and_strengths(share, multiple, strength):
    goals = owl_shares(share, multiple, strength)
    assert np.ptp(goals) > 0.02 and (strength < 0.5 or min(goals) == 0.01)
    settings = Settings("owl", share, outlier_multiple=multiple, strength=strength)
    assert_equal_masks(settings, prune_block_after_block(row_floor, goals))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"pruner": "magnitude"}, threshold),
        ({"pruner": "sparsegpt"}, one_more(128, 0.01)),
        ({"variant": True}, cumulative),
    ],
)
def test_owl_with_other_pruners(changes, rule):
    goals = owl_shares(0.6, 5, 0.1)
    assert_equal_masks(Settings("owl", 0.6, strength=0.1, **changes), prune_block_after_block(rule, goals))


@pytest.mark.parametrize("special", [False, True])
def test_owl_mixes_n_of_m(special):
    percent = outliers(6)
    saved = (percent - percent.min()) / np.ptp(percent) * 3
    saved = [round(s) for s in saved - saved.mean()]
    if special:
        saved = [2 if s == 1 else s for s in saved]
    goals = [5 - s for s in saved]
    assert len(set(goals)) > 1 and (2 in saved) >= special
    settings = Settings("owl", 0.5, outlier_multiple=6, strength=3, prune_n=5, prune_m=8, special=special)
    assert_equal_masks(settings, prune_block_after_block(n_of_m(8), goals))


def test_counts_of_owl_are_rounded_half_to_even():
    shares = np.array([0.0, 0.01, 0.02, 0.03, 0.04])
    assert published_counts(shares, 2, 4) == [5, 4, 4, 4, 3]
    assert published_counts(shares, 2, 4, special=True) == [5, 4, 4, 4, 2]
    assert published_counts(shares, 5, 4) == [6, 5, 4, 3, 2]  # -2.5, -1.25, 0, 1.25, 2.5
    assert published_counts(np.full(3, 0.1), 2, 4) == [4, 4, 4]


def flap_scores(metric):
    """By block: each head's columns and each channel, and what the adaptive structures make of them."""
    made, attention, ffn = model(), [], []
    for block in range(BLOCKS):
        wanted = {path: x for path, x in linears(made, block).items() if path.endswith(("o_proj", "down_proj"))}
        for path, x in inputs_of(made, wanted).items():
            mean, variance = np.zeros(x.shape[2]), np.zeros(x.shape[2])
            for n, window in enumerate(x.numpy()):
                mean = mean * n / (n + 1) + window.mean(0) / (n + 1)
                if n:
                    variance = variance * (n - 1) / n + ((window - mean) ** 2).sum(0) / (n + 1)
            weight = wanted[path].weight.double().numpy()
            norm = np.sqrt((x.numpy() ** 2).sum((0, 1)) / len(x))
            values = {
                "IFV": variance,
                "WIFV": variance * (weight**2).sum(0),
                "WIFN": (np.abs(weight) * norm).mean(0),
            }[metric]
            (attention if path.endswith("o_proj") else ffn).append(values**2 if path.endswith("o_proj") else values)
    return attention, ffn


def standard(values):
    return (values - values.mean()) / values.std(ddof=1)


def best(scored, count):
    """The `count` best of (score, block, index), as sorted indices by block."""
    kept = [[] for _ in range(BLOCKS)]
    for _, block, index in sorted(scored, reverse=True)[:count]:
        kept[block].append(index)
    return [sorted(indices) for indices in kept]


def slow_flap(structure, metric, share, remove_heads):
    attention, ffn = flap_scores(metric)
    hidden = HEADS * WIDTH
    block_params, head_params = 3 * FFN * hidden + 4 * hidden**2, 4 * hidden * WIDTH
    if structure.startswith("UL"):
        heads = [[(row.reshape(HEADS, WIDTH).sum(1)[h], b, h) for h in range(HEADS)] for b, row in enumerate(attention)]
        gone_heads, gone = int(share * HEADS), int(FFN * share)
        if structure == "UL-MM":
            gone_heads = remove_heads // BLOCKS
            gone = int((share * block_params - gone_heads * head_params) / (3 * hidden))
        channels = [[(value, b, c) for c, value in enumerate(row)] for b, row in enumerate(ffn)]
        return [
            [best(rows[b], len(rows[b]) - lost)[b] for b in range(BLOCKS)]
            for rows, lost in ((heads, gone_heads), (channels, gone))
        ]
    heads = [
        (standard(row).reshape(HEADS, WIDTH).mean(1)[h], b, h) for b, row in enumerate(attention) for h in range(HEADS)
    ]
    channels = [(value, b, c) for b, row in enumerate(ffn) for c, value in enumerate(standard(row))]
    if structure == "AL-MM":
        gone = int((BLOCKS * share * block_params - remove_heads * head_params) / (3 * hidden))
        return best(heads, len(heads) - remove_heads), best(channels, len(channels) - gone)
    everything = sorted([(s, 4 * WIDTH // 3) for s, *_ in heads] + [(s, 1) for s, *_ in channels], reverse=True)
    total, running, distances = sum(cost for _, cost in everything), 0, []
    for _, cost in everything:
        running += cost
        distances.append(abs(running - total * (1 - share)))
    cut = everything[int(np.argmin(distances))][0]
    return [best(units, sum(s > cut for s, *_ in units)) for units in (heads, channels)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("share", "remove_heads"), [(0.3, 5), pytest.param(0.5, 8, marks=pytest.mark.long)])
def test_flap_keeps_the_units_of_the_slow_version(structure, metric, share, remove_heads):
    settings = Settings("flap", share, structure=structure, metric=metric, remove_heads=remove_heads)
    found = compare.run(PrunableModel(model()), TOKENS, settings).kept
    heads, channels = slow_flap(structure, metric, share, remove_heads)
    assert found["heads_kept"] == heads
    assert found["ffn_kept"] == channels
    assert found["ffn_kept_count"] == [len(row) for row in channels]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity 1\.0 is outside \(0, 1\)"),
        ({"prune_n": 5, "prune_m": 4}, r"5 of every 4 weights cannot go\. Give N and M, 0 < N <= M"),
        ({"prune_n": 2}, r"2 of every 0 weights cannot go"),
        ({"pruner": "obs"}, r"unknown pruner 'obs': known: magnitude, sparsegpt, wanda"),
        ({"structure": "AM"}, r"unknown structure 'AM': did you mean AL-MM, AL-AM"),
        ({"damping": 0.0}, r"SparseGPT cannot prune 128 columns at a time with damping 0\.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**{"method": "owl", "sparsity": 0.5, **changes})


def test_counts_that_no_group_has_are_refused():
    settings = Settings("owl", 0.5, outlier_multiple=6, strength=40, prune_n=4, prune_m=8)
    with pytest.raises(ConfigError, match=r"strength 40 has blocks lose -?\d+ to \d+ of every 8 weights\. Lower it"):
        compare.run(PrunableModel(model()), TOKENS, settings)
    with pytest.raises(ConfigError, match=r"q_proj has 32 inputs, which do not divide into groups of 5"):
        compare.run(PrunableModel(model()), TOKENS, Settings("wanda", 0.5, prune_n=2, prune_m=5))
