"""One lock, one install and one command line, named the same everywhere; and the package without the repository."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

import ffp
from ffp.allocators import METHODS
from tests.helpers import wheel
from tests.helpers.wheel import Installed

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
    assert {"make docs", "make test || failed=1", 'exit "$failed"'} <= set(script)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"install", "demo", "test", "check", "clean"} <= set(targets)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_stage_of_dvc_takes_a_grid_with_blanks_in_its_name() -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["grid"]
    runs = [command for command in stage["cmd"] if "snakemake" in command]
    assert len(runs) == 2
    for command in runs:
        words = shlex.split(command.replace("${grid}", "config/grids/my grid.yaml"))
        assert words[words.index("--config") + 1] == "grid=config/grids/my grid.yaml"


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


KINDS = ("models", "texts", "tasks")
ENTRIES = sorted((kind, file.stem) for kind in KINDS for file in (ROOT / "config" / kind).glob("*.yaml"))
NEEDS_GRID = ("ffp.report", "ffp.pipeline.status", "ffp.pipeline.verify")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, without the packages of the extras."""
    return wheel.install(tmp_path_factory.mktemp("wheel"))


def test_sdist_and_wheel_hold_the_package_with_its_data_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = {f"ffp/config/entries/{kind}/{name}.yaml" for kind, name in ENTRIES}
    data |= {f"ffp/report/{name}" for name in ("captions.html", "page.css", "page.js", "template.html")}
    code = {file.relative_to(ROOT).as_posix() for file in (ROOT / "ffp").rglob("*.py")}
    recorded = {"ffp/store/accepted.json"} if (ROOT / "ffp/store/accepted.json").exists() else set()
    assert files == code | data | recorded | {"ffp/py.typed"}
    with tarfile.open(installed.sdist) as source:
        members = {member.name.partition("/")[2]: member for member in source.getmembers()}
    assert files <= set(members)
    assert all(members[name].isfile() for name in files), "a link, which would lead nowhere"


def test_the_installed_package_is_not_the_checkout(installed: Installed) -> None:
    place = "import ffp, sys; print(ffp.__file__, *sys.path, sep='\\n')"
    module, *path = installed.output("python", "-c", place).splitlines()
    assert Path(module).is_relative_to(installed.bin.parent)
    assert not any(Path(folder) in (ROOT, *ROOT.parents) for folder in path if folder)
    assert installed.output("ffp", "--version") == f"ffp {ffp.__version__}\n"


def test_the_installed_package_lists_what_it_brings(installed: Installed) -> None:
    for kind in KINDS:
        names = [line.split()[0] for line in installed.output("ffp", "list", kind).splitlines()]
        assert names == [name for each, name in ENTRIES if each == kind]
    rows = json.loads(installed.output("ffp", "list", "methods", "--json"))
    assert [row["name"] for row in rows] == list(METHODS)
    find = "from ffp.config.catalog import find_entry; print(find_entry('models', 'smollm2-135m'))"
    file = Path(installed.output("python", "-c", find).strip())
    assert file.is_relative_to(installed.bin.parent)
    assert file.read_text() == (ROOT / "config/models/smollm2-135m.yaml").read_text()


def test_help_shows_the_docstring_and_every_public_function(installed: Installed) -> None:
    text = installed.output("python", "-c", "import ffp; help(ffp)")
    assert (ffp.__doc__ or "").splitlines()[0] in text
    for name in ffp.__all__:
        assert re.search(rf"^    (class )?{name}\(", text, re.MULTILINE), f"help(ffp) does not show {name}"


def test_importing_and_listing_loads_no_package_of_a_grid_and_no_torch() -> None:
    """In the environment of the tests, where all of them are installed."""
    code = "import sys, ffp, ffp.cli; [ffp.cli.main(['list', kind]) for kind in ('methods', 'models')]; "
    code += "print([name for name in ('snakemake', 'dvc', 'matplotlib', 'lm_eval', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_all_but_the_report_works_without_the_extras(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        files = [name for name in archive.namelist() if name.endswith(".py")]
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
    wanted = [name for name in modules if not name.startswith(NEEDS_GRID)]
    code = f"import importlib\nfor name in {wanted}: importlib.import_module(name)"
    assert len(wanted) > 80 and installed.output("python", "-c", code) == ""


def test_a_missing_extra_is_named_with_its_remedy(installed: Installed) -> None:
    for words in (["report", "--config", "x", "--out", "x"], ["status", "--config", "x"], ["compare", "x", "x"]):
        done = installed.run("ffp", *words)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert re.fullmatch(rf"ffp {words[0]}: \w+ is not installed. Run: pip install \"ffp\[grid\]\"", line)
    score = "from ffp.measure.tasks import score_tasks; score_tasks(*[None] * 4, documents=0, seed=0, batch_tokens=1)"
    line = installed.run("python", "-c", score).stderr.splitlines()[-1]
    assert line.endswith('ConfigError: lm_eval is not installed. Run: pip install "ffp[tasks]"')


def test_the_installed_package_prunes_a_model_in_an_empty_folder(
    installed: Installed, tiny_source: Path, tmp_path: Path
) -> None:
    out, text = str(tmp_path / "small"), str(tiny_source / "docs.jsonl")
    words = ["prune", str(tiny_source / "source"), "--sparsity", "0.3", "--text", text, "--tokens", "1024"]
    printed = installed.output("ffp", *words, "--context", "64", "--calibration-tokens", "256", "--out", out)
    assert f"Saved in {out}" in printed
    code = f"""
import ffp
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
source = {str(tiny_source / "source")!r}
model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
assert ffp.load_pruned({out!r}).num_parameters() < model.num_parameters()
small = {{"context": 64, "windows": 2}}
found = ffp.allocate(model, tokenizer, sparsity=0.1, method="uniform", text=Path({text!r}), calibration=small,
                     search=small, evaluation=small)
print(len(found.keep))
"""
    assert installed.output("python", "-c", code) == "6\n"
    assert not list(installed.folder.iterdir())  # nothing was left where it ran


def test_a_users_program_is_typed(installed: Installed, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs the linters: make check")
    program = tmp_path / "program.py"
    program.write_text("""import ffp
from transformers import PreTrainedModel, PreTrainedTokenizerBase

def smaller(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    pruned = ffp.prune(model, tokenizer, sparsity=0.3)
    reveal_type(pruned)
    reveal_type(ffp.allocate(model, tokenizer, sparsity=0.5, method="owl").keep)
    return pruned.summary()
""")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed.bin / "python", program],
        cwd=tmp_path, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert 'Revealed type is "ffp.pipeline.result.Pruned"' in done.stdout
    assert "dict[str, int]" in done.stdout.replace("builtins.", "")
