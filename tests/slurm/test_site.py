"""`ffp site` on sites that differ: what fits runs, what does not is one line, before anything is spent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.slurm import virtual_cluster
from tests.slurm.test_slurm import site

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", params=["cons_tres", pytest.param("linear", marks=pytest.mark.long)])
def select(request: pytest.FixtureRequest) -> Iterator[str]:
    """The plug-in by which Slurm hands out resources; it is up."""
    with virtual_cluster(SELECT=request.param):
        yield request.param


def ask(tmp_path: Path, source: Path, resources: dict[str, Any], *options: str) -> tuple[int, list[str]]:
    """The exit code and the lines of `ffp site` for a model that asks for this."""
    folder = site(tmp_path, source)
    model = folder / "config/models/tiny.yaml"
    body = yaml.safe_load(model.read_text())
    model.write_text(yaml.safe_dump({**body, "device": "cpu", "resources": {**body["resources"], **resources}}))
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["ffp", "site", "--config", "config/grids/demo.yaml", *options], cwd=folder, text=True, capture_output=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(folder)}, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


def test_what_the_site_gives_is_found(select: str, tmp_path: Path, tiny_source: Path) -> None:
    """GPUs by number on one site; whole nodes on the other, whose steps cannot have a gres."""
    by_gpus = {"partition": "gpu", "score": {"partition": "short", "runtime_min": 4, "gres": "gpu:pretended:1"}}
    code, lines = ask(tmp_path, tiny_source, by_gpus if select == "cons_tres" else {"gpu": 0})
    assert code == 0, lines
    assert [line.split(": ok: ")[0] for line in lines] == ["search jobs of tiny", "score jobs of tiny"]
    assert all(": ok: node" in line and (", GPUs " in line) == (select == "cons_tres") for line in lines)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a partition whose limit is shorter": ({"partition": "short", "runtime_min": 60}, "PartitionTimeLimit|time limit"),
    "a QoS for shorter jobs": ({"qos": "narrow"}, "QOSMaxWallDurationPerJobLimit"),
    "a QoS that is not there": ({"qos": "nowhere"}, "[Ii]nvalid qos"),
    "a constraint that no node has": ({"constraint": "a100"}, "[Ii]nvalid feature|BadConstraints"),
    "a GPU that no node has": ({"gres": "gpu:h100:1"}, "not available|[Ii]nvalid|BadConstraints"),
    "a partition that is not there": ({"partition": "nowhere"}, "[Ii]nvalid partition"),
}


@pytest.mark.long
@pytest.mark.parametrize(("resources", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_what_the_site_does_not_give_is_one_line(
    select: str, tmp_path: Path, tiny_source: Path, resources: dict[str, Any], reason: str
) -> None:
    resources = {"gpu": 1 if select == "cons_tres" else 0, **resources}
    code, lines = ask(tmp_path, tiny_source, resources, "--wait", "30")
    assert code == 1 and len(lines) == 2, lines
    for line in lines:
        assert " failed: " in line
        assert re.search(reason, line), line
    queue = subprocess.run(["squeue", "-h", "--me"], text=True, capture_output=True, check=True).stdout
    assert queue == "", "no job is left behind"
