"""The shell lines of the report's page and of `ffp prune`, pasted into a real shell."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

import pytest

from ffp.cli import main
from ffp.report.details import command
from tests.helpers import tiny
from tests.helpers.hostile import VALUES, recorded

SHORT = {name: value for name, value in VALUES.items() if len(value) < 200}
# Two files in a folder cannot share a name's parts, and a / is no part of a name.
NAMES = {name: value.replace("/", ":") for name, value in SHORT.items()}


@pytest.mark.parametrize("value", SHORT.values(), ids=SHORT)
def test_a_line_of_the_page_runs_one_command(value, tmp_path):
    line = command("asset model", config=Path(value), text=[value, "b"])
    words = ["ffp", "asset", "model", "--config", str(Path(value)), "--text", value, "--text", "b"]
    assert recorded(line, tmp_path) == [words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    tiny.sources(folder)
    return folder


@pytest.mark.parametrize("name", ["a substitution", "single quotes", "an escape sequence", "a turn to the left", "-"])
def test_what_prune_prints_can_be_pasted_and_moves_no_cursor(name, folder, tmp_path, monkeypatch, capfd):
    value = NAMES.get(name, "-model")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "source", value)
    shutil.copyfile(folder / "docs.jsonl", f"{value}.jsonl")
    words = ["prune", "--sparsity", "0.3", "--tokens", "0", "--context", "64", "--calibration-tokens", "512",
             "--no-evaluate", "--threads", "1", "--text", f"{value}.jsonl", "--out", f"{value}.out"]  # fmt: skip
    assert main([*words, "--", value]) == 0
    printed = capfd.readouterr()
    assert not {c for c in printed.out + printed.err if not c.isprintable()} - {"\n", "\r"}
    again = next(line.strip() for line in printed.out.splitlines() if line.startswith("  ffp prune"))
    ((_, *given),) = recorded(again, tmp_path / "shell")
    assert given[-4:] == ["--text", f"{value}.jsonl", "--out", f"{value}.out"]
    assert given[1] == (f"./{value}" if value.startswith("-") else value)
    shutil.rmtree(f"{value}.out")
    assert main(given) == 0
    lines = [line.strip() for line in printed.out.splitlines()]
    start = lines.index("from transformers import AutoModelForCausalLM, AutoTokenizer")
    paths = [
        node.value
        for node in ast.walk(ast.parse("\n".join(lines[start : start + 3])))
        if isinstance(node, ast.Constant)
    ]
    assert paths == [f"{value}.out"] * 2
    assert not [path for path in os.listdir() if path.startswith("owned")]


@pytest.mark.parametrize("name", ["an escape sequence", "a turn to the left", "a script", "YAML"])
def test_an_error_is_one_line_that_moves_no_cursor(name, capfd):
    assert main(["prune", VALUES[name], "--out", "x"]) == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1 and error.rstrip("\n").isprintable()
