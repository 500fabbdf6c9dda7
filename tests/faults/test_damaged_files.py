"""Damaged files of every kind that a grid has: each is named, and deleted it is made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ffp.config import Experiment
from tests.faults.test_surroundings import CELL, ffp
from tests.helpers import tiny
from tests.helpers.folders import differences
from tests.helpers.verify import faults

KINDS = [
    "data/models/tiny/model.safetensors", "data/models/tiny/config.json", "data/text/docs/search.jsonl",
    "data/calibration/tiny/tokens.safetensors", "data/calibration/tiny/stats.safetensors",
    "data/calibration/tiny/calibrate.cost.json", f"{CELL}/allocation.json", f"{CELL}/trace.parquet",
    f"{CELL}/search.cost.json", f"{CELL}/answers.json", f"{CELL}/policy.safetensors", f"{CELL}/masks.safetensors",
    f"{CELL.replace('fastforward', 'owl')}/updates.safetensors", f"{CELL}/scores.json",
    "results/report/comparison.csv", "results/report/comparison.parquet", "results/report/metrics.json",
    "results/report/index.html", "results/report/quality_cost.svg",
]  # fmt: skip


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zero(path: Path) -> None:
    """What some file systems make of a file after a power failure."""
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path) -> None:
    """Exchange a file's content with that of a sound file of another cell, split or kind."""
    other = next(candidate for candidate in twins(path) if candidate.exists())
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def twins(path: Path) -> list[Path]:
    """Files that may be mistaken for this one."""
    name = {"tokens": "stats", "stats": "tokens", "search": "test", "comparison": "summary"}.get(path.stem)
    fellows = [path.with_stem(name)] if name else []
    fellows += [Path(str(path).replace(f"/{method}/", "/fastforward-guided/")) for method in ("owl", "fastforward")]
    fellows = [fellow for fellow in fellows if fellow != path]
    return fellows + sorted(
        other for other in path.parent.iterdir() if other.is_file() and other != path and other.name != "asset.json"
    )


@pytest.fixture(scope="module")
def sound(tiny_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished tiny grid in which one file at a time is damaged, and put back."""
    folder = tmp_path_factory.mktemp("sound") / "grid"
    shutil.copytree(tiny_grid, folder, ignore=shutil.ignore_patterns(".snakemake"))
    return folder


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.parametrize("damage", [truncate, flip, empty, zero, swap])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_is_named_when_it_alone_is_damaged(
    sound: Path, kind: str, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sound)
    before = {path: path.read_bytes() for path in [Path(kind), *twins(Path(kind))] if path.exists()}
    damage(Path(kind))
    found = faults(Experiment(Path("config/grid.yaml")))
    for path, content in before.items():
        path.write_bytes(content)
    assert any(fault.startswith(kind) for fault in found), found


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.parametrize("damage", [truncate, flip, empty, zero])
def test_damage_everywhere_is_named_in_one_pass_and_mended(
    grid: Path, tiny_grid: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """All kinds at once: verify names each file; those deleted and the grid run again, all is as it was."""
    for kind in KINDS:
        damage(grid / kind)
    verified = ffp(grid, "verify", "--config", "config/grid.yaml")
    assert verified.returncode == 3 and "Traceback" not in verified.stderr
    for kind in KINDS:
        assert kind in verified.stderr, f"{kind} was damaged and not named"
    for kind in KINDS:
        (grid / kind).unlink()
    for asset in ("data/models/tiny", "data/text/docs"):
        (grid / asset / "asset.json").unlink()
    done = tiny.snakemake(grid)
    assert done.returncode == 0, done.output  # type: ignore[attr-defined]
    assert not differences(tiny_grid, grid, tmp_path / "compared")
    assert ffp(grid, "verify", "--config", "config/grid.yaml").returncode == 0
