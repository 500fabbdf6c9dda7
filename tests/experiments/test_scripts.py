"""Every benchmark and experiment says what it does, and plots are drawn again from the JSON files that are kept."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELPERS = {"__init__", "common", "drawing", "gpu_steps", "llama_cpp", "reading"}
SCRIPTS = [
    f"{folder}.{path.stem}"
    for folder in ("benchmarks", "experiments")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem not in HELPERS
]
PLOTTED = ("race", "answers", "ablation", "decisions", "second_order", "units", "models")


def run(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    importlib.import_module(name).main()


@pytest.mark.parametrize("name", [*SCRIPTS, "tests.parity.__main__"])
def test_help_begins_with_the_docstring_and_names_the_command(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, name, "--help")
    assert exit.value.code in (0, None)
    shown, module = capsys.readouterr().out, importlib.import_module(name)
    assert module.__doc__.strip() in shown
    assert f"python -m {name.removesuffix('.__main__')}" in module.__doc__


@pytest.mark.parametrize("name", PLOTTED)
def test_the_plot_is_drawn_from_the_kept_json(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    out = tmp_path / f"{name}.json"
    shutil.copy(ROOT / "experiments/results" / out.name, out)
    run(monkeypatch, f"experiments.{name}", "--redraw", "--out", out)
    assert out.with_suffix(".svg").read_text().count("<path") > 50
    assert out.read_bytes() == (ROOT / "experiments/results" / out.name).read_bytes()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/results").glob("*.json")), ids=lambda path: path.stem)
def test_kept_json_files_have_marks_and_provenance(path):
    body = json.loads(path.read_text())
    assert body["marks"] and body["provenance"]["commit"]
