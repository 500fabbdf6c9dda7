"""DVC around the workflow: a second repro does nothing, a clone is complete after a pull, and nothing stale is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import yaml

from tests.helpers.site import ROOT, Site, make

BIN = Path(sys.executable).parent
TRACKED = ("Snakefile", "workflow", "profiles", "ffp", "constraints.txt", "environment.yml", "dvc.yaml", ".dvcignore",
           "data/README.md", "results/README.md")  # fmt: skip


KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1"}  # fmt: skip


def run(folder: Path, *words: str, figure: int = 1) -> str:
    """A command that has to succeed, with the replacement for ffp before the real one; all that it said."""
    path = f"{folder / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
    names = {f"GIT_{who}_{what}": "ffp" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **names, **KEYS, "PATH": path, "PYTHONPATH": str(folder), "FAIL": "no cell",
             "FIGURE": str(figure), "DVC_NO_ANALYTICS": "1", "SNAKEMAKE_PROFILE": "profiles/local"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def commands(folder: Path) -> int:
    return len((folder / "commands.txt").read_text().splitlines()) if (folder / "commands.txt").exists() else 0


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on this machine with an empty bucket `store`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **KEYS},
    )  # fmt: skip
    address, direct = f"http://127.0.0.1:{port}", build_opener(ProxyHandler({}))
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), direct.open(Request(f"{address}/store", method="PUT")):
                break
            time.sleep(0.5)
        else:
            pytest.fail("the S3 server did not start within a minute")
        yield address
    finally:
        server.kill()
        server.wait()


def checkout(folder: Path) -> Site:
    """A checkout with a grid of replacements, which DVC and git know."""
    folder.mkdir()
    site = make(folder)
    for name in TRACKED:
        source = ROOT / name
        (folder / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    site.write("grids/demo.yaml", {**site.read("grid.yaml"), "evaluation": {"seed": 0}})
    (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text() + "/commands.txt\n")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    return site


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Path:
    """A checkout whose results are in dvc.lock and in a store on S3."""
    folder = checkout(tmp_path_factory.mktemp("dvc") / "first").folder
    run(folder, "dvc", "remote", "add", "-d", "store", "s3://store/ffp")
    run(folder, "dvc", "remote", "modify", "store", "endpointurl", s3)
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "results")
    run(folder, "dvc", "push", "-q")
    return folder


def test_a_second_repro_does_nothing(repository: Path) -> None:
    before = commands(repository)
    assert "up to date" in run(repository, "dvc", "repro")
    assert commands(repository) == before


def test_a_grid_without_tasks_is_kept_and_a_clone_of_it_is_complete(tmp_path: Path) -> None:
    """DVC asks for every output that dvc.yaml names."""
    site = checkout(tmp_path / "first")
    grid = site.read("grids/demo.yaml")
    del grid["tasks"]
    site.write("grids/demo.yaml", grid)
    run(site.folder, "dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    run(site.folder, "dvc", "repro")
    assert "up to date" in run(site.folder, "dvc", "repro")
    run(site.folder, "git", "add", "-A")
    run(site.folder, "git", "commit", "-q", "-m", "results")
    run(site.folder, "dvc", "push", "-q")
    run(tmp_path, "git", "clone", "-q", str(site.folder), "clone")
    run(tmp_path / "clone", "dvc", "pull", "-q")
    assert "up to date" in run(tmp_path / "clone", "dvc", "repro")
    assert commands(tmp_path / "clone") == 0


def test_a_clone_is_complete_after_a_pull_and_one_sparsity_more_runs_just_its_cells(repository: Path) -> None:
    clone = repository.parent / "clone"
    run(repository.parent, "git", "clone", "-q", str(repository), str(clone))
    assert (clone / "data/README.md").is_file() and (clone / "results/README.md").is_file()
    run(clone, "dvc", "pull", "-q")
    assert "up to date" in run(clone, "dvc", "repro")
    run(clone, "snakemake", "--cores", "all", "--profile", "profiles/local", "assets")
    fetched = commands(clone)
    assert fetched == 1, "the model, which is not stored, is fetched again; nothing else"
    text = run(clone, "snakemake", "--cores", "all", "--profile", "profiles/local", "--dry-run")
    assert "Nothing to be done" in text
    grid = clone / "config/grids/demo.yaml"
    body = yaml.safe_load(grid.read_text())
    grid.write_text(yaml.safe_dump({**body, "sparsities": [0.2, 0.3, 0.4]}))
    run(clone, "dvc", "repro")
    assert commands(clone) - fetched == 1 + 4 + 4 + 4 + 1, (
        "preflight; four methods are allocated, cut and scored; one report"
    )


def test_an_edit_of_one_methods_code_is_never_recorded_with_old_results(repository: Path) -> None:
    source = repository / "ffp/allocators/searches/evolutionary.py"
    before = commands(repository)
    source.write_text(source.read_text().replace("MAX_SWITCHES = 3", "MAX_SWITCHES = 4"))
    run(repository, "dvc", "repro")
    assert commands(repository) - before == 2 * 3 + 1, "two cells of evolution, and the report"
    source.write_text(source.read_text() + "\n# A comment.\n")
    before = commands(repository)
    run(repository, "dvc", "repro")
    assert commands(repository) == before, "a comment changes no number"


def test_one_model_more_runs_just_its_cells(repository: Path) -> None:
    site = Site(repository)
    site.write("models/second.yaml", site.read("models/tiny.yaml"))
    site.write("grids/demo.yaml", {**site.read("grids/demo.yaml"), "models": ["tiny", "second"]})
    before = commands(repository)
    run(repository, "dvc", "repro")
    new = site.commands()[before:]
    assert len(new) == 3 + (8 + 8 + 9) + 1, "the model, preflight, its calibration, its cells; one report"
    assert all("second" in " ".join(words) for words in new if words[0] != "report")


def test_commits_are_compared_by_metrics_and_plots(repository: Path) -> None:
    """Another figure after a raised search budget, against the last commit; nothing is fetched or run for it."""
    site = Site(repository)
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-q", "-m", "before")
    site.write("grids/demo.yaml", {**site.read("grids/demo.yaml"), "search": {"evaluations": 7}})
    run(repository, "dvc", "repro", figure=2)
    shown = json.loads(run(repository, "dvc", "metrics", "diff", "HEAD", "--json"))
    assert shown["results/report/metrics.json"] == {"figure": {"old": 1, "new": 2, "diff": 1}}
    assert "figure" in run(repository, "dvc", "metrics", "show")
    for words in (["show"], ["diff", "HEAD"]):
        run(repository, "dvc", "plots", *words, "--out", "plots")
        page = (repository / "plots/index.html").read_text()
        assert "quality_cost.svg" in page and "allocation.svg" in page
        shutil.rmtree(repository / "plots")
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-q", "-m", "after")


def test_an_experiment_sets_a_key_of_the_grid_runs_what_it_touches_and_is_kept(repository: Path) -> None:
    site = Site(repository)
    before = commands(repository)
    run(
        repository, "dvc", "exp", "run", "-q", "-n", "seven", "-S", "config/grids/demo.yaml:evaluation.seed=7", figure=3
    )
    assert site.read("grids/demo.yaml")["evaluation"] == {"seed": 7}
    new = site.commands()[before:]
    assert {words[0] for words in new} == {"preflight", "evaluate", "report"}, (
        "no search is repeated for another evaluation"
    )
    assert len(new) == 2 + 2 * 9 + 1
    assert json.loads((repository / "results/report/metrics.json").read_text()) == {"figure": 3}
    assert "seven" in run(repository, "dvc", "exp", "list")
    shown = json.loads(run(repository, "dvc", "exp", "diff", "HEAD", "seven", "--json"))
    assert shown["metrics"]["results/report/metrics.json"]["figure"]["diff"] == 1


def commit_and_push(repository: Path) -> None:
    """What earlier tests left in the workspace becomes a commit whose results are in the store."""
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-q", "--allow-empty", "-m", "so far")
    run(repository, "dvc", "push", "-q")


def cached(folder: Path) -> dict[str, str]:
    """Digests of the objects in DVC's cache, by the names that they should have."""
    objects = (path for path in (folder / ".dvc/cache/files/md5").rglob("*") if path.is_file())
    return {"".join(path.parts[-2:]): hashlib.md5(path.read_bytes()).hexdigest() for path in objects}


LONG = pytest.mark.long


@pytest.mark.parametrize("link", ["hardlink", pytest.param("symlink", marks=LONG), pytest.param("reflink", marks=LONG)])
def test_a_cache_that_links_files_keeps_its_objects_whatever_snakemake_runs(repository: Path, link: str) -> None:
    """Pull into a cache that links, add a sparsity and another title, run plain Snakemake and `dvc repro`."""
    commit_and_push(repository)
    clone = repository.parent / link
    run(repository.parent, "git", "clone", "-q", str(repository), str(clone))
    run(clone, "dvc", "config", "cache.type", f"{link},copy" if link == "reflink" else link)
    run(clone, "dvc", "pull", "-q")
    before = cached(clone)
    assert len(before) > 50 and all(name.removesuffix(".dir") == digest for name, digest in before.items())
    log = next((clone / "logs").rglob("*.log"))
    assert {"hardlink": log.stat().st_nlink > 1, "symlink": log.is_symlink(), "reflink": True}[link]
    grid = clone / "config/grids/demo.yaml"
    body = yaml.safe_load(grid.read_text())
    changed = {"title": "Another", "sparsities": [0.2, 0.3, 0.4], "evaluation": {"seed": 8}}
    grid.write_text(yaml.safe_dump({**body, **changed}))
    run(clone, "snakemake", "--cores", "all", "--profile", "profiles/local")
    assert before.items() <= cached(clone).items()
    run(clone, "dvc", "repro")
    after = cached(clone)
    assert before.items() <= after.items() and all(n.removesuffix(".dir") == d for n, d in after.items())


@pytest.mark.long
def test_a_queued_experiment_runs_the_code_that_was_queued_in_a_folder_of_its_own(repository: Path) -> None:
    site = Site(repository)
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-q", "--allow-empty", "-m", "before the queue")
    grid, before = site.read("grids/demo.yaml"), commands(repository)
    setting = "config/grids/demo.yaml:evaluation.seed=9"
    run(repository, "dvc", "exp", "run", "-q", "--queue", "-n", "nine", "-S", setting)
    (repository / "ffp/config/__init__.py").write_text("raise SystemExit('the code of the checkout')")
    try:
        run(repository, "dvc", "exp", "run", "--run-all", figure=4)
    finally:
        run(repository, "git", "checkout", "-q", "ffp/config/__init__.py")
    assert "nine" in run(repository, "dvc", "exp", "list")
    shown = json.loads(run(repository, "dvc", "exp", "diff", "HEAD", "nine", "--json"))
    assert shown["metrics"]["results/report/metrics.json"]["figure"]["new"] == 4
    assert site.read("grids/demo.yaml") == grid and commands(repository) == before, "the workspace is as it was"


def stored(address: str, bucket: str) -> int:
    """How many objects a bucket has."""
    with build_opener(ProxyHandler({})).open(f"{address}/{bucket}?list-type=2") as answer:
        return str(answer.read()).count("<Key>")


@pytest.mark.long
def test_a_push_that_is_cut_off_is_completed_by_the_next_one(repository: Path, s3: str) -> None:
    build_opener(ProxyHandler({})).open(Request(f"{s3}/cut", method="PUT")).close()
    commit_and_push(repository)
    run(repository, "dvc", "remote", "add", "-f", "--local", "cut", "s3://cut/ffp")
    run(repository, "dvc", "remote", "modify", "--local", "cut", "endpointurl", s3)
    environment = {**os.environ, **KEYS, "DVC_NO_ANALYTICS": "1"}
    push = subprocess.Popen(
        [BIN / "dvc", "push", "-q", "-r", "cut", "-j", "1"], cwd=repository, env=environment, start_new_session=True
    )
    while stored(s3, "cut") < 5:
        assert push.poll() is None, "the push ended before it could be cut off"
        time.sleep(0.02)
    os.killpg(push.pid, signal.SIGKILL)
    push.wait()
    sent = stored(s3, "cut")
    run(repository, "dvc", "push", "-q", "-r", "cut")
    assert stored(s3, "cut") > sent
    clone = repository.parent / "cut"
    run(repository.parent, "git", "clone", "-q", str(repository), str(clone))
    run(clone, "dvc", "remote", "modify", "store", "url", "s3://cut/ffp")
    run(clone, "dvc", "pull", "-q")
    assert "up to date" in run(clone, "dvc", "status")
