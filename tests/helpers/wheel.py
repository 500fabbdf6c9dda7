"""The package as users install it, without an extra, in an environment from which the repository cannot be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
OFFLINE = ("--no-deps", "--no-index")
IN_CORE = {"jinja2"}  # of the extras, what torch brings anyway
BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


@dataclass(frozen=True)
class Installed:
    """An environment with the package.

    Attributes:
        bin: Its `python` and `ffp`.
        folder: An empty folder to run them in.
        sdist: What the wheel was built from.
        wheel: What was installed.
    """

    bin: Path
    folder: Path
    sdist: Path
    wheel: Path

    def run(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the environment to its end."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run([self.bin / command, *words], cwd=self.folder, env=env, text=True, capture_output=True)

    def output(self, command: str, *words: str) -> str:
        """Runs a command that has to succeed; what it prints."""
        done = self.run(command, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout


def install(folder: Path) -> Installed:
    """Builds an sdist of this checkout and a wheel of that, and installs the wheel below `folder`."""
    sdist, wheel = build(folder)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, wheel], check=True)
    borrow_packages(folder / "packages", absent=extra_packages())
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{folder / 'packages'}\n")
    (folder / "empty").mkdir()
    return Installed(environment / "bin", folder / "empty", sdist, wheel)


def build(folder: Path) -> tuple[Path, Path]:
    """Builds in a copy of the sources, so that nothing is left in the checkout; the sdist and the wheel."""
    source, dist = folder / "source", folder / "dist"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("config", "ffp"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, dist], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = dist.iterdir()
    subprocess.run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", dist, sdist], check=True)
    (wheel,) = dist.glob("*.whl")
    return sdist, wheel


def extra_packages() -> set[str]:
    """The packages that come with the extras `grid` and `tasks` only."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {Requirement(text).name for text in (*extras["grid"], *extras["tasks"])} - {"ffp"} - IN_CORE


def borrow_packages(folder: Path, absent: set[str]) -> None:
    """Links the packages of this environment into `folder`: all but ffp, those named and whatever a .pth file adds."""
    left_out = {file.parts[0] for name in ("ffp", *absent) for file in metadata.distribution(name).files or ()}
    folder.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if entry.name not in {*left_out, "ffp", "__pycache__"} and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
