"""A hub of models on this machine: what Hugging Face's client asks for over HTTP, answered from folders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_reader"  # who sends it has accepted every licence
API = re.compile(
    r"/api/(models|datasets)/(?P<repo>.+?)(/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(/(?P<under>.*))?)?$"
)
FILE = re.compile(r"/(datasets/)?(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)$")
Files = Mapping[str, bytes]


class Hub:
    """What the server has, what it was asked, and how it misbehaves.

    Attributes:
        url: Its endpoint.
        requests: (method, path, Range header or "") of every request so far.
        gated: Repositories whose files only TOKEN opens.
        cut: Names of files whose next download breaks off after half of it.
        refused: Names of files that are answered with 403.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, str]] = []
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.refused: set[str] = set()
        self.commits: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}

    def push(self, repo: str, folder: Path, branch: str = "main", *, commit: str = "") -> str:
        """Makes the files of a folder a commit of a repository, which a branch then means; the commit's hash.

        commit: the hash that it shall have, if any.
        """
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        commit = commit or hashlib.sha1(b"".join(name.encode() + body for name, body in files.items())).hexdigest()
        self.commits.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def downloads(self) -> list[str]:
        """Names of the files that were downloaded, in part or whole, in alphabetical order."""
        found = (FILE.match(path) for method, path, _ in self.requests if method == "GET")
        return sorted(match["name"] for match in found if match)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        match = API.match(path) or FILE.match(path)
        asked = match.groupdict() if match else {}
        repo = asked.get("repo", "")
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo not in self.hub.commits:
            return self._fail(404 if known else 401, "RepoNotFound")
        revision = asked["revision"] or "main"
        commit = self.hub.branches[repo].get(revision, revision)
        if commit not in self.hub.commits[repo]:
            return self._fail(404, "RevisionNotFound")
        files = self.hub.commits[repo][commit]
        if "name" not in asked:
            return self._describe(repo, commit, files, asked)
        if repo in self.hub.gated and not known:
            return self._fail(401, "GatedRepo")
        if asked["name"] not in files:
            return self._fail(404, "EntryNotFound")
        if asked["name"] in self.hub.refused:
            return self._fail(403, "")
        return self._file(asked["name"], commit, files[asked["name"]])

    do_HEAD = do_GET

    def _describe(self, repo: str, commit: str, files: Files, asked: Mapping[str, str | None]) -> None:
        """A repository, or a list of its files: all of them, or those of one folder."""
        body: Any = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        if asked["what"] == "tree":
            within = f"{asked['under']}/" if asked["under"] else ""
            deep = "recursive=true" in self.path.lower()
            found = {n: b for n, b in files.items() if n.startswith(within)}
            body = [
                {"type": "file", "path": n, "size": len(b), "oid": _etag(b)}
                for n, b in found.items()
                if deep or "/" not in n.removeprefix(within)
            ]
            folders = {
                within + n.removeprefix(within).partition("/")[0] for n in found if "/" in n.removeprefix(within)
            }
            body += [{"type": "directory", "path": n, "size": 0, "oid": _etag(n.encode())} for n in sorted(folders)]
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, commit: str, body: bytes) -> None:
        head = {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start:
            head["Content-Range"] = f"bytes {start[1]}-{len(body) - 1}/{len(body)}"
            return self._send(206, body[int(start[1]) :], head)
        sent = len(body)
        if name in self.hub.cut and self.command == "GET":
            self.hub.cut.remove(name)
            sent //= 2
        return self._send(200, body, head, sent)

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, head: Mapping[str, str], sent: int | None = None) -> None:
        """Answer; only the first `sent` bytes of the body, after which the connection ends."""
        self.send_response(status)
        for name, value in {**head, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.close_connection |= sent is not None and sent < len(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """Runs a hub without repositories on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(url: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Points the client of this process, and of those that it starts, to a hub, with nobody logged in.

    Args:
        url: Endpoint of the hub.
        home: Folder for the client's own cache.
        patch: Undoes it.
    """
    import huggingface_hub.constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        patch.delenv(name, raising=False)
    environment = {"HF_ENDPOINT": url, "HF_HOME": home, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name, value in environment.items():
        patch.setenv(name, str(value))
    values = {
        "ENDPOINT": url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"), "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    }  # fmt: skip
    for name, value in values.items():
        patch.setattr(huggingface_hub.constants, name, value)
    huggingface_hub.close_session()  # one with the settings from before
