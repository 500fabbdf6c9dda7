"""One run at a time in a folder; what a dead run leaves behind is removed."""

import os
import subprocess
import sys

import pytest

from ffp.core.errors import ConfigError
from ffp.pipeline import locks

HOLDER = """
import pathlib, sys, time
from ffp.pipeline import locks
locks.hold(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A live process that holds the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def leave_locks(folder):
    (folder / "locks").mkdir()
    (folder / "locks" / "0.input.lock").write_text("results/x\n")


@pytest.mark.fault
def test_a_second_run_is_refused_and_the_first_is_named(tmp_path, other):
    leave_locks(tmp_path)
    locks.clear_stale(tmp_path)
    assert (tmp_path / "locks" / "0.input.lock").exists()
    with pytest.raises(ConfigError, match=f"another run \\(process {other.pid}\\) is at work in .*Wait for its end"):
        locks.hold(tmp_path)


def test_a_killed_run_leaves_nothing_in_the_way(tmp_path, other):
    leave_locks(tmp_path)
    other.kill()
    other.wait()
    locks.clear_stale(tmp_path)
    assert not (tmp_path / "locks").exists()
    locks.hold(tmp_path)
    assert (tmp_path / "ffp.lock").read_text() == str(os.getpid())
    locks._held.pop().release()


def test_the_holder_is_named_while_it_lives(tmp_path, other):
    assert locks.holder(tmp_path) == str(other.pid)
    other.kill()
    other.wait()
    assert locks.holder(tmp_path) is None


def test_a_folder_without_a_run_stays_untouched(tmp_path):
    locks.clear_stale(tmp_path / "none")
    assert locks.holder(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
