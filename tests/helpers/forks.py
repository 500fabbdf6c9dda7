"""`ffp` without its start: a process that has imported what the commands import, and forks for each of them.

On a tiny model the imports of torch and transformers take longer than the command. All else is as in a process of its
own: the working directory, the environment, what is printed where, the exit code. Commands that a test kills, or
whose imports depend on the environment, are run by the real `ffp`.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORTED = ("ffp.pipeline.steps", "ffp.pipeline.recover", "ffp.pipeline.verify", "ffp.report")
# Sends its words, folder, environment and the three standard files, and waits for the exit code.
CLIENT = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    command = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(command).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(command)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


class Command(socketserver.StreamRequestHandler):
    """One command, in a fork of the server."""

    def handle(self) -> None:
        length, files, *_ = socket.recv_fds(self.request, 8, 3)
        words, folder, environment = json.loads(self.rfile.read(int.from_bytes(length, "big")))
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        code = 1
        try:
            from ffp.cli import main

            code = main(words)
        except Exception:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        self.request.sendall(bytes([code]))


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Ends with the process that started it."""

    parent = os.getppid()

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.parent:
            sys.exit()


@cache
def folder() -> Path:
    """A folder with an `ffp` whose commands are forked, from here on until this process ends."""
    found = Path(tempfile.mkdtemp(prefix="ffp-"))
    client = found / "ffp"
    client.write_text(CLIENT.format(python=sys.executable, address=str(found / "socket")))
    client.chmod(0o755)
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"), "1")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.forks", found / "socket"], cwd=ROOT, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **offline, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def stop() -> None:
        server.terminate()
        server.wait()
        shutil.rmtree(found)

    atexit.register(stop)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return found


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    importlib.import_module("transformers").LlamaForCausalLM  # noqa: B018  # transformers imports on first use

    with Server(sys.argv[1], Command) as server:
        print("ready", flush=True)
        server.serve_forever()
