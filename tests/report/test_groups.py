"""Means over seeds, and the standard errors behind best and ties."""

import csv

import numpy as np
import pytest

from ffp.report import build, captions
from ffp.report.collect import collect
from ffp.report.groups import best_and_ties, difference_stderr, group, winners
from ffp.store.schemas import ScoresFile
from tests.helpers.cells import edit, files_of, fill, make_experiment, write_cell


def groups_of(experiment):
    return group(collect(experiment))


def test_best_is_bold_and_what_is_within_the_error_is_tied(experiment):
    fill(experiment)
    marks = best_and_ties(groups_of(experiment), "ppl")
    at20 = {path.split("/")[3]: mark for path, mark in marks.items() if "s0.20" in path}
    # owl is best; evolutionary differs by less than its paired error; the others are worse on every window alike.
    assert at20 == {"owl": "best", "evolutionary": "tie"}
    assert not [path for path in marks if "s0.30" in path], "one finished row is not a comparison"


def test_without_window_losses_both_errors_count(experiment):
    fill(experiment)
    for record in collect(experiment):
        if record.done:
            scores = files_of(experiment, record.cell.path).scores
            edit(ScoresFile, scores, lambda body: body["ppl"].update(loss_by_window=[]))
    groups = [g for g in groups_of(experiment) if g.done]
    one, other = groups[1], groups[2]
    expected = (one.row["ppl_stderr"] ** 2 + other.row["ppl_stderr"] ** 2) ** 0.5
    assert difference_stderr(one, other, "ppl") == pytest.approx(expected)
    assert best_and_ties(groups, "ppl")["tiny/structured/s0.20/uniform"] == "tie"


def test_paired_error_equals_that_of_resampled_windows(experiment):
    """The delta method against a bootstrap over windows."""
    generator = np.random.default_rng(0)
    base = generator.normal(3, 0.4, 200)
    losses = [list(base), list(base + generator.normal(0.1, 0.05, 200))]
    for name, values in zip(("uniform", "owl"), losses, strict=True):
        write_cell(experiment, f"tiny/structured/s0.20/{name}/seed0", values)
    one, other = (g for g in groups_of(experiment) if g.done)
    draws = generator.integers(0, 200, (4000, 200))
    spread = np.std(np.exp(np.array(losses[0])[draws].mean(1)) - np.exp(np.array(losses[1])[draws].mean(1)))
    assert difference_stderr(one, other, "ppl") == pytest.approx(spread, rel=0.06)


@pytest.fixture
def one_window(experiment):
    """Cells of a single window: owl and fastforward are the best, and equal."""
    for name, loss in (("uniform", 4.0), ("owl", 3.0), ("evolutionary", 3.1), ("fastforward", 3.0)):
        path = f"tiny/structured/s0.20/{name}/seed0"
        write_cell(experiment, path, [loss, loss], tokens=100 * (name in ("evolutionary", "fastforward")))
        edit(
            ScoresFile,
            files_of(experiment, path).scores,
            lambda body: body["ppl"].update(n_windows=1, loss_by_window=body["ppl"]["loss_by_window"][:1], stderr=None),
        )
    return experiment


def test_without_a_known_error_only_equals_tie(one_window):
    groups = groups_of(one_window)
    marks = {path.rpartition("/")[2]: mark for path, mark in best_and_ties(groups, "ppl").items()}
    assert marks == {"owl": "best", "fastforward": "tie"}
    (winner,) = winners(groups)
    assert ([tie.method for tie in winner.ties], winner.cheaper) == (["fastforward"], None)
    assert difference_stderr(*(g for g in groups if g.method in ("owl", "uniform") and g.done), "ppl") is None


def test_captions_say_which_errors_are_unknown(one_window, experiment):
    records = collect(one_window)
    said = captions.tables(one_window, records)
    assert any(line.startswith("Error unknown") and ": PPL. " in line for line in said["comparison"])
    assert all(any("Error unknown" in line for line in said[name]) for name in ("winners", "ranking", "ablation"))
    fill(experiment)
    assert not any("Error unknown" in line for lines in captions.tables(experiment, collect(experiment)).values()
                   for line in lines)  # fmt: skip


def test_a_task_without_an_error_ties_with_nothing(experiment):
    fill(experiment)
    for name, accuracy in (("uniform", 0.4), ("owl", 0.5), ("evolutionary", 0.49), ("fastforward", 0.3)):
        edit(
            ScoresFile,
            files_of(experiment, f"tiny/structured/s0.20/{name}/seed0").scores,
            lambda body, value=accuracy: body["tasks"]["winogrande"]["metrics"]["acc"].update(value=value, stderr=None),
        )
    for key in ("winogrande_acc", "mean_acc"):
        assert "tie" not in best_and_ties(groups_of(experiment), key).values()
    text = " ".join(captions.reading(experiment, collect(experiment)))
    assert "Error unknown: winogrande acc, mean accuracy. " in text


def test_seeds_become_a_mean_and_a_spread(tmp_path):
    experiment = make_experiment(tmp_path, seeds=[0, 1, 2], sparsities=[0.2])
    losses = [[3.4, 3.9, 2.9], [3.5, 4.1, 2.9], [3.3, 3.8, 3.0]]
    for seed, windows in enumerate(losses):
        write_cell(experiment, f"tiny/structured/s0.20/fastforward/seed{seed}", windows, tokens=100 * (seed + 2))
    write_cell(experiment, "tiny/structured/s0.20/uniform/seed0", [3.6, 4.05, 3.2])
    build(experiment, tmp_path / "report")
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "report/summary.csv").open())}
    ppl = [np.exp(np.mean(windows)) for windows in losses]
    assert float(rows["fastforward"]["ppl"]) == pytest.approx(np.mean(ppl))
    assert float(rows["fastforward"]["ppl_sd"]) == pytest.approx(np.std(ppl, ddof=1))
    assert (rows["fastforward"]["seeds"], rows["uniform"]["seeds"], rows["uniform"]["ppl_sd"]) == ("3", "1", "")
    tex = (tmp_path / "report/comparison.tex").read_text()
    error = float(rows["fastforward"]["ppl_stderr"])
    assert f"{np.mean(ppl):.2f} $\\pm$ {error:.2f}}} & {np.std(ppl, ddof=1):.2f} & " in tex
    assert "PPL & PPL sd & " in tex
    assert rows["evolutionary"]["status"] == "missing"
    assert "3 seeds" in (tmp_path / "report/index.html").read_text()


def test_the_error_of_a_difference_adds_the_seeds_to_the_windows(tmp_path):
    """Against a bootstrap over windows and over seeds."""
    experiment = make_experiment(tmp_path, seeds=list(range(6)), sparsities=[0.2])
    rng = np.random.default_rng(0)
    base = rng.normal(3, 0.4, 200)
    runs = np.array([base + rng.normal(0.1, 0.05) + rng.normal(0, 0.05, 200) for _ in range(6)])
    write_cell(experiment, "tiny/structured/s0.20/owl/seed0", list(base))
    for seed, losses in enumerate(runs):
        write_cell(experiment, f"tiny/structured/s0.20/fastforward/seed{seed}", list(losses))
    one, other = sorted((g for g in groups_of(experiment) if g.done), key=lambda g: len(g.done))
    gaps = []
    for _ in range(3000):
        windows, seeds = rng.integers(0, 200, 200), rng.integers(0, 6, 6)
        gaps.append(np.exp(runs[seeds][:, windows].mean(1)).mean() - np.exp(base[windows].mean()))
    # Six seeds: the bootstrap's variance of their mean is 5/6 of the unbiased one.
    assert difference_stderr(one, other, "ppl") == pytest.approx(np.std(gaps) * (6 / 5) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["provenance"].update(text="0123"),
        lambda body: body["provenance"].update(model="0123"),
        lambda body: body["ppl"].update(bos="always"),
        lambda body: body["ppl"].update(context=32),
    ],
)
def test_perplexities_of_other_windows_are_not_paired(experiment, change):
    """Another text, another tokenizer or windows of another kind: their losses do not belong together."""
    fill(experiment)
    edit(ScoresFile, files_of(experiment, "tiny/structured/s0.20/evolutionary/seed0").scores, change)
    groups = {g.method: g for g in groups_of(experiment) if g.block[2] == "0.20"}
    evolutionary, owl, uniform = (groups[name] for name in ("evolutionary", "owl", "uniform"))
    errors = [member.row["ppl_stderr"] for member in (evolutionary, owl)]
    assert difference_stderr(evolutionary, owl, "ppl") == pytest.approx(np.hypot(*errors))
    assert difference_stderr(uniform, owl, "ppl") < errors[1] / 2
    captions_of = captions.reading(experiment, collect(experiment))
    assert any("window by window where both are of the same windows, else" in line for line in captions_of)
