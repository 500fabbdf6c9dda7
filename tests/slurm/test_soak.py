"""A short form of the soak: twelve cells on a Slurm whose jobs, Snakemake, disk and nodes fail twice each."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.soak import FAULTS, KILLS, soak
from tests.helpers.slurm import virtual_cluster


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.fault
def test_a_grid_survives_whatever_fails_on_a_cluster(tmp_path: Path) -> None:
    seed = int(time.time())
    print(f"faults drawn with seed {seed}")
    with virtual_cluster():
        found = soak(tmp_path, tmp_path / "whole", cells=12, minutes=3, each=2, seed=seed)
    assert found["kills"] == dict.fromkeys(KILLS, 2) and found["faults"] == dict.fromkeys(FAULTS, 2)
    assert found["cells"] == 13
    assert not found["lost"] and not found["orphans"] and not found["leftovers"]
