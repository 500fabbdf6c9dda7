"""A grid on a model whose tokenizer adds a BOS: texts, figures, what says so, and what runs again."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffp.config import Experiment
from ffp.measure.windows import SEPARATOR
from ffp.pipeline import plan
from ffp.pipeline.inputs import recovery_windows
from ffp.pipeline.steps import load_prunable
from ffp.pipeline.verify import Verifier
from ffp.report.collect import collect
from ffp.report.details import details
from ffp.store import schemas
from ffp.store.documents import read_documents
from ffp.store.layout import Layout
from tests.helpers import tiny
from tests.helpers.cells import edit
from tests.helpers.verify import faults

EOS = 1  # of the tiny model; the BOS of its tokenizer here
DENSE, TRAINED = "tiny/structured/s0.00/dense/seed0", "tiny/structured/s0.30/random-search/seed0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished grid with a search and a recovery."""
    folder = tmp_path_factory.mktemp("bos")
    tiny.build(folder)
    tiny.with_bos(AutoTokenizer.from_pretrained(folder / "source")).save_pretrained(folder / "source")
    grid = folder / "config/grid.yaml"
    recover = {"tokens": 640, "rank": 2, "batch_tokens": 64}
    body = yaml.safe_load(grid.read_text()) | {"methods": ["random-search"], "recover": recover}
    grid.write_text(yaml.safe_dump(body))
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    return folder


@pytest.fixture
def experiment(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Experiment(Path("config/grid.yaml"))


def layout(experiment):
    return Layout.from_grid(experiment.grid)


def scores(experiment, cell):
    return schemas.ScoresFile.read(layout(experiment).cell(experiment.cell(cell)).scores)


def set_bos(value):
    """Writes the model's setting."""
    file = Path("config/models/tiny.yaml")
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"bos": value}))


def test_every_window_of_every_text_begins_with_it_and_none_has_two(experiment):
    tokens, _ = schemas.TOKENS.read(layout(experiment).calibration("tiny").tokens)
    found = {name: ids for name, ids in tokens.items() if not name.endswith(schemas.DENSE_LOSS)}
    model, text = layout(experiment).model("tiny").folder, layout(experiment).text("docs")
    prunable, tokenizer = load_prunable(experiment, "tiny", model, weights=False), AutoTokenizer.from_pretrained(model)
    cell = experiment.cell(TRAINED)
    found["recovery"] = recovery_windows(experiment, cell, prunable, tokenizer, text.folder).numpy()
    assert set(found) == {"calibration", "search", "selection", "recovery"}
    for name, ids in found.items():
        assert (ids[:, 0] == EOS).all() and not (ids[:, 1:] == EOS).any(), name


def test_perplexity_is_that_of_a_plain_computation_to_the_digit(experiment):
    folder, text = layout(experiment).model("tiny").folder, layout(experiment).text("docs")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(SEPARATOR.join(read_documents(text.documents("test"))), add_special_tokens=False)["input_ids"]
    windows = [torch.tensor([[EOS, *ids[start : start + 63]]]) for start in range(0, 6 * 63, 63)]
    with torch.no_grad():
        plain = [float(model(window, labels=window).loss) for window in windows]
    found = scores(experiment, DENSE).ppl
    assert found.loss_by_window == pytest.approx(plain, rel=1e-6)
    assert (found.bos, found.n_tokens, found.context) == ("always", 6 * 63, 64)


def test_it_stands_beside_every_figure(experiment):
    trained = scores(experiment, TRAINED)
    assert trained.ppl.bos == trained.ppl_before.bos == "always"
    report = layout(experiment).report.folder
    rows = list(csv.DictReader((report / "comparison.csv").open()))
    assert {row["ppl_bos"] for row in rows} == {"always"}
    page = (report / "index.html").read_text()
    assert "6 windows of 64 tokens, a BOS in each window." in page
    record = next(record for record in collect(experiment) if record.cell.path == TRAINED)
    assert ("ppl_bos", "always") in details(experiment, record)["evidence"]["figures"]
    assert any(
        line.split()[:3] == ["tiny", "llama", "always"] for line in plan.report(experiment, tflops=1).splitlines()
    )


def test_another_effect_runs_again_and_verify_sees_it(experiment, folder):
    done = tiny.snakemake(folder, "--dry-run")
    assert "Nothing to be done" in done.output, done.output
    assert not Verifier(experiment).run()
    file = layout(experiment).cell(experiment.cell(DENSE)).scores
    whole = file.read_bytes()
    edit(schemas.ScoresFile, file, lambda body: body["ppl"].update(bos="once"))
    assert any("ppl.bos is once, expected auto" in fault for fault in faults(experiment))
    file.write_bytes(whole)
    try:
        for value in ("once", "never"):
            set_bos(value)
            planned = re.findall(r"^(\w+) +\d+$", tiny.snakemake(folder, "--dry-run").output, re.MULTILINE)
            assert {"calibrate", "allocate_search", "apply", "recover", "evaluate", "report"} <= set(planned)
            found = faults(Experiment(Path("config/grid.yaml")))
            assert any(f"ppl.bos is always, expected {value}" in fault for fault in found)
    finally:
        set_bos("auto")
