"""Fixtures that several kinds of tests share."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

from tests.faults.counts import COUNTED, write_section
from tests.helpers import hub as hubs
from tests.helpers import tiny

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; threads that wait for each other cost more than they do

COUNTS: Counter[str] = Counter()
TESTS: dict[str, list[str]] = {"fault": [], "bad_input": [], "skipped": []}


def pytest_addoption(parser):
    parser.addoption("--counts", type=Path, help="JSON to write: kills and faults survived, bad inputs refused, lost")


def pytest_runtest_logreport(report):
    """Count the tests that passed by their marks, and what they say that they counted themselves."""
    if report.skipped:
        TESTS["skipped"].append(report.nodeid)
    if report.when == "call" and report.passed:
        for name in ("fault", "bad_input"):
            if name in report.keywords:
                COUNTS[f"{name}s"] += 1
                TESTS[name].append(report.nodeid)
        COUNTS.update({name: value for name, value in report.user_properties if name in COUNTED})


def pytest_terminal_summary(terminalreporter):
    if any(COUNTS.values()):
        terminalreporter.write_line(", ".join(f"{name}: {COUNTS[name]}" for name in COUNTED))


def pytest_sessionfinish(session, exitstatus):
    if (path := session.config.getoption("--counts")) is not None and exitstatus == 0:
        write_section(path, "tests", COUNTS, {"by_mark": TESTS})


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory):
    """A folder with the model and the text of the tiny grid."""
    folder = tmp_path_factory.mktemp("source")
    tiny.sources(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_grid(tmp_path_factory):
    """A folder in which the tiny real grid has run to its end; add to it, but leave its files as they are.

    One worker of pytest-xdist runs the grid, and the others copy it.
    """
    folder = tmp_path_factory.mktemp("tiny")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _run_tiny_grid(folder)
    shared = tmp_path_factory.getbasetemp().parent / "tiny-grid"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            shutil.copytree(_run_tiny_grid(folder), f"{shared}.part")
            Path(f"{shared}.part").rename(shared)
            return folder
    return shutil.copytree(shared, folder, dirs_exist_ok=True)


def _run_tiny_grid(folder):
    tiny.build(folder)
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    return folder


@pytest.fixture
def hub_modules(monkeypatch, tmp_path):
    """Keep the modelling files that transformers copies and imports out of the user's cache."""
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, which the client of this process and of those that it starts asks."""
    with hubs.serve() as served:
        hubs.use(served.url, tmp_path / "hf", monkeypatch)
        yield served
