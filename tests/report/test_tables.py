"""The tables of a paper: escaping, ablation, published rows, and what captions say."""

import json
import re

import pytest

from ffp.config import Experiment
from ffp.core.errors import ConfigError
from ffp.report import build, captions, tables
from ffp.report.collect import collect
from ffp.report.groups import group
from ffp.report.published import references
from ffp.store.schemas import ScoresFile
from tests.helpers.cells import TITLE, edit, files_of, fill, make_experiment, score_body, write_cell


def groups_of(experiment):
    return group(collect(experiment))


def test_latex_and_markdown_escape_labels(tmp_path):
    experiment = make_experiment(tmp_path, models=["tiny", "other"])
    fill(experiment)
    table = tables.comparison(experiment, groups_of(experiment))
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


@pytest.mark.parametrize("name", ["[dev] X", "*x", "[1em]", " [y]"])
def test_a_latex_row_is_no_part_of_the_line_break_above_it(name):
    line = tables.Line(("a", "", ""), None, [tables.Entry(name), tables.Entry("1")])
    rows = tables.latex(tables.Table(["model", "PPL"], [line, line])).splitlines()
    assert rows.count(rf"{{}}{name.strip()} & 1 \\") == 2


def test_columns_that_never_vary_move_to_the_caption(experiment):
    fill(experiment)
    records = collect(experiment)
    assert tables.comparison(experiment, group(records)).headings[:2] == ["sparsity (%)", "method"]
    constants = captions.tables(experiment, records)["comparison"][:3]
    assert constants == [f"Model: {TITLE}.", "Granularity: structured.", "Seed: 0."]


def test_the_caption_says_what_was_not_controlled_and_only_that(experiment, tmp_path):
    fill(experiment)
    notes = "\n".join(captions.uncontrolled(experiment, collect(experiment)))
    assert "one seed for every search" in notes
    assert "seeded sample of 32 documents" in notes
    assert "context of 64 tokens" not in notes and "a context of 64 do not compare" in notes
    assert "Incomplete: 6 done, 1 failed, 2 missing of 9 cells." in notes
    assert "another CPU kernel" in notes
    assert "different" not in notes
    seeds = make_experiment(tmp_path / "other", seeds=[0, 1])
    notes = "\n".join(captions.uncontrolled(seeds, collect(seeds)))
    assert "one seed" not in notes and "another CPU kernel" not in notes


def test_the_ablation_compares_a_variant_with_its_base(tmp_path):
    variants = {"owl-strong": {"use": "owl", "params": {"max_deviation": 0.2}, "compensate": "ridge"}}
    methods = ["owl-strong", "owl", "uniform"]
    experiment = make_experiment(tmp_path, methods=methods, variants=variants, sparsities=[0.2])
    write_cell(experiment, "tiny/structured/s0.20/owl/seed0", [3.4, 3.9, 2.9])
    write_cell(experiment, "tiny/structured/s0.20/owl-strong/seed0", [3.3, 3.8, 2.8])
    table = tables.ablation(experiment, groups_of(experiment))
    shown = [dict(zip(table.headings, (e.text for e in line.entries), strict=True)) for line in table.lines]
    assert [(row["base"], row["method"], row["change"]) for row in shown] == [
        ("owl", "owl", tables.DASH), ("owl", "owl-strong", "max_deviation: 0.2; compensate: ridge"),
    ]  # fmt: skip
    assert shown[1]["verdict"] == "better" and shown[1]["Δ PPL"].startswith("\N{MINUS SIGN}")
    for name in ("owl", "owl-strong"):
        scores = files_of(experiment, f"tiny/structured/s0.20/{name}/seed0").scores
        edit(ScoresFile, scores, lambda body: body["ppl"].update(loss_by_window=[1.0], stderr=None))
    unknown = [entry.text for entry in tables.ablation(experiment, groups_of(experiment)).lines[1].entries]
    assert unknown[-2:] == [shown[1]["Δ PPL"].partition(" ")[0], "error unknown"]
    other = make_experiment(tmp_path / "other")
    assert not tables.ablation(other, groups_of(other)).lines


@pytest.mark.parametrize(
    "given, change",
    [
        ({"score": "wifv"}, "score: wifv"),
        ({"keep_blocks": "0"}, "keep_blocks: 0"),
        ({"attention_units": "query-heads"}, "attention_units: query-heads"),
        ({"compensate": "ridge", "compensated": True}, "compensate: ridge; compensated: True"),
        ({"fitness": "kl"}, "fitness: kl"),
        ({"init": {"from": "s0.20"}}, "init: s0.20"),
    ],
)
def test_whatever_a_variant_sets_makes_it_a_variant(given, change, tmp_path):
    methods = ["a-variant", "fastforward"]
    variants = {"a-variant": {"use": "fastforward", **given}}
    experiment = make_experiment(tmp_path, methods=methods, variants=variants, sparsities=[0.2])
    for method in methods:
        write_cell(experiment, f"tiny/structured/s0.20/{method}/seed0", [3.4, 3.9, 2.9])
    table = tables.ablation(experiment, groups_of(experiment))
    shown = [dict(zip(table.headings, (e.text for e in line.entries), strict=True)) for line in table.lines]
    assert [(row["base"], row["change"]) for row in shown] == [("fastforward", tables.DASH), ("fastforward", change)]


def published(tmp_path, grid=(), texts=(), source=(), **changes):
    """A grid whose model is OPT-125M, and one published set for it."""
    experiment = make_experiment(tmp_path, **{"tasks": None, "evaluation": {"context": 2048}, **dict(grid)})
    body = {"source": "A & B, 2024", "url": "https://arxiv.org/abs/2401.00001", "status": "secondary",
            "granularity": "structured", "text": "words", "context": 2048, "calibration": "C4",
            "values": {"opt": {"Theirs": {"0.20": 31.5}}}, **changes}  # fmt: skip
    repo = {"kind": "hub", "repo": "facebook/opt-125m", "revision": "0" * 40, **dict(source)}
    (tmp_path / "config/models/tiny.yaml").write_text(json.dumps({"title": "OPT", "source": repo}))
    known = {"models": {"opt": ["Facebook/OPT-125m"]}, "texts": dict(texts), "sets": [body]}
    (tmp_path / "config/published.yaml").write_text(json.dumps(known))
    return Experiment(experiment.file)


def test_published_rows_stand_beside_ours_and_are_never_ranked(tmp_path):
    experiment = published(tmp_path, remarks="Share of <b>width</b>")
    for method in ("uniform", "owl"):
        write_cell(experiment, f"tiny/structured/s0.20/{method}/seed0", [4.0, 4.1], tasks=False)
    table = tables.comparison(experiment, groups_of(experiment))
    (line,) = [line for line in table.lines if line.group is None]
    assert line.block == ("tiny", "structured", "0.20") and not any(entry.mark for entry in line.entries)
    assert line.entries[-1].text == "published, not measured here"
    build(experiment, tmp_path / "report")
    row = r"\textit{20} & \textit{Theirs} & \textit{--} & \textit{31.50}"
    assert row in (tmp_path / "report/comparison.tex").read_text()
    markdown = (tmp_path / "report/comparison.md").read_text()
    assert "A & B, 2024 (secondary: read in another document that quotes it)" in markdown
    assert "context 2048; calibration: C4; Share of " in markdown
    assert "Theirs" not in (tmp_path / "report/comparison.csv").read_text()


def test_published_rows_stand_under_their_own_text(tmp_path):
    """Two test texts: each published value in the column of its text, a dash in the other one."""
    grid = {"text": None, "texts": {"calibrate": "words", "test": ["words", "more"]}}
    for position, text in enumerate(("words", "more")):
        experiment = published(tmp_path / text, grid=grid, text=text)
        for method in ("uniform", "owl"):
            write_cell(experiment, f"tiny/structured/s0.20/{method}/seed0", [4.0, 4.1], tasks=False)
        table = tables.comparison(experiment, groups_of(experiment))
        (line,) = [line for line in table.lines if line.published]
        columns = [table.headings.index(f"PPL {name}") for name in ("words", "more")]
        shown = [line.entries[column].text for column in columns]
        assert shown[position] == "31.50" and shown[1 - position] == tables.DASH


def test_the_best_of_each_text_is_marked_window_by_window(tmp_path):
    """The first text's best is not the second one's."""
    experiment = make_experiment(tmp_path, text=None, texts={"calibrate": "words", "test": ["words", "more"]},
                                 tasks=None, methods=["uniform", "owl"])  # fmt: skip
    for method, (first, second) in {"uniform": (4.0, 3.0), "owl": (3.5, 3.4)}.items():
        write_cell(experiment, f"tiny/structured/s0.20/{method}/seed0", [first, first + 0.5], tasks=False)

        def add(body, second=second):
            other = score_body([second, second + 0.4], 0, False)["ppl"]
            body["ppl_further"] = {"more": {**other, "n_bytes": 500, "bits_per_byte": 1.25}}

        edit(ScoresFile, files_of(experiment, f"tiny/structured/s0.20/{method}/seed0").scores, add)
    table = tables.comparison(experiment, groups_of(experiment))
    marks = {name: [line.entries[table.headings.index(name)].mark for line in table.lines if line.group.done]
             for name in ("PPL words", "PPL more")}  # fmt: skip
    assert marks == {"PPL words": ["", "best"], "PPL more": ["best", ""]}
    entries = [line.entries[table.headings.index("bits per byte more")].text for line in table.lines if line.group.done]
    assert [entry[:5] for entry in entries] == ["1.250", "1.250"] and "bits per byte words" not in table.headings


def test_published_rows_link_their_source(tmp_path):
    experiment = published(tmp_path, remarks="Share of <b>width</b>")
    write_cell(experiment, "tiny/structured/s0.20/uniform/seed0", [4.0, 4.1], tasks=False)
    build(experiment, tmp_path / "report")
    page, address = (tmp_path / "report/index.html").read_text(), "https://arxiv.org/abs/2401.00001"
    assert f'<a href="{address}">Theirs</a>' in page
    assert re.search(rf'<li>published[^<]*<a href="{address}"[^>]*>{address}</a></li>', page)
    assert "<b>width" not in page
    assert address in (tmp_path / "report/comparison.md").read_text()
    assert address in (tmp_path / "report/comparison.tex").read_text()


def test_unconfirmed_figures_are_marked_in_their_row(tmp_path):
    for status, expected in (("primary", False), ("secondary", False), ("unconfirmed", True)):
        ((reference,),) = references(published(tmp_path / status, status=status)).values()
        assert ("unconfirmed" in reference.label) == expected and f"({status}: " in reference.note


def test_published_rows_are_found_at_the_sparsities_of_their_own_granularity(tmp_path):
    values = {"opt": {"Theirs": {"0.00": 27.7, "0.30": 1.0, "0.50": 2.0, "0.60": 3.0}}}
    own = {"sparsities": [0.3], "own_sparsities": {"unstructured": [0.5, 0.6]},
           "granularities": ["structured", "unstructured"], "methods": ["uniform"]}  # fmt: skip
    for granularity, expected in (("structured", {"0.00", "0.30"}), ("unstructured", {"0.00", "0.50", "0.60"})):
        experiment = published(tmp_path / granularity, own, granularity=granularity, values=values)
        assert set(references(experiment)) == {("tiny", granularity, sparsity) for sparsity in expected}


OTHER_CONDITIONS = {
    "another model": {"source": {"repo": "facebook/opt-350m"}},
    "another owner's model": {"source": {"repo": "somebody/opt-125m"}},
    "no values for the model": {"values": {}},
    "another text": {"text": "other"},
    "a text that only bears the name": {"texts": {"words": ["other"]}},
    "another context": {"context": 128},
    "the grid's context is another": {"grid": {"evaluation": {"context": 1024}}},
    "a context that nobody states": {"context": None},
    "another sparsity": {"values": {"opt": {"Theirs": {"0.25": 31.5}}}},
    "a sparsity that rounds to the grid's": {"values": {"opt": {"Theirs": {"0.205": 31.5}}}},
    "another granularity": {"granularity": "unstructured"},
    "a sample of the test text": {"grid": {"evaluation": {"context": 2048, "windows": 4}}},
}


@pytest.mark.parametrize("changes", OTHER_CONDITIONS.values(), ids=OTHER_CONDITIONS)
def test_published_rows_of_other_conditions_are_not_shown(tmp_path, changes):
    assert references(published(tmp_path / "same"))
    assert not references(published(tmp_path / "other", **changes))


def test_published_rows_of_a_model_in_a_folder_are_not_shown(tmp_path):
    experiment = published(tmp_path)
    body = {"title": "OPT", "source": {"kind": "local", "path": "facebook/opt-125m"}}
    (tmp_path / "config/models/tiny.yaml").write_text(json.dumps(body))
    assert not references(Experiment(experiment.file))


def test_published_rows_are_shown_for_each_file_with_the_test_text(tmp_path):
    assert references(published(tmp_path / "named", text="test", texts={"test": ["other", "words"]}))
    assert not references(published(tmp_path / "unnamed", text="test", texts={"test": ["other"]}))


def test_published_config_names_an_unknown_model(tmp_path):
    with pytest.raises(ConfigError, match=r"model 'opd' has no entry under models: did you mean opt\?"):
        published(tmp_path, values={"opd": {"Theirs": {"0.20": 1.0}}})
