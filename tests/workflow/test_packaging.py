"""One lock, one install and one command line, named the same wherever they are named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[2]
EXPERIMENT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _requirements(path: str) -> list[Requirement]:
    """The requirement of each line of a pip file, comments left out; raises on a line that is none."""
    lines = (line.split(" #")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _declared() -> dict[NormalizedName, Requirement]:
    """Direct dependencies of pyproject.toml, extras included, by normal name."""
    optional = [text for extra in EXPERIMENT["optional-dependencies"].values() for text in extra]
    found = [Requirement(text) for text in [*EXPERIMENT["dependencies"], *optional]]
    return {canonicalize_name(one.name): one for one in found if one.name != EXPERIMENT["name"]}


def test_every_direct_dependency_is_pinned_within_its_bound() -> None:
    pins = {canonicalize_name(one.name): one for one in _requirements("requirements.in")}
    assert set(pins) == set(_declared())
    for name, bound in _declared().items():
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert bound.specifier.contains(pin.version), f"{name} {pin.version} is outside {bound}"


def test_the_lock_holds_exact_versions_of_index_packages_only() -> None:
    locked = _requirements("constraints.txt")
    for one in locked:
        assert [spec.operator for spec in one.specifier] == ["=="], f"{one} is not exact"
        assert one.url is None, f"{one} names a place"
        assert not one.extras, f"{one}: pip refuses extras in constraints"
        (spec,) = one.specifier
        assert "+" not in spec.version, f"{one} is a build for one kind of machine"
    versions = {(canonicalize_name(one.name), str(one.specifier)) for one in locked}
    for pin in _requirements("requirements.in"):
        assert (canonicalize_name(pin.name), str(pin.specifier)) in versions, f"compile the lock again: {pin}"


@pytest.mark.parametrize("path", ["constraints.txt", "requirements.in", "environment.yml", "pyproject.toml"])
def test_no_file_of_the_install_names_an_index_or_a_place_of_this_machine(path: str) -> None:
    text = (ROOT / path).read_text()
    assert not re.search(r"--(extra-)?index-url|--find-links|file:|(?<![\w.])/(home|root|work|tmp)/", text)


def test_conda_installs_the_same_files() -> None:
    body = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = body["dependencies"]
    assert all(re.fullmatch(r"[a-z][a-z0-9_-]*(=[0-9.]+)?", spec) for spec in packages)
    assert packages == ["python=3.11", "pip"]
    assert EXPERIMENT["requires-python"] == ">=3.11"
    assert pip == {"pip": ["-r requirements.in", "-c constraints.txt", "-e .[grid,test]"]}


def test_make_installs_what_a_grid_and_the_tests_need() -> None:
    assert "-e '.[grid,test]'" in (ROOT / "Makefile").read_text()


def test_ci_runs_what_a_developer_runs() -> None:
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert "set -euo pipefail" in script
    assert {"make docs", "make test"} <= set(script)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"install", "demo", "test", "check", "clean"} <= set(targets)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_profiles_keep_checksums_of_large_inputs(name: str) -> None:
    profile = yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text())
    assert profile["max-checksum-file-size"] == 100_000_000
    assert profile["rerun-incomplete"] is True


def test_the_slurm_profile_is_found_by_its_name() -> None:
    link = ROOT / "slurm"
    assert link.is_symlink()
    assert link.readlink() == Path("profiles/slurm")
    assert not (ROOT / "profiles/default").exists(), "Snakemake would load it by itself, before any --profile"


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_commands_of_the_documents_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
        assert (ROOT / target).exists(), f"{path} links to {target}, which does not exist"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^ *make ([a-z]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, f"{path} names `make {target}`, which does not exist"
