"""One list of checks before a run: each fault is found by everything that starts one, before a token is spent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ffp.cli import main
from ffp.config import Experiment
from ffp.core.errors import FfpError
from ffp.measure.windows import token_windows
from ffp.models.checkpoint import load_tokenizer
from ffp.pipeline import planned
from ffp.pipeline.preflight import CHECKS, Planned, preflight
from ffp.store.documents import read_documents
from ffp.store.layout import Layout
from ffp.store.schemas import PreflightFile
from tests.bad_input.refusal import edit

GRID, OUT = Path("config/grid.yaml"), Path("preflight.json")
SPENT = 4 * 64 + (8 + 4) * 64 + 40 * 2 * 64  # of calibration, its texts and one search of the tiny grid
GSM8K = {"question": "What is 1 + 2?", "answer": "It is 3.\n#### 3"}


@pytest.fixture
def folder(tiny_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny grid before its first search: its model and text are fetched, and nothing else is there."""
    for name in ("config", "data", "source", "docs.jsonl"):
        copy = shutil.copytree if (tiny_grid / name).is_dir() else shutil.copy
        copy(tiny_grid / name, tmp_path / name)
    (tmp_path / "data/calibration/tiny/preflight.json").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def short_text(folder: Path) -> None:
    """A second test text of a few words."""
    (folder / "short.jsonl").write_text(json.dumps({"text": "a few words"}) + "\n")
    corpus = {"name": "short", "source": {"kind": "local", "path": "short.jsonl"}, "splits": ["test"]}
    (folder / "config/texts/short.yaml").write_text(yaml.safe_dump({"title": "Short", "sources": [corpus]}))
    edit("config/grid.yaml", text=None, texts={"calibrate": "docs", "test": ["docs", "short"]})(folder)
    fetch("text", "config/texts/short.yaml", "data/text/short")


def generating(stock: str, **settings: object) -> Callable[[Path], None]:
    """Makes the grid score a task on documents of a local file."""

    def change(folder: Path) -> None:
        (folder / "sums.jsonl").write_text("".join(json.dumps(GSM8K) + "\n" for _ in range(3)))
        source = {"kind": "local", "path": "sums.jsonl"}
        task = {"stock": stock, "source": source, "reader": "jsonl", "num_fewshot": 0, **settings}
        body = {"title": "Sums", "version": "1", "tasks": {"sums": task}}
        (folder / "config/tasks").mkdir()
        (folder / "config/tasks/sums.yaml").write_text(yaml.safe_dump(body))
        edit("config/grid.yaml", tasks="sums")(folder)
        fetch("tasks", "config/tasks/sums.yaml", "data/tasks/sums")

    return change


def fetch(kind: str, config: str, out: str) -> None:
    """Fetches an asset of the grid."""
    assert main(["asset", kind, "--config", config, "--out", out]) == 0


def another_token(folder: Path) -> None:
    """A model whose tokenizer has a token more than its embedding."""
    tokenizer = load_tokenizer(folder / "source")
    tokenizer.add_tokens(["the"])
    tokenizer.save_pretrained(folder / "source")
    shutil.rmtree(folder / "data/models/tiny")
    fetch("model", "config/models/tiny.yaml", "data/models/tiny")


def calibrates_on_all(folder: Path) -> None:
    """A grid that trains, and calibrates on every whole window of its text."""
    text = read_documents(Path("data/text/docs/calibration.jsonl"))
    found = token_windows(load_tokenizer(Path("data/models/tiny")), text, context=64, windows=0, name="t")
    calibration = {"context": 64, "windows": len(found)}
    edit("config/grid.yaml", variants={"owl": {"recover": "lora"}}, calibration=calibration)(folder)


FAULTS: dict[str, tuple[Callable[[Path], object], str, int | None]] = {
    "a further test text that is too short": (short_text, "the test text short has .* windows of 64", SPENT),
    "fewer windows of the test text than asked for": (
        edit("config/grid.yaml", evaluation={"context": 64, "windows": 9999}), "the test text has .* than 9999", SPENT,
    ),
    "answers longer than the model": (
        generating("gsm8k", gen_kwargs={"max_gen_toks": 128}), "may generate 128 tokens, and the model takes 128",
        SPENT,
    ),
    "a chat template that the tokenizer lacks": (
        lambda folder: (
            generating("gsm8k", gen_kwargs={"max_gen_toks": 8})(folder),
            edit("config/grid.yaml", evaluation={"context": 64, "windows": 6, "chat_template": True})(folder),
        ),
        "no chat template", SPENT,
    ),
    "a BOS that the tokenizer lacks": (
        edit("config/models/tiny.yaml", bos="always"), "BOS", SPENT,
    ),
    "windows beyond the positions": (
        edit("config/grid.yaml", evaluation={"context": 256, "windows": 2}), r"evaluation\.context = 256 exceeds", 0,
    ),
    "tokens beyond the embedding": (another_token, "token id 400, .* embedding ends at 399", SPENT),
    "a sparsity that cannot be met": (
        edit("config/grid.yaml", sparsities=[0.3, 0.99]), r"owl on tiny: sparsity 0\.99 cannot be met",
        4 * 64 + 12 * 64,
    ),
    "an offloaded model that is to be trained": (
        lambda folder: (
            edit("config/models/tiny.yaml", offload=True)(folder),
            edit("config/grid.yaml", variants={"owl": {"recover": "lora"}})(folder),
        ),
        "which offload keeps on the host", SPENT,
    ),
    "no document left for recovery": (
        calibrates_on_all, "no document of the calibration text is left for recovery", None,
    ),
}  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_whatever_starts_a_run_and_says_what_it_would_have_cost(folder, fault, monkeypatch, capsys):
    change, words, spent = FAULTS[fault]
    change(folder)
    monkeypatch.setattr("torch.nn.Module.__call__", lambda *_: pytest.fail("the model ran"))
    cost = "" if spent == 0 else "[0-9,]+ tokens later" if spent is None else f"{spent:,} tokens later"
    for command in (validate, rule, search):
        with pytest.raises(FfpError, match=rf"(?s){words}.*{cost}\.$"):
            command()
    assert not OUT.exists()


def validate() -> None:
    """What `ffp validate` checks."""
    preflight(planned.planned_model(Experiment(GRID), "tiny"))


def rule() -> None:
    """What the workflow's rule `preflight` checks."""
    experiment = Experiment(GRID)
    layout = Layout.from_grid(experiment.grid)
    texts = {name: layout.text(name).folder for name in experiment.grid.all_texts}
    tasks = layout.tasks(experiment.tasks_name).folder if experiment.tasks_name else None
    planned.check_model(experiment, "tiny", layout.model("tiny").folder, texts, tasks, OUT)


def search() -> None:
    """What a search checks that starts before the rule has passed."""
    planned.check_unless_done(Experiment(GRID), "tiny")


def test_what_is_sound_passes_and_is_written_down(folder):
    rule()
    done = PreflightFile.read(OUT)
    assert set(done.checks) == {c.about for c in CHECKS if not {"memory", "disk", "tasks", "tasks_dir"} & set(c.needs)}
    assert preflight(planned.planned_model(Experiment(GRID), "tiny")) == list(done.checks)


def test_a_search_checks_again_only_what_the_rule_has_not_checked(folder, monkeypatch):
    looked: list[Planned] = []
    monkeypatch.setattr(planned, "preflight", lambda found: looked.append(found) or [])
    search()
    rule()
    shutil.copy(OUT, "data/calibration/tiny/preflight.json")
    search()
    assert len(looked) == 2
    edit("config/grid.yaml", evaluation={"context": 64, "windows": 5})(folder)
    search()
    assert len(looked) == 3


def test_each_check_says_which_step_it_saves():
    assert len({check.about for check in CHECKS}) == len(CHECKS)
    fields = Planned.__dataclass_fields__
    for check in CHECKS:
        assert set(check.needs) <= set(fields) and re.fullmatch(r"calibrate|allocate|recover|evaluate", check.step)
