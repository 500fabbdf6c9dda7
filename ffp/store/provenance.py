"""What stood behind a number: code, versions, machine kind."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import ffp

_PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "safetensors", "tokenizers")


@functools.cache
def _commit() -> tuple[str, bool]:
    """(commit, dirty) of the checkout that ffp runs from; ("", False) outside one."""
    root = Path(ffp.__file__).parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", "ffp/__init__.py")
        return (git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "ffp"))) if tracked else ("", False)
    except (OSError, subprocess.CalledProcessError):
        return "", False


def provenance(*, seed: int | None = None, device: str = "cpu", **facts: Any) -> dict[str, Any]:
    """What stood behind a number: code, versions, machine kind, and the caller's facts (digests, parameters).

    Holds no time and no host name, so that the same inputs give the same bytes.
    """
    commit, dirty = _commit()
    return {
        "ffp": ffp.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "device": device,
        "seed": seed,
        **facts,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
