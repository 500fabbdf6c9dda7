"""DVC around the workflow: a second repro does nothing, a clone is complete after a pull, and nothing stale is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflow.site import ROOT, make

BIN = Path(sys.executable).parent
TRACKED = ("Snakefile", "workflow", "profiles", "ffp", "constraints.txt", "environment.yml", "dvc.yaml", ".dvcignore")


def run(folder: Path, *words: str) -> str:
    """A command that has to succeed, with the stand-in for ffp before the real one; all that it said."""
    path = f"{folder / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
    names = {f"GIT_{who}_{what}": "ffp" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **names, "PATH": path, "PYTHONPATH": str(folder), "FAIL": "no cell",
             "DVC_NO_ANALYTICS": "1", "SNAKEMAKE_PROFILE": "profiles/local"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def commands(folder: Path) -> int:
    return len((folder / "commands.txt").read_text().splitlines()) if (folder / "commands.txt").exists() else 0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a grid of stand-ins, whose results are in dvc.lock and in a store."""
    folder = tmp_path_factory.mktemp("dvc") / "first"
    folder.mkdir()
    site = make(folder)
    for name in TRACKED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    site.write("demo.yaml", site.read("grid.yaml"))
    (folder / ".gitignore").write_text("/data/\n/results/\n/logs/\n/.snakemake/\n__pycache__/\n/commands.txt\n")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "remote", "add", "-d", "store", str(folder.parent / "store"))
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "results")
    run(folder, "dvc", "push", "-q")
    return folder


def test_a_second_repro_does_nothing(repository: Path) -> None:
    before = commands(repository)
    assert "up to date" in run(repository, "dvc", "repro")
    assert commands(repository) == before


def test_a_clone_is_complete_after_a_pull_and_one_sparsity_more_runs_just_its_cells(repository: Path) -> None:
    clone = repository.parent / "clone"
    run(repository.parent, "git", "clone", "-q", str(repository), str(clone))
    run(clone, "dvc", "pull", "-q")
    assert "up to date" in run(clone, "dvc", "repro")
    run(clone, "snakemake", "--cores", "all", "--profile", "profiles/local", "assets")
    fetched = commands(clone)
    assert fetched == 1, "the model, which is not stored, is fetched again; nothing else"
    text = run(clone, "snakemake", "--cores", "all", "--profile", "profiles/local", "--dry-run")
    assert "Nothing to be done" in text
    grid = clone / "config/demo.yaml"
    body = yaml.safe_load(grid.read_text())
    grid.write_text(yaml.safe_dump({**body, "sparsities": [0.2, 0.3, 0.4]}))
    run(clone, "dvc", "repro")
    assert commands(clone) - fetched == 4 + 4 + 4 + 1, "four methods are allocated, cut and scored; one report"


def test_an_edit_of_one_methods_code_is_never_recorded_with_old_results(repository: Path) -> None:
    source = repository / "ffp/search/evolutionary.py"
    before = commands(repository)
    source.write_text(source.read_text().replace("MAX_SWITCHES = 3", "MAX_SWITCHES = 4"))
    run(repository, "dvc", "repro")
    assert commands(repository) - before == 2 * 3 + 1, "two cells of evolution, and the report"
    source.write_text(source.read_text() + "\n# A comment.\n")
    before = commands(repository)
    run(repository, "dvc", "repro")
    assert commands(repository) == before, "a comment changes no number"
