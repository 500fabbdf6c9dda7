"""Command lines that cannot be meant."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path

import pytest

from ffp.cli import main
from tests.bad_input.refusal import ARTIFACT, Case, ids, refused
from tests.helpers import tiny
from tests.helpers.cells import fill, make_experiment

CONFIG = ("--config", "config/grid.yaml")
CELL = ("--cell", "tiny/structured/s0.30/owl/seed0")
ALLOCATE = ("allocate", *CONFIG, "--model-dir", "data/models/tiny", "--calibration", "data/calibration/tiny")
PRUNE = ("prune", "x", "--sparsity", "0.3", "--out", "out")
BELOW = {
    "--threads": "-5", "--batch-tokens": "0", "--min-keep": "-1", "--num-fewshot": "-1", "--recover-rank": "0",
    "--recover-tokens": "-1", "--tokens": "-1",
}  # fmt: skip


def case(name: str, *command: str, says: str, code: int = 2) -> Case:
    return Case(name, lambda folder: None, says, code, command)


CASES = [
    case("an unknown command", "alocate", says="no such command 'alocate'. Did you mean 'allocate'.*See ffp --help"),
    case("no command", says="ffp: missing command. See ffp --help"),
    case("an option without a command", "--frobnicate", says="ffp: no such option --frobnicate"),
    case("an unknown option", *ALLOCATE, *CELL, "--out", "out", "--modeldir", "3",
         says="ffp allocate: no such option --modeldir: did you mean --model-dir.*See ffp allocate --help"),
    case("an unknown word", *ALLOCATE, *CELL, "--out", "out", "now", says=r"unexpected extra argument.*now"),
    case("a missing option", *ALLOCATE, *CELL, says="ffp allocate: missing option '--out'. See ffp allocate --help"),
    case("an option without its value", *ALLOCATE, *CELL, "--out", says="option '--out' requires an argument"),
    case("a word for a number", "validate", *CONFIG, "--tflops", "fast", says="value for '--tflops': .*valid number"),
    case("the speed of no device", "validate", *CONFIG, "--tflops", "0", says="--tflops 0 is not above 0"),
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
    case("an unknown kind of asset", "asset", "modell", "--config", "x", "--out", "out",
         says="'modell' is not one of 'model', 'text', 'tasks'"),
    case("an unknown kind of list", "list", "model", says="ffp list: there is no list of 'model': did you mean models"),
    case("no kind of list", "list", says="ffp list: missing argument 'KIND'. See ffp list --help"),
    case("a model's file as a text's", "asset", "text", "--config", "config/models/tiny.yaml", "--out", "out",
         says="tiny.yaml: "),
    case("an output below a file", "report", *CONFIG, "--out", "docs.jsonl/report",
         says="cannot write docs.jsonl/report"),
    case("results that are not there", "verify", "nowhere", *CONFIG, says="there is no folder nowhere", code=ARTIFACT),
    case("an export into a folder that is there", "export", *CONFIG, *CELL, "--out", "config",
         says="config exists and is not overwritten. Give another --out"),
    case("an export of what was not run", "export", *CONFIG, *CELL, "--out", "out",
         says="cell tiny/.* was not run: there is no data/models/tiny/asset.json. Run `snakemake --cores all --config "
         "grid=config/grid.yaml -- results/cells/tiny/.*/scores.json` first", code=ARTIFACT),
    case("results where nothing was run", "verify", "config", *CONFIG,
         says="no cell of config/grid.yaml was run in config. Run `snakemake .*grid=config/grid.yaml` first",
         code=ARTIFACT),
    *(case(f"{value} for {option}", *PRUNE, option, value, says=f"value for '{option}': .*greater than or equal to")
      for option, value in BELOW.items()),
    *(case(f"{value} for --seed", *PRUNE, "--seed", value, says="seed = '.*': Input.*(greater|less) than or equal to")
      for value in ("-1", "4294967296", str(2**64))),
    case("tokens of no search", *PRUNE, "--method", "owl", "--tokens", "100",
         says="--tokens has no effect with owl, which searches nothing. Take a method that searches, or leave it out"),
    case("a pruner of units", *PRUNE, "--pruner", "wanda",
         says="--pruner has no effect with structured pruning. Add --granularity unstructured, or leave it out"),
    case("examples of no task", *PRUNE, "--num-fewshot", "5",
         says="--num-fewshot has no effect without tasks. Add --tasks, or leave it out"),
    case("documents of no tasks", *PRUNE, "--documents", "7",
         says="--documents has no effect without tasks. Add --tasks"),
    case("a system prompt without tasks", *PRUNE, "--system-prompt", "Hi.",
         says="--system-prompt has no effect without"),
    case("a chat without tasks", *PRUNE, "--chat-template", says="--chat-template has no effect without tasks"),
    case("a column of no rows", *PRUNE, "--text-column", "body",
         says="--text-column has no effect without a file of rows"),
    case("channels in multiples on single weights", *PRUNE, "--granularity", "unstructured", "--align", "8",
         says="--align has no effect on single weights. Take --granularity structured, or leave it out"),
    case("heads on single weights", *PRUNE, "--granularity", "n-of-4", "--attention-units", "query-heads",
         says="--attention-units has no effect on single weights"),
    case("weights of a CPU on the host", *PRUNE, "--device", "cpu", "--offload",
         says="--offload has no effect on a CPU"),
    case("a plan as JSON", *PRUNE, "--dry-run", "--json", says="--dry-run prints no JSON. Leave out --json, or run it"),
    case("a share in per cent", "prune", "x", "--sparsity", "30", "--out", "out",
         says=r"sparsity = '30.0': a share is in \(0, 1\). Write 0.3 for 30 %"),
    case("a negative share", "prune", "x", "--sparsity", "-0.3", "--out", "out", says=r"a share is in \(0, 1\)\.$"),
    case("no such grid for a command of two words", "count-bytes", "--config", "demo.yaml",
         says="ffp count-bytes: config file demo.yaml cannot be read"),
    case("an empty name among tasks", *PRUNE, "--tasks", "arc_easy,", says="task = '': not a task of lm-eval: letters"),
    case("the home of nobody", "prune", "~nobody-here/x", "--sparsity", "0.3", "--out", "out",
         says="the home directory in ~nobody-here/x is not known. Write the path out, or set HOME"),
    case("a negative tolerance", "compare", "a", "b", "--tolerance", "-1",
         says="'--tolerance': .*greater than or equal to 0"),
]  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_a_bad_command_line_is_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.configure(tmp_path)
    (tmp_path / "docs.jsonl").write_text("")
    refused(case, (), tmp_path, monkeypatch, capfd)


def test_every_fault_that_verify_finds_has_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.configure(tmp_path)
    (tmp_path / "results/cells" / CELL[1]).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["verify", *CONFIG]) == ARTIFACT
    *faults, last = capfd.readouterr().err.splitlines()
    assert f"results/cells/{CELL[1]}/masks.safetensors is missing. Run the rule that makes it again." in faults
    assert last.startswith(f"ffp verify: {len(faults)} faults in results ("), last


@pytest.mark.parametrize(("encoding", "name"), [("ascii", "é ±"), ("utf-8", os.fsdecode(b"\xe9"))])
def test_letters_that_a_terminal_lacks_are_escaped(
    encoding: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a path that is not UTF-8, too; in figures and in errors."""
    folder = tmp_path / name
    fill(make_experiment(tmp_path / "plain"))
    (tmp_path / "plain").rename(folder)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # pytest's own handlers stay
    streams = {kind: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for kind in ("stdout", "stderr")}
    for kind, stream in streams.items():
        monkeypatch.setattr(sys, kind, stream)
    results, nothing = str(folder / "results"), str(folder / "nothing")
    assert (main(["compare", results, results]), main(["compare", results, nothing])) == (0, 2)
    escaped = name.encode(encoding, "backslashreplace").decode(encoding)
    assert f"A {tmp_path}/{escaped}/results: " in _written(streams["stdout"])
    assert "/nothing holds no cells" in _written(streams["stderr"])


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)  # type: ignore[attr-defined]
