"""The report on trees of artifacts that the tests write: columns, ties, escaping, gaps, and the same bytes twice."""

import base64
import csv
import gzip
import hashlib
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ffp.config import Experiment
from ffp.core.errors import ConfigError
from ffp.report import build, captions, collect, details, plots, tables
from ffp.report.groups import best_and_ties, difference_stderr, group
from ffp.report.published import references
from ffp.store.files import read_json, read_table, write_json
from ffp.store.provenance import provenance
from tests.helpers.cells import TITLE, fill, make_project, write_cell

CONTRACT = [
    "model", "granularity", "sparsity", "method", "seed", "status", "block_sparsity", "model_sparsity", "ppl",
    "ppl_stderr", "search_evaluations", "search_tokens", "search_s",
]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Experiment:
    return make_project(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Experiment, Path]:
    """A grid in every state and its report, built once; tests only read it."""
    folder = tmp_path_factory.mktemp("grid")
    project = make_project(folder)
    fill(project)
    return project, build(project, folder / "report").parent


def groups_of(project):
    return group(collect.collect(project))


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_markers_of_one_cost_hide_neither_each_other_nor_behind_the_axis():
    many = [(0.0, 100.0 + place) for place in range(12)]
    points = [*many, (0.0, 5000.0), (20_000.0, 100.0), (20_100.0, 101.0), (30_000.0, 100.0)]
    offsets = plots.shifts(points)
    assert len({round(offset, 3) for offset in offsets[:12]}) == 12
    assert max(map(abs, offsets)) == pytest.approx(plots.ROOM / 2)
    assert offsets[12] == offsets[15] == 0  # apart in perplexity, apart in cost
    assert offsets[14] - offsets[13] == plots.SPACING


def test_figures_of_many_methods_with_long_names_keep_their_panels(tmp_path):
    names = [f"uniform-under-a-rather-long-name-{place}" for place in range(24)]
    project = make_project(tmp_path, methods=names, variants={name: {"use": "uniform"} for name in names})
    for place, name in enumerate(names):
        write_cell(project, f"tiny/structured/s0.20/{name}/seed0", [2.0 + place / 10, 8.0])
    for make in (plots.quality_cost, plots.allocation):
        figure = make(project, groups_of(project))
        figure.draw_without_rendering()
        height = figure.get_figheight()
        assert all(axis.get_position().height * height > 2 for axis in figure.axes if axis.get_title())
        low, _ = figure.axes[0].get_ylim()
        assert make is plots.allocation or low > 1  # logarithmic, bars that reach below zero or not


def test_leading_columns_are_the_contract_and_csv_is_exact(built):
    project, report = built
    rows = read_csv(report)
    assert list(rows[0])[:13] == CONTRACT
    assert list(rows[0])[13:22] == [
        "search_peak_mem_bytes", "arc_easy_acc", "arc_easy_acc_stderr", "arc_easy_acc_norm", "arc_easy_acc_norm_stderr",
        "arc_easy_n", "winogrande_acc", "winogrande_acc_stderr", "winogrande_n",
    ]  # fmt: skip
    uniform = next(row for row in rows if row["method"] == "uniform" and row["sparsity"] == "0.2")
    scores = json.loads(
        (Path(project.grid.results) / "cells/tiny/structured/s0.20/uniform/seed0/scores.json").read_text()
    )
    assert float(uniform["ppl"]) == scores["ppl"]["value"]
    assert float(uniform["mean_acc"]) == pytest.approx((0.5 + 0.5) / 2), "acc_norm where there is one, otherwise acc"
    assert float(uniform["mean_acc_stderr"]) == pytest.approx((0.1**2 + 0.1**2) ** 0.5 / 2)
    table = read_table(report / "comparison.parquet")
    assert list(table.columns) == list(rows[0])
    assert len(table) == len(rows) == 9


def test_every_cell_keeps_a_row_with_its_state_and_reason(built):
    states = {(row["sparsity"], row["method"]): (row["status"], row["reason"]) for row in read_csv(built[1])}
    assert states["0.2", "fastforward"] == ("done", "")
    assert states["0.3", "owl"][0] == "missing" and "scores.json is not there yet" in states["0.3", "owl"][1]
    assert states["0.3", "evolutionary"][0] == "failed" and "cannot be read" in states["0.3", "evolutionary"][1]
    assert states["0.3", "fastforward"][0] == "missing" and "allocation.json" in states["0.3", "fastforward"][1]


def test_a_method_that_does_not_serve_a_granularity_is_skipped_with_the_reason(tmp_path):
    project = make_project(tmp_path, granularities=["structured", "unstructured"])
    records = collect.collect(project)
    skipped = [r for r in records if r.row["status"] == "skipped"]
    assert [(r.cell.granularity, r.cell.method, r.cell.sparsity) for r in skipped] == [
        ("unstructured", "fastforward", "0.20"), ("unstructured", "fastforward", "0.30"),
    ]  # fmt: skip
    assert skipped[0].row["reason"] == "fastforward serves structured pruning only"
    assert len(records) == len(list(project.cells())) + 2


def test_a_cell_that_calls_itself_skipped_or_failed_is_believed(project):
    path = Path(project.grid.results) / "cells/tiny/structured/s0.20/owl/seed0"
    write_cell(project, "tiny/structured/s0.20/owl/seed0", [1.0, 2.0], scores=False)
    write_json(path / "scores.json", "ffp/scores/1", {"status": "failed", "reason": "ran out of memory"})
    row = next(r.row for r in collect.collect(project) if r.cell.method == "owl")
    assert (row["status"], row["reason"]) == ("failed", "ran out of memory")


def test_an_artifact_without_its_fields_is_a_failed_row(project):
    path = Path(project.grid.results) / "cells/tiny/structured/s0.00/dense/seed0/scores.json"
    write_json(path, "ffp/scores/1", {"status": "done"})
    row = collect.collect(project)[0].row
    assert row["status"] == "failed" and "lacks what its schema promises: KeyError('ppl')" in row["reason"]


def test_an_allocation_that_cannot_be_drawn_is_a_failed_row(project):
    write_cell(project, "tiny/structured/s0.20/owl/seed0", [1.0, 2.0])
    path = Path(project.grid.results) / "cells/tiny/structured/s0.20/owl/seed0/allocation.json"
    body = read_json(path, "ffp/allocation/2")
    body["keep"][0] = 9
    write_json(path, "ffp/allocation/2", body)
    row = next(r.row for r in collect.collect(project) if r.cell.method == "owl")
    assert row["status"] == "failed" and "block00.attention keeps 9 of 4 units" in row["reason"]


@pytest.mark.parametrize("finished", [False, True])
def test_empty_and_partial_grids_render(project, tmp_path, finished):
    if finished:
        write_cell(project, "tiny/structured/s0.00/dense/seed0", [3.0, 3.1])
    build(project, tmp_path / "report")
    for name in ("quality_cost", "anytime", "allocation"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Incomplete: " in (tmp_path / "report" / "index.html").read_text()


def test_best_is_bold_and_what_is_within_the_error_is_tied(project):
    fill(project)
    marks = best_and_ties(groups_of(project), "ppl")
    at20 = {path.split("/")[3]: mark for path, mark in marks.items() if "s0.20" in path}
    # owl is best; evolutionary differs by less than its paired error; the others are worse on every window alike.
    assert at20 == {"owl": "best", "evolutionary": "tie"}
    assert not [path for path in marks if "s0.30" in path], "one finished row is not a comparison"


def test_without_window_losses_both_errors_count(project):
    fill(project)
    groups = [g for g in groups_of(project) if g.done]
    for member in groups:
        member.records[0].scores["ppl"].pop("loss_by_window")
    one, other = groups[1], groups[2]
    expected = (one.row["ppl_stderr"] ** 2 + other.row["ppl_stderr"] ** 2) ** 0.5
    assert difference_stderr(one, other, "ppl") == pytest.approx(expected)
    assert best_and_ties(groups, "ppl")["tiny/structured/s0.20/uniform"] == "tie"


def test_paired_error_equals_that_of_resampled_windows(project):
    """The delta method against a bootstrap over windows."""
    generator = np.random.default_rng(0)
    base = generator.normal(3, 0.4, 200)
    losses = [list(base), list(base + generator.normal(0.1, 0.05, 200))]
    for name, values in zip(("uniform", "owl"), losses, strict=True):
        write_cell(project, f"tiny/structured/s0.20/{name}/seed0", values)
    one, other = (g for g in groups_of(project) if g.done)
    draws = generator.integers(0, 200, (4000, 200))
    spread = np.std(np.exp(np.array(losses[0])[draws].mean(1)) - np.exp(np.array(losses[1])[draws].mean(1)))
    assert difference_stderr(one, other, "ppl") == pytest.approx(spread, rel=0.06)


class Page(html.parser.HTMLParser):
    """Collects the tags and whatever a browser would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action", "poster")]
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_data(self, data):
        self.text += data


def test_page_escapes_labels_and_loads_nothing(built):
    source = (built[1] / "index.html").read_text()
    parsed = Page()
    parsed.feed(source)
    assert "b" not in parsed.tags and "i" not in parsed.tags
    assert TITLE in parsed.text and "A <i>grid</i>" in parsed.text
    assert parsed.loads and all(value.startswith(("data:", "#")) for value in parsed.loads)
    assert not re.search(r"<(script|link)[^>]+https?:|@import|url\((?![\"']?(#|data:))", source)
    assert "default-src 'none'" in source
    identifiers = re.findall(r'<[^>]+ id="([^"]+)"', source)
    assert len(identifiers) == len(set(identifiers))


def packed_details(source: str) -> dict:
    packed = re.search(r'id="cell-details">([^<]+)<', source)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_each_cell_tells_its_commands_provenance_and_logs(project, tmp_path, monkeypatch):
    fill(project)
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "logs/evaluate/tiny/structured/s0.30/owl/seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("12:00:00 started\rprogress 1\rprogress 2\nffp evaluate: data/text is missing. Fetch it.\n")
    found = packed_details(build(project, tmp_path / "report").read_text())
    assert list(found) == [record.cell.path for record in collect.collect(project)]
    cell = found["tiny/structured/s0.20/fastforward/seed0"]
    assert [line.split()[1] for line in cell["commands"]] == ["allocate", "apply", "evaluate"]
    assert ["commit", provenance()["commit"]] in cell["facts"]["provenance of the evaluation"]
    assert ["model", "cafe"] in cell["facts"]["provenance of the search"]
    assert ["n_tokens", "300"] in cell["facts"]["search cost"]
    failed = found["tiny/structured/s0.30/owl/seed0"]
    assert (failed["status"], failed["reason"]) == ("failed", "ffp evaluate: data/text is missing. Fetch it.")
    assert failed["logs"] == {"evaluate": "progress 2\nffp evaluate: data/text is missing. Fetch it."}


def test_a_log_that_ends_in_a_traceback_is_a_failure_and_an_interruption_is_not(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method, text in (
        ("uniform", "Traceback (most recent call last):\n  ...\ntorch.OutOfMemoryError: 2 GB\n"),
        ("owl", "ffp apply: interrupted; start it again to go on.\n"),
    ):
        log = tmp_path / f"logs/apply/tiny/structured/s0.20/{method}/seed0.log"
        log.parent.mkdir(parents=True)
        log.write_text(text)
    rows = {r.cell.method: r.row for r in collect.collect(project) if r.cell.sparsity == "0.20"}
    assert (rows["uniform"]["status"], rows["uniform"]["reason"]) == ("failed", "torch.OutOfMemoryError: 2 GB")
    assert rows["owl"]["status"] == "missing"


def test_commands_quote_their_paths_and_are_three_for_a_pruned_cell(tmp_path):
    project = make_project(tmp_path, results="a b")
    dense, pruned = collect.collect(project)[:2]
    assert [line.split()[1] for line in details.commands(project, pruned)] == ["allocate", "apply", "evaluate"]
    assert details.commands(project, pruned)[0].endswith("--out 'a b/cells/tiny/structured/s0.20/uniform/seed0'")
    (line,) = details.commands(project, dense)
    assert line.startswith("ffp evaluate ") and "--cut" not in line and "--tasks-dir data/tasks/two" in line


def test_latex_and_markdown_escape_labels(tmp_path):
    project = make_project(tmp_path, models=["tiny", "other"])
    fill(project)
    table = tables.comparison(project, groups_of(project))
    tex = tables.latex(table)
    assert r"\textless{}b\textgreater{}Tiny\textless{}/b\textgreater{} \& 50\%\_of \$x\_1\$" in tex
    columns = re.search(r"tabular\}\{(\w+)\}", tex)[1]
    assert all(
        len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in tex.splitlines() if line.endswith(r"\\")
    )
    assert r"\toprule" in tex and r"\bottomrule" in tex and r"\textbf{" in tex and r"$^\dagger$" in tex
    markdown = tables.markdown(table)
    assert r"\<b\>Tiny\</b\> & 50%\_of" in markdown and "**" in markdown and "†" in markdown
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()} == {len(columns) + 1}


def test_columns_that_never_vary_move_to_the_caption(project):
    fill(project)
    records = collect.collect(project)
    assert tables.comparison(project, group(records)).headings[:2] == ["sparsity (%)", "method"]
    assert captions.tables(project, records)["comparison"][:3] == [
        f"Model: {TITLE}.",
        "Granularity: structured.",
        "Seed: 0.",
    ]


def test_two_builds_give_the_same_bytes(built, tmp_path):
    project, report = built
    assert build(project, tmp_path / "again") == tmp_path / "again" / "index.html"
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        for folder in (report, tmp_path / "again")
    ]
    assert digests[0] == digests[1]
    figures = {f"{name}.{kind}" for name in plots.FIGURES for kind in ("svg", "pdf", "png")}
    texts = {f"{name}.{kind}" for name in ("comparison", "tasks", "ablation") for kind in ("md", "tex")}
    full = {f"{name}.{kind}" for name in ("comparison", "summary") for kind in ("csv", "parquet")}
    assert set(digests[0]) == {"index.html", "metrics.json"} | figures | texts | full


def test_metrics_are_flat_numbers_of_finished_cells(built):
    found = json.loads((built[1] / "metrics.json").read_text())
    assert found["cells_done"] == 6 and found["cells"] == 9
    assert found["tiny/structured/s0.20/evolutionary/seed0/search_tokens"] == 400
    assert all(isinstance(value, int | float) for value in found.values())


def test_caption_says_what_was_not_controlled_and_only_that(project, tmp_path):
    fill(project)
    notes = "\n".join(captions.uncontrolled(project, collect.collect(project)))
    assert "one seed for every search" in notes
    assert "seeded sample of 32 documents" in notes
    assert "context of 64 tokens" not in notes and "a context of 64 do not compare" in notes
    assert "Incomplete: 6 done, 1 failed, 2 missing of 9 cells." in notes
    assert "different" not in notes
    seeds = make_project(tmp_path / "other", seeds=[0, 1])
    assert not any("one seed" in note for note in captions.uncontrolled(seeds, collect.collect(seeds)))


def test_a_changed_setting_is_noted(project, tmp_path):
    fill(project)
    changed = make_project(tmp_path, evaluation={"windows": 7})
    record = next(r for r in collect.collect(changed) if r.done)
    assert record.notes == [
        "scores.json was made with other settings than the configuration has now (evaluation): run it again"
    ]


def test_unknown_errors_make_ties(project):
    for name, loss in (("uniform", 3.0), ("owl", 4.0)):
        write_cell(project, f"tiny/structured/s0.20/{name}/seed0", [loss, loss])
    records = [r for r in collect.collect(project) if r.done]
    for record in records:
        record.scores["ppl"]["loss_by_window"], record.row["ppl_stderr"] = [1.0], None
    assert list(best_and_ties(group(records), "ppl").values()) == ["best", "tie"]


def test_seeds_become_a_mean_and_a_spread(tmp_path):
    project = make_project(tmp_path, seeds=[0, 1, 2], sparsities=[0.2])
    losses = [[3.4, 3.9, 2.9], [3.5, 4.1, 2.9], [3.3, 3.8, 3.0]]
    for seed, windows in enumerate(losses):
        write_cell(project, f"tiny/structured/s0.20/fastforward/seed{seed}", windows, tokens=100 * (seed + 2))
    write_cell(project, "tiny/structured/s0.20/uniform/seed0", [3.6, 4.05, 3.2])
    build(project, tmp_path / "report")
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "report/summary.csv").open())}
    ppl = [np.exp(np.mean(windows)) for windows in losses]
    assert float(rows["fastforward"]["ppl"]) == pytest.approx(np.mean(ppl))
    assert float(rows["fastforward"]["ppl_sd"]) == pytest.approx(np.std(ppl, ddof=1))
    assert (rows["fastforward"]["seeds"], rows["uniform"]["seeds"], rows["uniform"]["ppl_sd"]) == ("3", "1", "")
    tex = (tmp_path / "report/comparison.tex").read_text()
    assert f"{np.mean(ppl):.2f} $\\pm$ {np.std(ppl, ddof=1):.2f}" in tex
    assert rows["evolutionary"]["status"] == "missing"
    assert "3 seeds" in (tmp_path / "report/index.html").read_text()


def test_error_of_a_difference_adds_the_seeds_to_the_windows(tmp_path):
    """Against a bootstrap over windows and over seeds."""
    project = make_project(tmp_path, seeds=list(range(6)), sparsities=[0.2])
    rng = np.random.default_rng(0)
    base = rng.normal(3, 0.4, 200)
    runs = np.array([base + rng.normal(0.1, 0.05) + rng.normal(0, 0.05, 200) for _ in range(6)])
    write_cell(project, "tiny/structured/s0.20/owl/seed0", list(base))
    for seed, losses in enumerate(runs):
        write_cell(project, f"tiny/structured/s0.20/fastforward/seed{seed}", list(losses))
    one, other = sorted((g for g in groups_of(project) if g.done), key=lambda g: len(g.done))
    gaps = []
    for _ in range(3000):
        windows, seeds = rng.integers(0, 200, 200), rng.integers(0, 6, 6)
        gaps.append(np.exp(runs[seeds][:, windows].mean(1)).mean() - np.exp(base[windows].mean()))
    # Six seeds: the bootstrap's variance of their mean is 5/6 of the unbiased one.
    assert difference_stderr(one, other, "ppl") == pytest.approx(np.std(gaps) * (6 / 5) ** 0.5, rel=0.1)


def test_anytime_band_holds_every_seed_at_every_cost(tmp_path):
    project = make_project(tmp_path, seeds=[0, 1])
    for seed in (0, 1):
        write_cell(project, f"tiny/structured/s0.20/fastforward/seed{seed}", [3.0, 3.1], tokens=400)
    records = [r for r in collect.collect(project) if r.trace is not None]
    records[1].trace = pd.DataFrame({"tokens": [50, 250, 500], "best": [0.1, 0.1, 0.5]})
    tokens, curves = plots.progress(records)
    for record, curve in zip(records, curves, strict=True):
        known = record.trace.dropna()
        slow = [known["best"][known["tokens"] <= cost].max() for cost in tokens]
        assert list(curve) == slow
    assert tokens[0] == 200 and tokens[-1] == 500


def test_tiles_are_drawn_for_the_modules_that_each_granularity_has(tmp_path):
    project = make_project(tmp_path, granularities=["structured", "unstructured", "n-of-4"], sparsities=[0.5])
    names = {"structured": ["attn", "ffn"], "unstructured": ["attn.q", "attn.o", "ffn.up"], "n-of-4": [""]}
    for granularity, parts in names.items():
        path = f"tiny/{granularity}/s0.50/uniform/seed0"
        write_cell(project, path, [3.0, 3.1])
        file = Path(project.grid.results) / "cells" / path / "allocation.json"
        body = read_json(file, "ffp/allocation/2")
        sizes = {"n_units": 4, "fixed_params": 0, "min_keep": 1, "bundle": 1}
        decisions = [
            {"name": f"block{b:02d}.{part}".rstrip("."), "params_per_unit": 10 * (i + 1), **sizes}
            for b in (0, 1) for i, part in enumerate(parts)
        ]  # fmt: skip
        body |= {"keep": [1, 2, 4][: len(parts)] * 2, "problem": {**body["problem"], "decisions": decisions}}
        write_json(file, body.pop("schema"), body)
    groups = [g for g in groups_of(project) if g.method == "uniform"]
    shares = {g.block[1]: plots.mean_shares(g) for g in groups}
    # q keeps 1 of 4 units of 10 parameters, o 2 of 4 of 20: together 50 of 120.
    assert shares["unstructured"] == {"attn": {0: 50 / 120, 1: 50 / 120}, "ffn": {0: 1.0, 1: 1.0}}
    titles = [axis.get_title().split(", ")[-1] for axis in plots.allocation(project, groups).axes]
    assert titles[:-1] == ["attention", "FFN", "attention", "FFN", "whole blocks"]


def test_a_long_title_stays_within_its_panel(project):
    named = project.models["tiny"].model_copy(update={"title": "A model whose name goes on and on " * 4})
    project.models["tiny"] = named
    fill(project)
    figure = plots.FIGURES["quality_cost"](project, groups_of(project))
    figure.draw_without_rendering()
    assert figure.axes
    for axis in figure.axes:
        assert axis.title.get_window_extent().width <= 1.1 * axis.get_window_extent().width


def test_ablation_compares_a_variant_with_its_base(tmp_path):
    variants = {"owl-strong": {"use": "owl", "strength": 0.2, "compensate": "ridge"}}
    project = make_project(tmp_path, methods=["owl-strong", "owl", "uniform"], variants=variants, sparsities=[0.2])
    write_cell(project, "tiny/structured/s0.20/owl/seed0", [3.4, 3.9, 2.9])
    write_cell(project, "tiny/structured/s0.20/owl-strong/seed0", [3.3, 3.8, 2.8])
    table = tables.ablation(project, groups_of(project))
    shown = [dict(zip(table.headings, (e.text for e in line.entries), strict=True)) for line in table.lines]
    assert [(row["base"], row["method"], row["change"]) for row in shown] == [
        ("owl", "owl", tables.DASH), ("owl", "owl-strong", "strength: 0.2; compensate: ridge"),
    ]  # fmt: skip
    assert shown[1]["verdict"] == "better" and shown[1]["Δ PPL"].startswith("\N{MINUS SIGN}")
    other = make_project(tmp_path / "other")
    assert not tables.ablation(other, groups_of(other)).lines


def published(tmp_path, **changes):
    """A project whose model is OPT-125M, and one published set for it."""
    project = make_project(tmp_path, tasks=None, evaluation={"context": 2048})
    body = {"source": "A & B, 2024", "status": "secondary source", "granularity": "structured", "text": "words",
            "context": 2048, "calibration": "C4", "values": {"opt": {"Theirs": {"0.20": 31.5}}}, **changes}  # fmt: skip
    repo = {"kind": "hub", "repo": "facebook/opt-125m", "revision": "0" * 40}
    (tmp_path / "config/models/tiny.yaml").write_text(json.dumps({"title": "OPT", "source": repo}))
    known = {"models": {"opt": ["Facebook/OPT-125m"]}, "sets": [body]}
    (tmp_path / "config/published.yaml").write_text(json.dumps(known))
    return Experiment(project.file)


def test_published_rows_stand_beside_ours_and_are_never_ranked(tmp_path):
    project = published(tmp_path)
    for method in ("uniform", "owl"):
        write_cell(project, f"tiny/structured/s0.20/{method}/seed0", [4.0, 4.1], tasks=False)
    table = tables.comparison(project, groups_of(project))
    (line,) = [line for line in table.lines if line.group is None]
    assert line.block == ("tiny", "structured", "0.20") and not any(entry.mark for entry in line.entries)
    assert line.entries[-1].text == "published, not measured here"
    build(project, tmp_path / "report")
    row = r"\textit{20} & \textit{Theirs} & \textit{--} & \textit{31.50}"
    assert row in (tmp_path / "report/comparison.tex").read_text()
    note = "A & B, 2024 (secondary source); context 2048, calibration: C4"
    assert note in (tmp_path / "report/comparison.md").read_text()
    assert "Theirs" not in (tmp_path / "report/comparison.csv").read_text()


@pytest.mark.parametrize(
    "changes", [{"context": 128}, {"text": "other"}, {"granularity": "unstructured"}, {"values": {}}]
)
def test_published_rows_of_other_conditions_are_not_shown(tmp_path, changes):
    assert not references(published(tmp_path, **changes))


def test_published_config_names_an_unknown_model(tmp_path):
    with pytest.raises(ConfigError, match=r"model 'opd' has no entry under models: did you mean opt\?"):
        published(tmp_path, values={"opd": {"Theirs": {"0.20": 1.0}}})


def test_front_holds_the_points_that_nothing_beats():
    points = [(0, 50.0), (0, 40.0), (10, 45.0), (20, 30.0), (30, 30.0), (40, 20.0)]
    slow = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    assert plots.pareto(points) == sorted(slow)


def test_looks_are_distinct_and_do_not_depend_on_the_grid(tmp_path):
    variants = {f"v{i}": {"use": "owl"} for i in range(12)}
    many = plots.looks(make_project(tmp_path / "many", methods=["owl", *variants], variants=variants))
    few = plots.looks(make_project(tmp_path / "few", methods=["owl"]))
    assert few["owl"] == many["owl"]
    assert len(set(many.values())) == len(many)
