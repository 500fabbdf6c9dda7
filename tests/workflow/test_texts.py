"""A grid with several test texts, on the finished tiny grid: what runs again, what is shown, and what leaked."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ffp.config import Experiment
from ffp.core.errors import ArtifactError
from ffp.models.checkpoint import load_tokenizer
from ffp.pipeline import status
from ffp.pipeline.bits import add_bits
from ffp.pipeline.leaks import leaks
from ffp.report import compare
from ffp.report.details import commands
from ffp.store.files import sha256
from ffp.store.layout import Layout
from ffp.store.schemas import ScoresFile
from tests.bad_input.refusal import edit
from tests.helpers import tiny
from tests.helpers.cells import edit as edit_file
from tests.helpers.verify import faults

GRID = Path("config/grid.yaml")
CELL = "tiny/structured/s0.30/owl/seed0"
TEXTS = {"calibrate": "docs", "test": ["docs", "letters"]}


def letters(folder: Path) -> None:
    """A text that is all test: documents of random words."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(400)]
    documents = [{"text": " ".join(rng.choices(words, k=300))} for _ in range(6)]
    (folder / "letters.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    corpus = {"name": "letters", "source": {"kind": "local", "path": "letters.jsonl"}, "splits": ["test"]}
    (folder / "config/texts/letters.yaml").write_text(yaml.safe_dump({"title": "Letters", "sources": [corpus]}))


@pytest.fixture(scope="module")
def folder(tiny_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished tiny grid with a second test text, run again; it also says what ran."""
    folder = tmp_path_factory.mktemp("texts")
    shutil.copytree(tiny_grid, folder, dirs_exist_ok=True)
    letters(folder)
    edit("config/grid.yaml", text=None, texts=TEXTS)(folder)
    shutil.copytree(folder / "results", folder / "before")
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    (folder / "ran.txt").write_text(done.output)
    return folder


@pytest.fixture
def experiment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The grid, in its folder."""
    monkeypatch.chdir(folder)
    return Experiment(GRID)


def test_a_new_test_text_is_fetched_and_cells_are_only_evaluated_again(folder: Path) -> None:
    ran = dict(re.findall(r"^(\w+) +(\d+)$", (folder / "ran.txt").read_text(), re.MULTILINE))
    assert ran == {"asset_text": "1", "preflight": "1", "evaluate": "4", "report": "1", "all": "1", "total": "8"}
    assert sorted(path.name for path in (folder / "data/text/letters").iterdir()) == ["asset.json", "test.jsonl"]


def test_every_test_text_has_a_perplexity_and_the_first_one_is_what_it_was(experiment: Experiment) -> None:
    for cell in experiment.cells():
        new = ScoresFile.read(Layout.from_grid(experiment.grid).cell(cell).scores)
        old = ScoresFile.read(Path("before/cells") / cell.path / "scores.json")
        assert new.ppl == old.ppl and not old.ppl_further
        (other,) = new.ppl_further.values()
        assert (new.ppl.text, other.text) == ("docs", "letters") and other.value != new.ppl.value


def test_bytes_of_the_test_text_agree_with_decoded_windows(experiment: Experiment) -> None:
    """The letters are one byte each, so that what a token spells can be decoded by itself."""
    layout = Layout.from_grid(experiment.grid)
    tokenizer = load_tokenizer(layout.model("tiny").folder)
    lines = layout.text("letters").documents("test").read_text().splitlines()
    ids = tokenizer("\n\n".join(json.loads(line)["text"] for line in lines), add_special_tokens=False)["input_ids"]
    windows = [ids[start : start + 64] for start in range(0, 6 * 64, 64)]
    expected = sum(len(tokenizer.decode([token]).encode()) for window in windows for token in window[1:])
    found = ScoresFile.read(layout.cell(experiment.cell(CELL)).scores).ppl_further["letters"]
    assert found.n_bytes == expected
    assert found.bits_per_byte == pytest.approx(math.log(found.value) / math.log(2) * found.n_tokens / expected)


def test_tables_page_and_metrics_have_a_column_for_each_text(experiment: Experiment) -> None:
    report = Layout.from_grid(experiment.grid).report
    table = pd.read_csv(report.file("comparison", "csv"))
    columns = ["ppl", "ppl_on_letters", "bits_per_byte", "bits_per_byte_on_letters"]
    assert table[columns].notna().all(axis=None)
    assert table[columns].equals(pd.read_parquet(report.file("comparison", "parquet"))[columns])
    headings = ["PPL docs", "PPL letters", "bits per byte docs", "bits per byte letters"]
    for kind in ("md", "tex"):
        lines = report.file("comparison", kind).read_text().splitlines()
        first = next(line for line in lines if "PPL docs" in line and not line.startswith("%"))
        found = [part.strip(" \\") for part in re.split(r"[|&]", first)]
        assert [heading for heading in found if heading in headings] == headings
    page = report.page.read_text()
    assert all(f'<th scope="col" data-digits="{2 + ("bits" in name)}">{name}</th>' in page for name in headings)
    assert "PPL letters is the perplexity on the test part of Letters: 6 windows of 64 tokens" in page
    assert f"{CELL}/ppl_on_letters" in report.metrics.read_text()


def test_verify_accepts_the_grid_and_sees_a_perplexity_of_another_text(experiment: Experiment) -> None:
    assert not faults(experiment)
    file = Layout.from_grid(experiment.grid).cell(experiment.cell(CELL)).scores
    whole = file.read_bytes()
    try:
        for change, found in (
            (lambda body: body["ppl_further"]["letters"].update(text="docs"), "ppl_on_letters.text is docs"),
            (lambda body: body["ppl_further"]["letters"].update(n_bytes=7), "ppl_on_letters.bits_per_byte is"),
            (lambda body: body["ppl"].update(bits_per_byte=None), "ppl.bits_per_byte is null"),
            (lambda body: body["ppl_further"].clear(), r'ppl_further is [], expected ["letters"]'),
            (lambda body: body["provenance"].update({"text letters": "x"}), "its text letters's digest is x"),
        ):
            edit_file(ScoresFile, file, change)
            assert any(found in fault for fault in faults(experiment)), found
            file.write_bytes(whole)
    finally:
        file.write_bytes(whole)


def test_a_test_text_that_quotes_what_methods_see_is_found(experiment: Experiment) -> None:
    layout = Layout.from_grid(experiment.grid)
    seen, test = layout.text("docs").documents("search"), layout.text("letters").documents("test")
    whole = test.read_bytes()
    assert not list(leaks(experiment))
    words = json.loads(seen.read_text().splitlines()[0])["text"].split()[20:40]
    quoting = {"id": "x", "source": "letters", "text": "It is said that " + " ".join(words)}
    try:
        test.write_text(whole.decode() + json.dumps(quoting) + "\n")
        (line,) = leaks(experiment)
        assert line.startswith(f"{test}: 1 documents, the first in line 7, share a run of 13 words")
        assert line.endswith("or leave the text out of texts.test.")
    finally:
        test.write_bytes(whole)


def test_the_commands_of_a_cell_name_every_test_text(experiment: Experiment) -> None:
    from ffp.report.collect import collect

    record = next(record for record in collect(experiment) if record.cell.path == CELL)
    *_, last = commands(experiment, record)
    assert "--text-dir data/text/docs --text-dir data/text/letters" in last
    words = last.removeprefix("ffp ").replace(f"results/cells/{CELL}/scores.json", "again.json").split()
    done = tiny.run(Path.cwd(), "ffp.cli", *words)
    assert done.returncode == 0, done.output
    ours, theirs = (ScoresFile.read(Path(file)) for file in (f"results/cells/{CELL}/scores.json", "again.json"))
    assert ours.perplexities == theirs.perplexities
    once = " ".join(words).replace(" --text-dir data/text/letters", "").split()
    done = tiny.run(Path.cwd(), "ffp.cli", *once)
    assert done.returncode and "tests on docs, letters: give --text-dir 2 times, in this order" in done.output


def test_a_text_that_finished_cells_lack_is_named_by_status(experiment: Experiment) -> None:
    assert not any("no perplexity" in line for line in status.lines(experiment))
    found = list(status.lines(experiment.at(results=Path("before"))))
    assert "4 scored cells have no perplexity on letters yet; the next run evaluates them again." in found


def test_a_text_in_one_of_two_results_is_no_change(experiment: Experiment) -> None:
    found = compare.compare(Path("before"), Path("results"))
    assert not found.changed


def test_bytes_are_added_to_older_cells_without_a_forward(experiment: Experiment, tmp_path: Path) -> None:
    """Cells as an older version wrote them get what a new one measures, and stay what they were otherwise."""
    shutil.copytree("results", tmp_path / "results")
    old = experiment.at(results=tmp_path / "results")
    files = [Layout.from_grid(old.grid).cell(cell).scores for cell in old.cells()]
    expected = [sha256(file) for file in files]

    def forget(body: dict) -> None:
        for ppl in (body["ppl"], *body["ppl_further"].values()):
            ppl.update(n_bytes=None, bits_per_byte=None)

    for file in files:
        edit_file(ScoresFile, file, forget)
    assert [sha256(file) for file in files] != expected
    assert add_bits(old) == "4 of 4 finished cells have bits per byte now that had none."
    again = [ScoresFile.read(file) for file in files]
    for cell, found in zip(old.cells(), again, strict=True):
        whole = ScoresFile.read(Path("results/cells") / cell.path / "scores.json")
        assert found.ppl.n_bytes == whole.ppl.n_bytes
        assert found.ppl.bits_per_byte == pytest.approx(whole.ppl.bits_per_byte, rel=1e-12)
        assert found.model_copy(update={"ppl": whole.ppl, "ppl_further": whole.ppl_further}) == whole
    assert add_bits(old).startswith("0 of 4")
    edit_file(ScoresFile, files[0], lambda body: (forget(body), body["provenance"].update(text="another")))
    with pytest.raises(ArtifactError, match="measured with another text than data/text/docs"):
        add_bits(old)
