"""Profiles of schedulers whose plug-ins are not in the lock: they plan the grid with the plug-in of the index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sge", "cluster-generic"])
def test_a_profile_plans_the_grid(name, tiny_source, tmp_path):
    plugin = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages"]
    installed = subprocess.run([*plugin, f"snakemake-executor-plugin-{name}"], text=True, capture_output=True)
    if installed.returncode:
        pytest.skip(f"the plug-in cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    tiny.configure(tmp_path)
    (tmp_path / "source").symlink_to(tiny_source / "source")
    (tmp_path / "docs.jsonl").symlink_to(tiny_source / "docs.jsonl")
    profile, snakefile = tiny.ROOT / "profiles" / name, tiny.ROOT / "Snakefile"
    words = ["--snakefile", str(snakefile), "--cores", "all", "--profile", str(profile), "--dry-run"]
    done = tiny.run(
        tmp_path, "snakemake", *words, "--config", "grid=config/grid.yaml", path=Path(tmp_path / "packages"), fork=False
    )
    assert done.returncode == 0 and "calibrate tiny" in done.output, done.output
