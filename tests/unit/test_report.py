"""The report on trees of artifacts that the tests write: columns, ties, escaping, gaps, and the same bytes twice."""

import csv
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from ffp import artifacts
from ffp.config import Project
from ffp.report import build, captions, collect, page, plots, tables

TITLE = "<b>Tiny</b> & 50%_of $x_1$"
SOURCE = {"kind": "local", "path": "nowhere"}
TRACE = ["evaluation", "tokens", "stage", "sparsity", "windows", "reward", "best", "keep"]
CONTRACT = [
    "model", "granularity", "sparsity", "method", "seed", "status", "block_sparsity", "model_sparsity", "ppl",
    "ppl_stderr", "search_evaluations", "search_tokens", "search_s",
]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def make_project(folder: Path, **changes) -> Project:
    corpus = {"name": "a", "source": SOURCE, "reader": "jsonl"}
    shares = dict.fromkeys(("calibration", "search", "selection", "test"), 0.25)
    files = {
        "models/tiny": {"title": TITLE, "source": SOURCE},
        "models/other": {"title": "Other", "source": SOURCE},
        "texts/words": {"title": "Words", "sources": [corpus], "shares": shares},
        "tasks/two": {
            "title": "Two", "version": "1",
            "tasks": {name: {"stock": name, "source": SOURCE} for name in ("arc_easy", "winogrande")},
        },
        "grid": {
            "title": "A <i>grid</i>", "models": ["tiny"], "text": "words", "tasks": "two", "sparsities": [0.2, 0.3],
            "methods": ["uniform", "owl", "evolutionary", "fastforward"], "results": str(folder / "results"), **changes,
        },
    }  # fmt: skip
    for name, body in files.items():
        path = folder / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body))
    return Project(folder / "config" / "grid.yaml")


def write_cell(project, path, losses, *, tokens=0, acc=0.5, scores=True, tasks=True):
    """The artifacts of a finished cell; losses: nats a token of each window."""
    folder, cell = Path(project.grid.results) / "cells" / path, project.cell(path)
    origin = artifacts.provenance(seed=cell.seed, model="cafe")
    identity = {
        "model": cell.model,
        "granularity": cell.granularity,
        "sparsity": float(cell.sparsity),
        "method": cell.method,
        "seed": cell.seed,
    }
    if cell.method != "dense":
        units = [[f"block{b:02d}.{kind}", 4, 10, 0, 1] for b in range(3) for kind in ("attention", "ffn")]
        body = {
            "status": "done",
            "reason": None,
            "cell": identity,
            "problem": {"granularity": "structured", "target": float(cell.sparsity), "units": units},
        }
        body |= {
            "problem_id": "p",
            "keep": [3, 2, 3, 4, 3, 4],
            "block_sparsity": 0.2,
            "settings": project.settings("allocate", cell),
            "provenance": origin,
        }
        artifacts.write_json(folder / "allocation.json", "ffp/allocation/1", body)
        cost = {
            "evaluations": tokens // 100,
            "n_tokens": tokens,
            "selection_tokens": 0,
            "earlier_s": 0.0,
            "wall_s": 1.5,
            "peak_mem_bytes": 1000,
        }
        artifacts.write_json(folder / "search.cost.json", "ffp/cost/1", {**cost, "provenance": origin})
        best = [float("nan"), 0.2, 0.3, 0.4] if tokens else []
        rows = [
            {"evaluation": i, "tokens": i * 100, "stage": "s", "sparsity": 0.2, "windows": 1, "reward": 0.1, "best": b,
             "keep": [3] * 6} for i, b in enumerate(best, 1)
        ]  # fmt: skip
        artifacts.write_table(folder / "trace.parquet", rows, TRACE)
    if scores:
        artifacts.write_json(folder / "scores.json", "ffp/scores/1", score_body(project, cell, losses, acc, tasks))


def score_body(project, cell, losses, acc, tasks):
    series = pd.Series(losses)
    value = float(2.718281828459045 ** series.mean())
    figure = {"value": acc, "stderr": 0.1}
    both = {
        "arc_easy": {
            "version": 1.0,
            "hash": "h1",
            "n": 32,
            "n_total": 2376,
            "metrics": {"acc": {"value": 0.1, "stderr": 0.05}, "acc_norm": figure},
        },
        "winogrande": {"version": 1.0, "hash": "h2", "n": 32, "n_total": 1267, "metrics": {"acc": figure}},
    }
    return {
        "status": "done", "reason": None,
        "block_sparsity": float(cell.sparsity), "model_sparsity": 0.9 * float(cell.sparsity),
        "params": {"dense": 1000, "kept": 900}, "tasks": both if tasks else {},
        "ppl": {"value": value, "stderr": value * float(series.sem()), "n_windows": len(losses), "context": 64,
                "n_tokens": 63 * len(losses), "loss_by_window": losses},
        "cost": {"wall_s": 2.0, "peak_mem_bytes": 2000},
        "settings": project.settings("evaluate", cell), "provenance": artifacts.provenance(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Project, Path]:
    """A grid in every state and its report, built once; tests only read it."""
    folder = tmp_path_factory.mktemp("grid")
    project = make_project(folder)
    fill(project)
    return project, build(project, folder / "report").parent


def fill(project: Project) -> None:
    """Sparsity 0.20 finished, 0.30 in every other state."""
    cell = "tiny/structured/"
    write_cell(project, cell + "s0.00/dense/seed0", [3.0, 3.5, 2.5])
    write_cell(project, cell + "s0.20/uniform/seed0", [3.60, 4.05, 3.20])
    write_cell(project, cell + "s0.20/owl/seed0", [3.4, 3.9, 2.9])
    write_cell(project, cell + "s0.20/evolutionary/seed0", [3.41, 3.88, 2.92], tokens=400)
    write_cell(project, cell + "s0.20/fastforward/seed0", [3.5, 4.0, 3.0], tokens=300)
    write_cell(project, cell + "s0.30/uniform/seed0", [4.0, 4.5, 3.5])
    write_cell(project, cell + "s0.30/owl/seed0", [1.0], scores=False)
    broken = Path(project.grid.results) / "cells" / cell / "s0.30/evolutionary/seed0/allocation.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


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
    table = artifacts.read_table(report / "comparison.parquet")
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
    artifacts.write_json(path / "scores.json", "ffp/scores/1", {"status": "failed", "reason": "ran out of memory"})
    row = next(r.row for r in collect.collect(project) if r.cell.method == "owl")
    assert (row["status"], row["reason"]) == ("failed", "ran out of memory")


def test_an_artifact_without_its_fields_is_a_failed_row(project):
    path = Path(project.grid.results) / "cells/tiny/structured/s0.00/dense/seed0/scores.json"
    artifacts.write_json(path, "ffp/scores/1", {"status": "done"})
    row = collect.collect(project)[0].row
    assert row["status"] == "failed" and "lacks what its schema promises: KeyError('ppl')" in row["reason"]


def test_an_allocation_that_cannot_be_drawn_is_a_failed_row(project):
    write_cell(project, "tiny/structured/s0.20/owl/seed0", [1.0, 2.0])
    path = Path(project.grid.results) / "cells/tiny/structured/s0.20/owl/seed0/allocation.json"
    body = artifacts.read_json(path, "ffp/allocation/1")
    body["keep"][0] = 9
    artifacts.write_json(path, "ffp/allocation/1", body)
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
    marks = tables.best_and_ties(collect.collect(project), "ppl")
    at20 = {path.split("/")[3]: mark for path, mark in marks.items() if "s0.20" in path}
    # owl is best; evolutionary differs by less than its paired error; the others are worse on every window alike.
    assert at20 == {"owl": "best", "evolutionary": "tie"}
    assert not [path for path in marks if "s0.30" in path], "one finished row is not a comparison"


def test_without_window_losses_both_errors_count(project):
    fill(project)
    records = [r for r in collect.collect(project) if r.done]
    for record in records:
        record.scores["ppl"].pop("loss_by_window")
    one, other = records[1], records[2]
    expected = (one.row["ppl_stderr"] ** 2 + other.row["ppl_stderr"] ** 2) ** 0.5
    assert tables.difference_stderr(one, other, "ppl") == pytest.approx(expected)
    assert tables.best_and_ties(records, "ppl")["tiny/structured/s0.20/uniform/seed0"] == "tie"


def test_paired_error_equals_that_of_resampled_windows(project):
    """The delta method against a bootstrap over windows."""
    import numpy as np

    generator = np.random.default_rng(0)
    base = generator.normal(3, 0.4, 200)
    losses = [list(base), list(base + generator.normal(0.1, 0.05, 200))]
    for name, values in zip(("uniform", "owl"), losses, strict=True):
        write_cell(project, f"tiny/structured/s0.20/{name}/seed0", values)
    one, other = (r for r in collect.collect(project) if r.done)
    draws = generator.integers(0, 200, (4000, 200))
    spread = np.std(np.exp(np.array(losses[0])[draws].mean(1)) - np.exp(np.array(losses[1])[draws].mean(1)))
    assert tables.difference_stderr(one, other, "ppl") == pytest.approx(spread, rel=0.06)


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
    assert parsed.loads and all(value.startswith("data:") for value in parsed.loads)
    assert not re.search(r"https?://|@import|url\(", source)
    assert "default-src 'none'" in source
    assert "ffp evaluate --config" in parsed.text and "--cut" in parsed.text


def test_commands_quote_their_paths_and_are_three_for_a_pruned_cell(tmp_path):
    project = make_project(tmp_path, results="a b")
    dense, pruned = collect.collect(project)[:2]
    assert [line.split()[1] for line in page.commands(project, pruned)] == ["allocate", "apply", "evaluate"]
    assert page.commands(project, pruned)[0].endswith("--out 'a b/cells/tiny/structured/s0.20/uniform/seed0'")
    (line,) = page.commands(project, dense)
    assert line.startswith("ffp evaluate ") and "--cut" not in line and "--tasks-dir data/tasks/two" in line


def test_latex_and_markdown_escape_labels(tmp_path):
    project = make_project(tmp_path, models=["tiny", "other"])
    fill(project)
    table = tables.comparison(project, collect.collect(project))
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
    assert tables.comparison(project, records).headings[:2] == ["sparsity (%)", "method"]
    assert captions.table(project, records).startswith(f"Model: {TITLE}.\nGranularity: structured.\nSeed: 0.\n")


def test_two_builds_give_the_same_bytes(built, tmp_path):
    project, report = built
    assert build(project, tmp_path / "again") == tmp_path / "again" / "index.html"
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        for folder in (report, tmp_path / "again")
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == {
        "comparison.csv", "comparison.md", "comparison.tex", "comparison.parquet", "metrics.json", "index.html",
        "quality_cost.svg", "quality_cost.png", "anytime.svg", "anytime.png", "allocation.svg", "allocation.png",
    }  # fmt: skip


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
    assert list(tables.best_and_ties(records, "ppl").values()) == ["best", "tie"]


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
