"""What stood behind a number: code, versions, kind of machine."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ffp
from ffp.store.schemas import Provenance

_PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "safetensors", "tokenizers")


def test_keys(names: Sequence[str]) -> list[str]:
    """Returns by which key the provenance of an evaluation has the digest of each test text; names: of the texts."""
    return ["text", *(f"text {name}" for name in names[1:])]


@functools.cache
def _commit() -> tuple[str, bool]:
    """Returns (commit, dirty) of the checkout that ffp runs from; ("", False) outside one."""
    root = Path(ffp.__file__).parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", "ffp/__init__.py")
        return (git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "ffp"))) if tracked else ("", False)
    except (OSError, subprocess.CalledProcessError):
        return "", False


def provenance(
    inputs: Mapping[str, str | None] | None = None, *, seed: int | None = None, device: str = "cpu",
    settings: Any = None,
) -> Provenance:  # fmt: skip
    """Returns what stands behind a file: code, versions and kind of machine.

    It holds no time and no host name, so that the same inputs give the same bytes.

    Args:
        inputs: Digests of the files that were read, by what they are.
        seed: Seed of the method's random numbers; None where nothing is drawn.
        device: Device that computed.
        settings: Plain data that the numbers depend on, where the file has no other place for it.
    """
    commit, dirty = _commit()
    further = {**({} if settings is None else {"settings": settings}), **(inputs or {})}
    return Provenance(
        ffp=ffp.__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        machine=platform.machine(),
        device=device,
        seed=seed,
        **further,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
