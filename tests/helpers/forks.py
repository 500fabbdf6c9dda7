"""`ffp` and `snakemake` without their start: a process that has imported both waits, and forks for each command.

On a tiny model the imports of torch and transformers take longer than the command. All else is as in a process of its
own: the working directory, the environment, what is printed where, the exit code. Who kills the client with SIGKILL
kills the command as suddenly. A command whose imports depend on the environment has to be the real one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

from ffp.allocators import METHODS
from ffp.store import code_version
from ffp.store.identity import code_of

ROOT = Path(__file__).parents[2]
IMPORTED = ("ffp.pipeline.steps", "ffp.pipeline.recover", "ffp.pipeline.verify", "ffp.report", "snakemake.cli")
# Sends its words, folder, environment and the three standard files, and waits until the command's process ends.
CLIENT = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    command = json.dumps([[{name!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(command).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(command)
    code = server.makefile("rb").read()
sys.exit(code[0] if code else 1)
"""


def folder(packages: Path = ROOT) -> Path:
    """A folder with `ffp` and `snakemake`, whose commands are forked until this process ends.

    packages: another folder with packages to import.
    """
    return _start(packages)


@cache
def _start(packages: Path) -> Path:
    found = Path(tempfile.mkdtemp(prefix="ffp-"))
    for name in ("ffp", "snakemake"):
        (found / name).write_text(CLIENT.format(python=sys.executable, address=str(found / "socket"), name=name))
        (found / name).chmod(0o755)
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"), "1")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.forks", found / "socket"], cwd=ROOT, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **offline, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"},
    )  # fmt: skip

    def stop() -> None:
        server.terminate()
        server.wait()
        shutil.rmtree(found)

    atexit.register(stop)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return found


def wait_for_command(address: str) -> socket.socket:
    """The connection to a client, in a new process; this one goes on to wait, as long as that which started it."""
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        server.settimeout(1)
        print("ready", flush=True)
        while os.getppid() == parent:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            with suppress(TimeoutError):
                connection, _ = server.accept()
                if not os.fork():
                    return connection
                connection.close()
    sys.exit()


def run(connection: socket.socket) -> int:
    """Runs the command that a client sends; its exit code."""
    length, files, *_ = socket.recv_fds(connection, 8, 3)
    sent = connection.makefile("rb").read(int.from_bytes(length, "big"))
    (name, *words), place, environment = json.loads(sent)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115  # other files than before
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [name, *words]
    threading.Thread(target=die_with, args=[connection], daemon=True).start()
    try:
        return importlib.import_module(f"{name}.cli").main(words) or 0
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        return 1


def die_with(connection: socket.socket) -> None:
    """Kills this process once the client is gone, which sends nothing after its command."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    importlib.import_module("transformers").LlamaForCausalLM  # noqa: B018  # transformers imports what is asked for
    for step in code_version.ROOTS.keys() - {"allocate"}:  # the digests of the code are kept, too
        code_of(step)
    for method in METHODS.values():
        code_of("allocate", method)
    gc.freeze()
    connection = wait_for_command(sys.argv[1])
    code = run(connection)
    connection.sendall(bytes([code]))
    sys.exit(code)
