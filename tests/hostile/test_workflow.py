"""Folders, titles and resources with hostile names in Snakemake and in what it would submit to Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from ffp.config import Experiment, ModelConfig
from ffp.core.errors import ConfigError
from ffp.pipeline import cluster
from tests.bad_input.refusal import Case, edit, refused
from tests.helpers import tiny
from tests.helpers.hostile import NULL, VALUES
from tests.helpers.sbatch import writing_down

REPORT = ["report", "--config", "config/grid.yaml", "--out", "out"]
MISREAD = [value for value in [*VALUES.values(), NULL] if cluster.fault_of_path(value)]
FREE = "{x} {{y}} $(touch owned) `touch owned` ; touch owned <a> \u202e"


@pytest.mark.bad_input
@pytest.mark.parametrize("key", ["data", "results"])
def test_a_folder_that_a_shell_or_snakemake_misreads_is_refused(key, tmp_path, monkeypatch, capfd):
    tiny.configure(tmp_path)
    assert len(MISREAD) > 15
    for value in MISREAD:
        case = Case("", edit("config/grid.yaml", **{key: value}), f"{key} = .*: a folder of the workflow .*Give it ano")
        refused(case, REPORT, tmp_path, monkeypatch, capfd)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name",
    [
        "$(touch owned).yaml",
        pytest.param("grid{x}.yaml", marks=pytest.mark.long),
        pytest.param("it's.yaml", marks=pytest.mark.long),
    ],
)
def test_a_grid_of_a_misread_name_is_refused_before_anything_runs(name, tiny_source, tmp_path):
    shutil.copytree(tiny_source, tmp_path, dirs_exist_ok=True)
    tiny.configure(tmp_path).rename(tmp_path / "config" / name)
    done = tiny.run(tmp_path, "snakemake", "--snakefile", str(tiny.ROOT / "Snakefile"), "--cores", "1", "--dry-run",
                    "--config", f"grid=config/{name}")  # fmt: skip
    assert done.returncode and "has the character" in done.output and "Rename it" in done.output
    assert not (tmp_path / "owned").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["{y}.json", "<b>.json", "it's.json"])
def test_a_misread_file_in_a_model_from_elsewhere_is_named(name, tiny_source, tmp_path, monkeypatch):
    shutil.copytree(tiny_source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "source" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(tiny.configure(Path()))
    with pytest.raises(ConfigError, match=r"path .*source/.* has the character .* Rename it"):
        cluster.check_paths(experiment)


@pytest.mark.bad_input
def test_jobs_are_not_sent_from_a_folder_that_a_shell_misreads(tmp_path, monkeypatch):
    (tmp_path / "$(touch owned)").mkdir()
    monkeypatch.chdir(tmp_path / "$(touch owned)")
    cluster.check("local", "Snakefile")
    with pytest.raises(ConfigError, match=r"jobs of cluster-generic are sent with it. Rename the folder"):
        cluster.check("cluster-generic", "Snakefile")


@pytest.fixture
def odd(tiny_source, tmp_path) -> Path:
    """A grid in a folder with quotes, with spaces in all its names and titles that look like wildcards and commands."""
    folder = tmp_path / 'it\'s a "grid" $(touch owned)'
    shutil.copytree(tiny_source, folder)
    tiny.configure(folder)
    (folder / "source").rename(folder / "the model; touch owned")
    (folder / "docs.jsonl").rename(folder / "the text & more.jsonl")
    edit("config/models/tiny.yaml", title=FREE, source__path="the model; touch owned")(folder)
    text = yaml.safe_load((folder / "config/texts/docs.yaml").read_text())
    text |= {"title": FREE}
    text["sources"][0]["source"]["path"] = "the text & more.jsonl"
    (folder / "config/texts/docs.yaml").write_text(yaml.safe_dump(text))
    edit("config/grid.yaml", title=FREE, data="the data; touch owned", results="re (sults) & touch owned",
         methods=["owl"])(folder)  # fmt: skip
    (folder / "config/grid.yaml").rename(folder / "config/the grid; touch owned.yaml")
    return folder


def snakemake(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(tiny.ROOT / "Snakefile"), "--cores", "1", *words]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {**os.environ, "PATH": path, "PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1", **environment}
    grid = "grid=config/the grid; touch owned.yaml"
    return subprocess.run([*command, "--config", grid], cwd=folder, env=own, text=True, capture_output=True)


@pytest.mark.long
def test_a_grid_with_spaces_quotes_and_commands_in_its_names_runs_and_runs_nothing_else(odd):
    done = snakemake(odd, "--profile", str(tiny.ROOT / "profiles/local"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (odd / "re (sults) & touch owned/report/index.html").is_file()
    assert not list(odd.parent.rglob("owned"))
    again = snakemake(odd, "--profile", str(tiny.ROOT / "profiles/local"), "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.slow
def test_slurm_is_given_names_and_resources_as_they_are(odd, tmp_path):
    folder = odd.rename(tmp_path / "a grid; touch owned")
    resources = {"constraint": "[a100|h100]&(b*2)", "qos": "--wrap", "partition": "gpu,long", "account": "it.is=+me"}
    edit("config/models/tiny.yaml", resources=resources)(folder)
    programs, said = writing_down(tmp_path)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = snakemake(
        folder, "--profile", str(tiny.ROOT / "profiles/slurm"), "--restart-times", "0", PATH=path, SAID=str(said)
    )
    assert done.returncode
    (call,) = [file.read_text().split("\0")[:-1] for file in said.iterdir()] or [done.stdout + done.stderr]
    value = dict(pairwise(call))
    assert value["--comment"] == "rule_calibrate_wildcards_tiny"
    assert (value["-C"], value["-A"], value["-p"]) == ("[a100|h100]&(b*2)", "it.is=+me", "gpu,long")
    assert "--qos=--wrap" in call and value["-D"] == str(folder)
    (wrapped,) = [word.removeprefix("--wrap=") for word in call if word.startswith("--wrap=")]
    assert "'the data; touch owned/models/tiny/asset.json'" in wrapped
    assert "'grid=config/the grid; touch owned.yaml'" in wrapped
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.bad_input
@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "gres"])
@pytest.mark.parametrize(
    "value", [value for value in VALUES.values() if len(value) < 200 and not value.startswith("-")]
)
def test_a_resource_of_slurm_cannot_be_more_than_a_word(key, value):
    with pytest.raises(ValueError, match="pattern"):
        ModelConfig.model_validate({"title": "a", "source": {"kind": "local", "path": "x"}, "resources": {key: value}})
