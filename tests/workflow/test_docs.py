"""The documentation: its command lines run, on the tiny grid, and each method has a page."""

import json
import re
import shutil
from pathlib import Path

import pytest
import typer
import yaml

from ffp.allocators import METHODS
from ffp.cli import app
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# The demo's names, and what the tiny grid calls the same things.
NAMES = {"smollm2-135m": "tiny", "text/embedded": "text/docs", "texts/embedded": "texts/docs", "s0.20": "s0.30"}
ROWS = [{"goal": f"Open door {i}", "sol1": "push", "sol2": "pull it twice", "label": i % 2} for i in range(6)]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(finished, tmp_path_factory) -> Path:
    """What a clone would hold, with the tiny grid under the demo's name and a task, its results and data there."""
    folder = tmp_path_factory.mktemp("docs") / "ffp"
    shutil.copytree(finished, folder)
    (folder / "config/grids").mkdir()
    grid = yaml.safe_load((folder / "config/grid.yaml").read_text())
    (folder / "config/grids/demo.yaml").write_text(yaml.safe_dump(grid | {"tasks": "demo"}))
    (folder / "config/tasks").mkdir()
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {"stock": "piqa", "source": {"kind": "local", "path": "piqa.jsonl"}, "reader": "jsonl"}
    tasks = {"title": "One", "version": "1", "tasks": {"piqa": task}}
    (folder / "config/tasks/demo.yaml").write_text(yaml.safe_dump(tasks))
    for name in ("Snakefile", "workflow", "profiles", "ffp", "environment.yml", "dvc.yaml"):
        (folder / name).symlink_to(ROOT / name)
    made = tiny.shell(folder, "git init --quiet", "dvc init --quiet")
    assert made.returncode == 0, made.stdout
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=lambda page: page.stem)
def test_command_lines_run(checkout, page):
    """Those that install, fetch from a remote or need a cluster are marked as console and parsed only."""
    lines = "".join(blocks(page, "sh"))
    for ours, theirs in NAMES.items():
        lines = lines.replace(ours, theirs)
    done = tiny.shell(checkout, lines)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / "docs/appendix").glob("*.md"), ROOT / "README.md"], ids=lambda page: page.stem
)
def test_python_is_python_and_yaml_is_yaml(page):
    for block in blocks(page, "python"):
        compile(block, page, "exec")
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)


def test_commands_that_are_not_run_exist():
    known = set(typer.main.get_command(app).commands)
    text = "".join(block for page in PAGES for block in blocks(page, "console"))
    makefile = (ROOT / "Makefile").read_text()
    words = re.findall(r"^(ffp|make) ([a-z]+)", text, re.MULTILINE)
    assert len(words) > 1
    for tool, word in words:
        assert word in known if tool == "ffp" else f"\n{word}:" in makefile


def test_every_method_has_a_page_with_its_source_and_parameters():
    pytest.importorskip("mkdocs", reason="needs the documentation's tools: make docs")
    from docs import hooks

    assert set(METHODS) <= set(re.findall(r"\[`([a-z0-9-]+)`\]", hooks.methods_index()))
    for method in METHODS.values():
        text = hooks.method_page(method)
        assert "## Parameters" in text and method.citation.split(",")[0] in text
        assert len(text.split("where it departs\n\n")[1].split("## Parameters")[0]) > 50


def test_a_docstring_becomes_text_and_code():
    pytest.importorskip("mkdocs", reason="needs the documentation's tools: make docs")
    from docs.hooks import prose

    made = prose("OWL (arXiv:2310.05175), a * b:\n    x = y\n      z\nThen <more>.")
    assert made == (
        "OWL ([arXiv:2310.05175](https://arxiv.org/abs/2310.05175)), a \\* b:\n\n"
        "```text\nx = y\n  z\n```\n\nThen \\<more\\>."
    )
