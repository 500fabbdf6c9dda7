"""The workflow plans the right jobs, runs each once, and runs again exactly what a change touches."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from ffp.allocators import is_search, reads_weights
from ffp.config import Cell, Experiment
from ffp.store import schemas
from ffp.store.identity import step_settings
from ffp.store.layout import FIGURES, Layout
from ffp.store.provenance import provenance
from tests.helpers.site import NOTHING, ROOT, Site, make, parse

ALL_CELLS = 9  # one dense, two sparsities x four methods
ALLOCATED = {"allocate_from_sizes": 2, "allocate_heuristic": 2, "allocate_search": 4}  # uniform, OWL and two searches
EVERYTHING = {**ALLOCATED, "apply": 8, "evaluate": ALL_CELLS, "report": 1}
HALF_OF_THEM = {name: jobs // 2 for name, jobs in {**ALLOCATED, "apply": 8, "evaluate": 8}.items()} | {"report": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site whose grid has run to the end."""
    site = make(tmp_path_factory.mktemp("site"))
    done = site.snakemake()
    assert done.returncode == 0, done.stdout
    return site


@pytest.fixture
def copied(finished: Site, tmp_path: Path) -> Site:
    """A copy of the finished site, in which files may be deleted and made again."""
    return Site(shutil.copytree(finished.folder, tmp_path / "site"))


@pytest.fixture
def site(finished: Site) -> Iterator[Site]:
    """The finished site; its configuration is put back afterwards."""
    kept = {path: path.read_bytes() for path in (finished.folder / "config").rglob("*.yaml")}
    yield finished
    for path, body in kept.items():
        path.write_bytes(body)


def test_the_demo_grid_plans_one_job_for_each_step_of_each_cell(tmp_path: Path) -> None:
    site = make(tmp_path)
    shutil.copytree(ROOT / "config", tmp_path / "config", dirs_exist_ok=True)
    shutil.copy(ROOT / "config/grids/demo.yaml", site.grid)
    experiment = Experiment(ROOT / "config/grids/demo.yaml")
    pruned = list(experiment.cells(dense=False))
    methods = [experiment.method(cell.method) for cell in pruned]
    searches, reading = sum(map(is_search, methods)), sum(map(reads_weights, methods))
    assert site.planned() == {
        "asset_model": len(experiment.models),
        "asset_text": 1,
        "asset_tasks": 1,
        "preflight": len(experiment.models),
        "calibrate": len(experiment.models),
        "allocate_from_sizes": len(pruned) - reading,
        "allocate_heuristic": reading - searches,
        "allocate_search": searches,
        "apply": len(pruned),
        "evaluate": len(list(experiment.cells())),
        "report": 1,
    }


def test_each_command_ran_once_and_the_command_line_accepts_it(finished: Site) -> None:
    commands = finished.commands()
    assert len(commands) == len({tuple(words) for words in commands}) == 3 + 1 + 1 + 8 + 8 + ALL_CELLS + 1
    for words in commands:
        parse(words)


def test_only_the_dense_cell_is_evaluated_uncut(finished: Site) -> None:
    evaluated = [words for words in finished.commands() if words[0] == "evaluate"]
    without = [words[words.index("--cell") + 1] for words in evaluated if "--cut" not in words]
    assert without == ["tiny/structured/s0.00/dense/seed0"]
    assert all("--tasks-dir" in words for words in evaluated)


def test_a_second_run_does_nothing(site: Site) -> None:
    before = len(site.commands())
    done = site.snakemake()
    assert done.returncode == 0
    assert NOTHING in done.stdout
    assert len(site.commands()) == before


def _grid(**changes: object) -> Callable[[Site], None]:
    return lambda site: site.write("grid.yaml", {**site.read("grid.yaml"), **changes})


def _part(name: str, **changes: object) -> Callable[[Site], None]:
    return lambda site: site.write(name, {**site.read(name), **changes})


CHANGES: dict[str, tuple[Callable[[Site], None], dict[str, int]]] = {
    "a parameter of a search": (
        _grid(variants={"fastforward": {"params": {"epochs": 7}}}),
        {"preflight": 1, "allocate_search": 2, "apply": 2, "evaluate": 2, "report": 1},
    ),
    "a parameter of a heuristic": (
        _grid(variants={"owl": {"params": {"max_deviation": 0.1}}}),
        {"preflight": 1, "allocate_heuristic": 2, "apply": 2, "evaluate": 2, "report": 1},
    ),
    "the budget of every search": (
        _grid(search={"evaluations": 7}),
        {"preflight": 1, "allocate_search": 4, "apply": 4, "evaluate": 4, "report": 1},
    ),
    "another sparsity": (
        _grid(sparsities=[0.2, 0.3, 0.4]),
        {"preflight": 1, **HALF_OF_THEM},
    ),
    "the first method that needs Gram matrices": (
        _grid(methods=["owl", "fastforward", "fisher-table"]),
        {"preflight": 1, "grams": 1, "allocate_search": 2, "apply": 2, "evaluate": 2, "report": 1},
    ),
    "another seed: of the searches only": (
        _grid(seeds=[0, 1]),
        {"allocate_search": 4, "apply": 4, "evaluate": 4, "report": 1},
    ),
    "how cells are scored": (
        _grid(evaluation={"windows": 3}),
        {"preflight": 1, "evaluate": ALL_CELLS, "report": 1},
    ),
    "the texts of the calibration": (
        _grid(calibration={"windows": 3}),
        {"preflight": 1, "calibrate": 1, **EVERYTHING, "evaluate": 8},
    ),
    "the tasks": (
        _part("tasks/one.yaml", version="2"),
        {"asset_tasks": 1, "preflight": 1, "evaluate": ALL_CELLS, "report": 1},
    ),
    "the source of the text": (
        _part("texts/here.yaml", shares={"calibration": 0.1, "search": 0.2, "selection": 0.3, "test": 0.4}),
        {"asset_text": 1, "preflight": 1, "calibrate": 1, **EVERYTHING},
    ),
    "a title": (_grid(title="Another"), {"report": 1}),
    "what a job may ask for": (_part("models/tiny.yaml", title="Tiny", resources={"mem_mb": 200}), {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_runs_again_exactly_what_it_touches(site: Site, change: str) -> None:
    apply, expected = CHANGES[change]
    apply(site)
    assert site.planned() == expected


def test_another_grid_that_asks_the_same_runs_nothing_again(site: Site) -> None:
    """Nor does the absolute path of a grid: cells hang on what a grid says, and not on its name."""
    site.write("copied.yaml", site.read("grid.yaml"))
    for name in ("config/copied.yaml", str(site.grid)):
        assert set(site.planned(grid=name)) == {"report"}, name


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_a_grid_with_recovery_is_planned(site: Site, profile: str) -> None:
    """Cells that are trained between their cut and their scores; on a cluster several cells share a job of both."""
    variants = {"owl-lora": {"use": "owl", "recover": {"tokens": 640}}}
    _grid(methods=["uniform", "owl-lora"], variants=variants)(site)
    planned = site.planned(profile=profile)
    expected = {"preflight": 1, "allocate_heuristic": 2, "apply": 2, "recover": 2, "evaluate_trained": 2, "report": 1}
    assert planned == expected


def test_a_warm_start_waits_for_the_cell_whose_policy_it_takes(copied: Site) -> None:
    before = len(copied.commands())
    grid = copied.read("grid.yaml")
    copied.write("grid.yaml", {**grid, "variants": {"fastforward": {"init": {"from": "s0.20"}}}})
    assert copied.planned() == {"preflight": 1, "allocate_search": 1, "apply": 1, "evaluate": 1, "report": 1}
    done = copied.snakemake()
    assert done.returncode == 0, done.stdout
    [command] = [words for words in copied.commands()[before:] if words[0] == "allocate"]
    assert "tiny/structured/s0.30/fastforward/seed0" in command
    assert command[-2:] == ["--init", "results/cells/tiny/structured/s0.20/fastforward/seed0"]
    assert parse(command)["init"] == Path(command[-1])


@pytest.mark.parametrize("name", ["fastforward", "owl"])
def test_a_policy_that_no_cell_makes_is_refused(site: Site, name: str) -> None:
    wanted = "s0.45" if name == "fastforward" else "s0.20"
    site.write("grid.yaml", {**site.read("grid.yaml"), "variants": {name: {"init": {"from": wanted}}}})
    done = site.snakemake("--dry-run")
    assert done.returncode != 0
    assert f"variants.{name}.init asks for the policy of tiny/structured/{wanted}/{name}/seed0, which the grid" in (
        done.stdout
    )


def test_a_raised_version_of_a_method_runs_its_cells_again(site: Site, tmp_path: Path) -> None:
    for name in ("ffp", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    method = tmp_path / "ffp/allocators/heuristics/owl.py"
    old = 'version: ClassVar[str] = "'
    assert old in method.read_text()
    method.write_text(method.read_text().replace(old, old + "9."))
    planned = Site(site.folder, code=tmp_path).planned()
    assert planned == {"allocate_heuristic": 2, "apply": 2, "evaluate": 2, "report": 1}


def test_an_edited_local_text_and_a_deleted_cell_are_noticed(copied: Site) -> None:
    scores = copied.folder / "results/cells/tiny/structured/s0.20/owl/seed0/scores.json"
    scores.unlink()
    assert copied.planned() == {"evaluate": 1, "report": 1}
    (copied.folder / "corpus.txt").write_text("Another document.")
    assert copied.planned() == {"asset_text": 1, "preflight": 1, "calibrate": 1, **EVERYTHING}


def test_an_edited_file_without_an_ending_is_noticed(tmp_path: Path) -> None:
    site = make(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "first").write_text("One document.")
    corpus = {"name": "corpus", "reader": "txt", "source": {"kind": "local", "path": "corpus"}}
    _part("texts/here.yaml", sources=[corpus])(site)
    assert site.snakemake("data/text/here/asset.json").returncode == 0
    assert site.planned("data/text/here/asset.json") == {}
    (tmp_path / "corpus" / "first").write_text("Another document.")
    assert site.planned("data/text/here/asset.json") == {"asset_text": 1}


def test_a_run_that_replaces_another_grids_calibration_says_so_first(
    copied: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.folder)
    experiment = Experiment(Path("config/grid.yaml"))
    origin = provenance(settings=step_settings(experiment, "calibrate", Cell.dense_of("tiny")))
    stats = Layout.from_grid(experiment.grid).calibration("tiny").stats
    schemas.STATS.write(stats, {"x": np.zeros(1)}, schemas.StatsOrigin(provenance=origin, n_tokens=1))
    _grid(calibration={"windows": 3})(copied)
    done = copied.snakemake("data/calibration/tiny/stats.safetensors")
    assert done.returncode == 0, done.stdout
    warned = (
        "config/grid.yaml has (calibration): a run makes it anew, and 8 finished cells in results/cells/tiny with it"
    )
    assert done.stdout.index(warned) < done.stdout.index("calibrate tiny")


def test_a_lost_cut_of_a_scored_cell_is_noticed(copied: Site) -> None:
    """When one job of a Slurm group fails, Snakemake may remove outputs of its other jobs."""
    (copied.folder / "results/cells/tiny/structured/s0.20/owl/seed0/updates.safetensors").unlink()
    assert copied.planned() == {"apply": 1, "evaluate": 1, "report": 1}


def test_assets_fetched_again_and_lost_logs_run_nothing(copied: Site) -> None:
    for name in ("data/models", "data/text", "data/tasks", "logs"):
        shutil.rmtree(copied.folder / name)
    assert copied.planned() == {}
    assert copied.snakemake("assets").returncode == 0
    _grid(sparsities=[0.2, 0.3, 0.4])(copied)
    assert copied.planned() == {"preflight": 1, **HALF_OF_THEM}


def test_a_failing_command_is_shown_logged_and_leaves_the_other_cells(tmp_path: Path) -> None:
    site = make(tmp_path)
    done = site.snakemake(fail="s0.20/owl/seed0")
    assert done.returncode != 0
    assert "Finished cells are kept: run the command again" in done.stdout
    log = "logs/allocate/tiny/structured/s0.20/owl/seed0.log"
    message = "ffp allocate: the replacement was asked to fail"
    assert (tmp_path / log).read_bytes().splitlines()[-1].decode() == message
    summary = done.stdout.split("These jobs failed:\n")[1]
    assert summary.splitlines()[0] == f"  {message}  [{log}]"
    assert site.planned() == {"allocate_heuristic": 1, "apply": 1, "evaluate": 1, "report": 1}


def test_a_fault_of_the_grid_is_named(site: Site) -> None:
    _grid(methods=["unifrom"])(site)
    done = site.snakemake("--dry-run")
    assert done.returncode != 0
    assert "unknown method 'unifrom': did you mean uniform?" in done.stdout


def test_a_misspelt_hyper_parameter_stops_the_dry_run_with_one_line(site: Site) -> None:
    _grid(variants={"owl": {"params": {"max_deviaton": 0.1}}})(site)
    done = site.snakemake("--dry-run")
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if "max_deviaton" in line]
    assert len(lines) == 1
    assert "config/grid.yaml" in lines[0] and "variants.owl.params" in lines[0]
    assert "did you mean max_deviation?" in lines[0]


def read_all(terminal: int) -> str:
    """What is written to a pseudo-terminal until its other end is closed."""
    chunks = []
    with suppress(OSError):
        while chunk := os.read(terminal, 1 << 16):
            chunks.append(chunk)
    os.close(terminal)
    return b"".join(chunks).decode()


def test_a_terminal_shows_bars_and_other_outputs_plain_lines(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local profile asks whether its output is a terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")  # a dumb one shows no bars
    plain = site.snakemake("--forcerun", "report").stdout
    assert "report of config/grid.yaml" in plain and "2 of 2 steps (100%) done" in plain
    assert "\x1b[" not in plain
    reader, writer = pty.openpty()
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(read_all, reader)
        with os.fdopen(writer, "w") as terminal:
            done = site.snakemake("--forcerun", "report", terminal=terminal)
    assert done.returncode == 0, shown.result()
    assert "Total Progress" in shown.result() and "Done. The report is results/report/index.html" in shown.result()


def test_a_grid_without_tasks_fetches_none(site: Site) -> None:
    grid = site.read("grid.yaml")
    del grid["tasks"]
    site.write("grid.yaml", grid)
    shown = site.snakemake("--dry-run", "--printshellcmds", "--forceall", "--quiet", "host").stdout
    assert "ffp evaluate" in shown
    assert "ffp asset tasks" not in shown
    assert "--tasks-dir" not in shown


def test_dvc_stores_every_file_of_the_report(finished: Site) -> None:
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stage = pipeline["stages"]["grid"]
    outs = {name: options for entry in stage["outs"] for name, options in entry.items()}
    report = Layout(Path("data"), Path("results")).report
    assert {"results/cells", str(report.folder), "data/calibration", ".snakemake/metadata"} <= set(outs)
    assert {path.name for path in (finished.folder / report.folder).iterdir()} == {path.name for path in report.all}
    assert all(options["persist"] for options in outs.values()), "DVC deletes the others before Snakemake starts"
    assert pipeline["metrics"] == [str(report.metrics)]
    assert pipeline["plots"] == [str(report.file(name, "svg")) for name in FIGURES]


def test_lint_finds_nothing(site: Site) -> None:
    done = site.snakemake("--lint")
    assert done.returncode == 0, done.stdout


def test_format_is_clean() -> None:
    command = [str(Path(sys.executable).with_name("snakefmt")), "--check", "Snakefile", "workflow"]
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_snakefile_is_short_and_parsing_it_imports_no_torch() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 60
    code = (
        "import sys, ffp.config, ffp.store.identity, ffp.store.layout, ffp.pipeline.cluster;"
        "ffp.config.Experiment('config/grids/demo.yaml');"
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_edited_allocation_that_is_imported_runs_its_cells_again(site: Site) -> None:
    file = site.folder / "published.txt"
    file.write_text("0.2 0.3")
    grid = site.read("grid.yaml")
    variants = {"theirs": {"use": "import", "params": {"file": "published.txt"}}}
    site.write("grid.yaml", {**grid, "methods": [*grid["methods"], "theirs"], "variants": variants})
    done = site.snakemake()
    assert done.returncode == 0, done.stdout
    assert site.planned() == {}
    file.write_text("0.3 0.2")
    assert site.planned() == {"allocate_from_sizes": 2, "apply": 2, "evaluate": 2, "report": 1}
