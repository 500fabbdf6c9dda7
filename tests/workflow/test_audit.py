"""`make audit`: pip-audit asks a database of this machine, or none."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT

pytestmark = pytest.mark.long  # installs pip-audit into an environment of its own
FAULT = {"id": "PYSEC-2020-1", "summary": "s", "details": "d", "modified": "2020-01-01T00:00:00Z",
         "published": "2020-01-01T00:00:00Z", "affected": [{
             "package": {"name": "bad", "ecosystem": "PyPI"},
             "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}]}]}  # fmt: skip


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The python of an environment with pip-audit, or the reason why there is none."""
    folder = tmp_path_factory.mktemp("audit") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    words = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        ROOT / ".ci/audit-requirements.txt",
    ]
    installed = subprocess.run([folder / "bin/python", *words], text=True, capture_output=True)
    if installed.returncode:
        pytest.skip(f"pip-audit cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    return folder / "bin/python"


class Database(BaseHTTPRequestHandler):
    """Answers as OSV does: one fault for the package `bad`."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"vulns": [FAULT]} if query["package"]["name"] == "bad" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Prints nothing."""


@pytest.fixture
def database() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def audit(python: Path, lock: Path, content: str, url: str) -> subprocess.CompletedProcess[str]:
    lock.write_text(content)
    cache = lock.with_name("cache")
    command = [python, ROOT / ".ci/audit.py", lock, "--osv-url", url, "--cache-dir", cache]
    return subprocess.run(command, text=True, capture_output=True)


@pytest.mark.slow
def test_a_known_vulnerability_fails_and_none_does_not(python, database, tmp_path):
    sound = audit(python, tmp_path / "lock.txt", "good==1.0\nother==2 ; sys_platform == 'win32'\n", database)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout.startswith("No known vulnerability in the 1 packages")
    faulty = audit(python, tmp_path / "lock.txt", "good==1.0\nbad==1.0\n", database)
    assert (faulty.returncode, faulty.stdout) == (1, "")
    assert faulty.stderr == "bad 1.0: PYSEC-2020-1, fixed in 1.1\n"


@pytest.mark.slow
def test_no_network_is_one_line_and_no_failure_but_a_bad_lock_is_one(python, tmp_path):
    closed = "http://127.0.0.1:9/v1/query"
    skipped = audit(python, tmp_path / "lock.txt", "good==1.0\n", closed)
    assert (skipped.returncode, skipped.stderr) == (0, "")
    assert len(skipped.stdout.splitlines()) == 1 and skipped.stdout.startswith("audit skipped: the database of")
    failed = audit(python, tmp_path / "lock.txt", "good>=1.0\n", closed)
    assert failed.returncode == 1 and failed.stderr.startswith("audit failed: ")


@pytest.mark.slow
def test_the_lock_itself_can_be_read(python, database):
    done = subprocess.run(
        [python, ROOT / ".ci/audit.py", ROOT / "constraints.txt", "--osv-url", database], text=True, capture_output=True
    )
    assert done.returncode == 0 and int(done.stdout.split("the ")[1].split()[0]) > 100, done.stdout + done.stderr
