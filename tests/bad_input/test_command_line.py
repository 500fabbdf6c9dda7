"""Command lines that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.refusal import ARTIFACT, Case, ids, refused
from tests.helpers import tiny

CONFIG = ("--config", "config/grid.yaml")
CELL = ("--cell", "tiny/structured/s0.30/owl/seed0")
ALLOCATE = ("allocate", *CONFIG, "--model-dir", "data/models/tiny", "--calibration", "data/calibration/tiny")


def case(name: str, *command: str, says: str, code: int = 2) -> Case:
    return Case(name, lambda folder: None, says, code, command)


CASES = [
    case("an unknown command", "alocate", says="unknown COMMAND 'alocate': did you mean allocate"),
    case("an option without a command", "--frobnicate", says="required: COMMAND. See ffp --help"),
    case("an unknown option", *ALLOCATE, *CELL, "--out", "out", "--seed", "3",
         says="arguments: --seed 3. See ffp --help"),
    case("a missing option", *ALLOCATE, *CELL, says="required: --out. See ffp allocate --help"),
    case("an option without its value", *ALLOCATE, *CELL, "--out", says="--out: expected one argument"),
    case("a cell of no method", *ALLOCATE, "--out", "out", "--cell", "tiny/structured/s0.30/olw/seed0",
         says="has no cell .*olw.*: did you mean tiny/structured/s0.30/owl/seed0"),
    case("a cell of another sparsity", *ALLOCATE, "--out", "out", "--cell", "tiny/structured/s0.35/owl/seed0",
         says="has no cell 'tiny/structured/s0.35/owl/seed0': did you mean"),
    case("a cell outside the results", *ALLOCATE, "--out", "out", "--cell", "../../../etc/passwd", says="has no cell"),
    case("a cell for the shell", *ALLOCATE, "--out", "out", "--cell", "$(touch x)", says="has no cell"),
    case("an empty cell", *ALLOCATE, "--out", "out", "--cell", "", says="has no cell ''"),
    case("a model that the grid lacks", "calibrate", *CONFIG, "--model", "huge", "--model-dir", "x", "--text-dir", "x",
         "--out", "out", says="grid.yaml has no model 'huge': known: tiny"),
    case("no fetched model", *ALLOCATE, *CELL, "--out", "out", says="asset.json is missing", code=ARTIFACT),
    case("no such grid", "report", "--config", "demo.yaml", "--out", "out", says="demo.yaml cannot be read"),
    case("an unknown kind of asset", "asset", "modell", "--config", "x", "--out", "out", says="did you mean model"),
    case("a model's file as a text's", "asset", "text", "--config", "config/models/tiny.yaml", "--out", "out",
         says="tiny.yaml: "),
    case("an output below a file", "report", *CONFIG, "--out", "docs.jsonl/report",
         says="cannot write docs.jsonl/report"),
    case("results that are not there", "verify", "nowhere", *CONFIG, says="there is no folder nowhere", code=ARTIFACT),
]  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_a_bad_command_line_is_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.configure(tmp_path)
    (tmp_path / "docs.jsonl").write_text("")
    refused(case, (), tmp_path, monkeypatch, capfd)
