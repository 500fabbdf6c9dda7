"""Copies of a model on a node's own disk: one for all jobs, whole or not at all, and the shared folder without one."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffp.core.errors import ArtifactError
from ffp.pipeline.scratch import stage
from ffp.store.digests import asset_digest
from ffp.store.files import crc32, digest, sha256
from ffp.store.layout import AssetFiles
from ffp.store.schemas import AssetFile
from tests.faults.test_surroundings import APPLY, ffp, mounted, one_line
from tests.helpers.tiny import ROOT

STAGE = "import sys, logging; from pathlib import Path; from ffp.pipeline.scratch import stage\n" \
        "logging.basicConfig(level=logging.INFO); print(stage(Path(sys.argv[1])))"  # fmt: skip


def asset(folder: Path, content: bytes, **crcs: int) -> Path:
    """A fetched folder with one file; crcs: further entries of asset.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    files = {"model.safetensors": sha256(folder / "model.safetensors")}
    crc = {"model.safetensors": crc32(folder / "model.safetensors"), **crcs}
    AssetFile(kind="model", source={}, files=files, crc32=crc, digest=digest(files)).write(AssetFiles(folder).manifest)
    return folder


def start(model: Path, scratch: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FFP_SCRATCH": str(scratch)}
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, model], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def models(scratch: Path) -> Path:
    return scratch / f"ffp-{os.getuid()}" / "models"


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FFP_SCRATCH", "$NODE_DISK/own")
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    return tmp_path / "own"


def test_without_the_variable_the_shared_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("FFP_SCRATCH", raising=False)
    assert stage(tmp_path / "nowhere") == tmp_path / "nowhere"


@pytest.mark.fault
@pytest.mark.parametrize("named", ["$NOPE/own", "${NOPE}/own", "~nobody-of-that-name/own"])
def test_a_folder_of_a_variable_that_is_not_set_costs_one_warning(named, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOPE", raising=False)
    monkeypatch.setenv("FFP_SCRATCH", named)
    model = asset(tmp_path / "m", b"weights")
    assert stage(model) == model
    (warning,) = [record.getMessage() for record in caplog.records]
    assert named in warning and warning.endswith(". Reading the shared folder.")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_two_processes_at_once_make_one_copy(tmp_path):
    model = asset(tmp_path / "m", os.urandom(1 << 26))
    both = [start(model, tmp_path / "own") for _ in range(2)]
    said = [process.communicate() for process in both]
    paths = {out.strip() for out, _ in said}
    assert [process.returncode for process in both] == [0, 0] and len(paths) == 1, said
    assert sum("copying" in error for _, error in said) == 1
    copy = Path(paths.pop())
    assert copy.parent == models(tmp_path / "own") and asset_digest(copy) == asset_digest(model)
    assert [path.name for path in copy.parent.iterdir() if path.is_dir()] == [copy.name]


@pytest.mark.fault
def test_a_killed_copy_leaves_nothing_that_is_taken_for_whole(tmp_path, scratch):
    model, partials = asset(tmp_path / "m", bytes(1 << 28)), models(scratch)
    process, deadline = start(model, scratch), time.monotonic() + 60
    while not list(partials.glob(".*.partial/model.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.name[-8:] for path in partials.iterdir() if path.is_dir()] == [".partial"]
    copy = stage(model)
    assert copy.parent == partials and asset_digest(copy) == asset_digest(model)
    assert [path.name for path in partials.iterdir() if path.is_dir()] == [copy.name]


@pytest.mark.fault
def test_a_full_disk_costs_one_warning_and_no_result(tiny_grid, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        done = ffp(tiny_grid, *APPLY, "--out", str(tmp_path / "cell"), env={"FFP_SCRATCH": str(disk)})
        assert not [path for path in models(disk).iterdir() if path.is_dir()]
    assert done.returncode == 0
    (warning,) = [line for line in done.stderr.splitlines() if "no copy of" in line]
    assert "MB free. Free space there, or give a folder on a larger disk. Reading the shared folder." in warning
    owl = tiny_grid / "results/cells/tiny/structured/s0.30/owl/seed0"
    assert sha256(tmp_path / "cell/updates.safetensors") == sha256(owl / "updates.safetensors")


@pytest.mark.fault
def test_a_disk_that_fills_during_the_copy_costs_one_warning(tmp_path, monkeypatch, caplog):
    """Two copies at once each find room for one."""
    model, disk = asset(tmp_path / "m", bytes(1 << 20)), tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        monkeypatch.setenv("FFP_SCRATCH", str(disk))
        monkeypatch.setattr("ffp.pipeline.scratch.check_space", lambda *words: None)
        assert stage(model) == model
        assert not [path for path in models(disk).iterdir() if path.is_dir()]
    assert [record.getMessage().count("No space left on device. Reading the") for record in caplog.records] == [1]


@pytest.mark.fault
def test_a_job_reads_the_copy_and_gives_the_same_numbers(tiny_grid, tmp_path):
    """With the shared weights gone, so that nothing else can be read."""
    grid = shutil.copytree(tiny_grid, tmp_path / "grid", ignore=shutil.ignore_patterns(".snakemake"))
    environment = {"FFP_SCRATCH": str(tmp_path / "own")}
    assert ffp(grid, *APPLY, "--out", "first", env=environment).returncode == 0
    (grid / "data/models/tiny/model.safetensors").unlink()
    assert ffp(grid, *APPLY, "--out", "again", env=environment).returncode == 0
    for name in ("masks.safetensors", "updates.safetensors"):
        own = grid / "results/cells/tiny/structured/s0.30/owl/seed0" / name
        assert sha256(grid / "again" / name) == sha256(own)
    one_line(ffp(grid, *APPLY, "--out", "without"), 3, "model.safetensors is missing, damaged or was edited")


def test_copies_of_other_versions_stay_and_are_named(tmp_path, scratch, caplog):
    caplog.set_level(logging.INFO)
    first = stage(asset(tmp_path / "m", b"a"))
    second = stage(asset(tmp_path / "m", b"b"))
    assert first != second and first.is_dir() and (second / "model.safetensors").read_bytes() == b"b"
    assert f"also holds {first.name}, of other versions, which nobody removes" in caplog.text


@pytest.mark.fault
def test_a_damaged_copy_is_named_and_made_again_without_its_asset_json(tmp_path, scratch):
    model = asset(tmp_path / "m", b"abc")
    copy = stage(model)
    (copy / "model.safetensors").write_bytes(b"abd")
    with pytest.raises(ArtifactError, match=f"{copy}/model.safetensors is missing, damaged"):
        asset_digest(stage(model))
    (copy / "asset.json").unlink()
    assert asset_digest(stage(model)) == asset_digest(model)


@pytest.mark.fault
def test_a_damaged_shared_file_is_not_copied(tmp_path, scratch, caplog):
    model = asset(tmp_path / "m", b"abc")
    (model / "model.safetensors").write_bytes(b"abd")
    assert stage(model) == model
    assert "is damaged. Reading the shared folder" in caplog.text
    with pytest.raises(ArtifactError):
        asset_digest(model)


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path, scratch, caplog):
    (scratch / f"ffp-{os.getuid()}").mkdir(parents=True)
    (scratch / f"ffp-{os.getuid()}").chmod(0o777)
    model = asset(tmp_path / "m", b"abc")
    assert stage(model) == model and "is not this user's alone" in caplog.text


def test_a_link_in_place_of_the_folder_is_not_used(tmp_path, scratch, caplog):
    scratch.mkdir()
    (tmp_path / "theirs").mkdir(mode=0o700)
    (scratch / f"ffp-{os.getuid()}").symlink_to(tmp_path / "theirs")
    model = asset(tmp_path / "m", b"abc")
    assert stage(model) == model and "is not this user's alone" in caplog.text


@pytest.mark.bad_input
def test_a_file_outside_the_folder_is_not_copied(tmp_path, scratch, caplog):
    (tmp_path / "key").write_text("secret")
    model = asset(tmp_path / "m", b"abc", **{"../key": 0})
    assert stage(model) == model and "'../key' is not a plain relative path" in caplog.text
    assert not list(scratch.rglob("key"))
