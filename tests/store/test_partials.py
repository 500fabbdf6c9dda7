"""Temporary files: those of killed writers are removed by the next writer, those of writers at work stay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ffp.store.files import whole, whole_folder
from tests.helpers.tiny import ROOT

WRITERS = {
    "file": "with files.whole(path) as made: made.write_text('half'); wait()",
    "folder": "with files.whole_folder(path) as made: (made / 'a').write_text('half'); wait()",
}
CODE = """
import sys
from pathlib import Path
from ffp.store import files

path = Path(sys.argv[1])
def wait():
    print("ready", flush=True)
    sys.stdin.readline()

"""


def start(kind: str, path: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing `path`; a line on its standard input lets it finish."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE + WRITERS[kind], path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def write(kind: str, path: Path) -> None:
    if kind == "file":
        with whole(path) as made:
            made.write_text("whole")
    else:
        with whole_folder(path, overwrite=True) as made:
            (made / "ffp.json").write_text("whole")


@pytest.mark.fault
@pytest.mark.parametrize("kind", WRITERS)
def test_the_next_writer_removes_what_a_killed_one_left(kind, tmp_path, record_property):
    path = tmp_path / "x[1].json"
    killed = start(kind, path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [left.suffix for left in tmp_path.iterdir()] == [".partial"]
    write(kind, path)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
    record_property("kills", 1)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_at_work_keeps_its_file(kind, tmp_path):
    path = tmp_path / "x.json"
    slow = start(kind, path)
    (held,) = tmp_path.iterdir()
    if kind == "file":
        write(kind, path)
        assert path.read_text() == "whole"
    assert held.exists()
    slow.communicate("\n")
    assert slow.returncode == 0 and [left.name for left in tmp_path.iterdir()] == [path.name]


def test_files_with_longer_names_stay(tmp_path):
    """Another file's own, such as the lock of an editor, is no temporary file of ours."""
    (tmp_path / ".x.json.swp").touch()
    write("file", tmp_path / "x.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.json.swp", "x.json"]
