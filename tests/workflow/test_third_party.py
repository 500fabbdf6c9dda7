"""A method of another package, found by its entry point, goes through a grid like a built-in one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ffp.store.schemas import AllocationFile, ScoresFile
from tests.helpers import tiny

PACKAGE = Path(__file__).parents[1] / "helpers/third_party"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder into which pip has installed the package."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            site,
            source,
        ],
        check=True,
    )
    return site


def test_a_method_of_another_package_runs_in_a_grid(installed: Path, tiny_source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    shutil.copytree(tiny_source, folder)
    grid = tiny.configure(folder)
    body = yaml.safe_load(grid.read_text())
    body |= {"methods": ["by-size"], "variants": {"by-size": {"params": {"strength": 1.0}}}}
    grid.write_text(yaml.safe_dump(body))
    done = tiny.snakemake(folder, path=installed)
    assert done.returncode == 0, done.output
    cell = folder / "results/cells/tiny/structured/s0.30/by-size/seed0"
    allocation = AllocationFile.read(cell / "allocation.json")
    assert allocation.settings["use"] == "by-size" and allocation.settings["parameters"] == {"strength": 1.0}
    assert ScoresFile.read(cell / "scores.json").block_sparsity >= 0.3
    assert "by-size" in (folder / "results/report/comparison.csv").read_text()
    refused = tiny.snakemake(folder, "--dry-run")
    assert refused.returncode != 0 and "unknown method 'by-size'" in refused.output
