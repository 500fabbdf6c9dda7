"""The digest of the code behind a step covers all of it and nothing else, and ignores comments."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from ffp.allocators import METHODS, create, is_search
from ffp.allocators.base import SearchBudget
from ffp.store import code_version
from tests.helpers.synthetic import PROBLEMS, answer

TARGETS = {name: f"{method.__module__}:{method.__qualname__}" for name, method in METHODS.items()}
SEARCHES = {name for name, method in METHODS.items() if is_search(method)}
STEPS = ["asset", "calibrate", "grams", "apply", "recover", "evaluate", "report"]


def forget() -> None:
    for name in ("digest", "_accepted", "_module", "_is_module", "_named_by", "_source"):
        getattr(code_version, name).cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the sources to edit; what is known of them is forgotten before and after."""
    root = tmp_path / "ffp"
    shutil.copytree(code_version.PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__", "accepted.json"))
    monkeypatch.setattr(code_version, "PACKAGE", root)
    monkeypatch.setattr(code_version, "ACCEPTED", root / "accepted.json")
    forget()
    yield root
    forget()


def digests() -> dict[str, str]:
    forget()
    methods = {name: code_version.digest("allocate", target) for name, target in TARGETS.items()}
    return {**{step: code_version.digest(step) for step in STEPS}, **methods}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The digests of the sources as they are."""
    return digests()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def changed(before: dict[str, str]) -> set[str]:
    after = digests()
    return {name for name in before if before[name] != after[name]}


EDITS = {
    "a new constant that nothing names": (
        "allocators/heuristics/owl.py", "\nCHUNK", "\n_NEW = 1\nCHUNK", set()
    ),
    "a docstring": ("allocators/heuristics/owl.py", '"""', '"""Another beginning. ', set()),
    "a comment": (
        "allocators/searches/evolutionary.py", "MAX_SWITCHES = 3", "MAX_SWITCHES = 3  # so many", set()
    ),
    "a number of one method": (
        "allocators/searches/evolutionary.py", "MAX_SWITCHES = 3", "MAX_SWITCHES = 4", {"evolutionary"}
    ),
    "what the searches share, which the step of every method can reach": (
        "allocators/tracker.py", "LOG_LINES = 20", "LOG_LINES = 21", set(METHODS)
    ),
    "how texts are cut into windows": (
        "measure/windows.py", 'SEPARATOR = "\\n\\n"', 'SEPARATOR = "\\n"', {"calibrate", "recover", "evaluate"}
    ),
    "how the learning rate falls": ("measure/recovery.py", "SAVE_EVERY = 8", "SAVE_EVERY = 9", {"recover"}),
    "the page": ("report/template.html", "<html", "<html ", {"report"}),
    "how texts are shared out": ("assets/splits.py", "SHINGLE = 13", "SHINGLE = 12", {"asset"}),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_noticed_by_exactly_the_steps_that_it_can_touch(
    before: dict[str, str], package: Path, name: str
) -> None:
    file, old, new, expected = EDITS[name]
    edit(package / file, old, new)
    assert changed(before) == expected


def test_an_edit_of_the_evaluator_reaches_every_search(before: dict[str, str], package: Path) -> None:
    edit(package / "measure/text.py", "LARGEST_GAP = 50.0", "LARGEST_GAP = 49.0")
    assert SEARCHES <= changed(before) <= set(METHODS)


def called(run: Any) -> set[tuple[str, str]]:
    """(module, top-level definition) of every function of ffp that a call enters."""
    found: set[tuple[str, int]] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (name := frame.f_globals.get("__name__", "")).startswith("ffp."):
            found.add((name, frame.f_code.co_firstlineno))

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return {(module, definition) for module, line in found if (definition := _at(module, line))}


def _at(module: str, line: int) -> str | None:
    """The top-level definition around a line; None for the module itself."""
    for statement in ast.parse(Path(sys.modules[module].__file__ or "").read_bytes()).body:
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(node.lineno for node in decorators)])
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and first <= line <= (statement.end_lineno or 0):
            return statement.name
    return None


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "structured" in method.granularities])
def test_nothing_that_runs_in_a_method_is_missing(name: str) -> None:
    """The closure, found in the source, against the functions that a run really enters."""
    problem = PROBLEMS["structured"]()
    parameters = {"import": {"values": list(np.linspace(0.2, 0.8, len(problem.decisions) // 2))}}
    method = create(name, parameters.get(name, {}))
    entered = {item for item in called(lambda: answer(method, problem, SearchBudget(30, 2, 2)))}
    entered = {item for item in entered if not item[0].startswith(code_version.OUTSIDE)}
    assert len(entered) > 2
    assert entered <= code_version.closure("allocate", TARGETS[name])


def test_nothing_that_runs_in_a_step_is_missing(
    tiny_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ffp.config import Experiment
    from ffp.pipeline import steps

    monkeypatch.chdir(tiny_grid)
    experiment = Experiment(Path("config/grid.yaml"))
    model, text, calibration = Path("data/models/tiny"), Path("data/text/docs"), Path("data/calibration/tiny")
    cell = experiment.cell("tiny/structured/s0.30/owl/seed0")
    folder = Path("results/cells") / cell.path
    runs = {
        "calibrate": lambda: steps.calibrate(experiment, "tiny", model, text, tmp_path),
        "grams": lambda: steps.collect_grams(experiment, "tiny", model, calibration, tmp_path),
        "apply": lambda: steps.apply(experiment, cell, model, calibration, folder / "allocation.json", tmp_path),
        "evaluate": lambda: steps.evaluate(experiment, cell, model, [text], None, folder, tmp_path / "scores.json"),
    }
    for step, run in runs.items():
        entered = {item for item in called(run) if not item[0].startswith(code_version.OUTSIDE)}
        assert len(entered) > 10
        missing = entered - code_version.closure(step)
        assert not missing, f"{step} runs code that its digest does not cover"


def test_an_accepted_edit_keeps_results_and_a_raised_version_does_not(package: Path) -> None:
    target = TARGETS["evolutionary"]

    def key(version: str) -> str:
        forget()
        return code_version.key("allocate", version, target)

    first = key("1")
    code_version.accept([("allocate", "1", target)])
    assert key("1") == first
    edit(package / "allocators/searches/evolutionary.py", "MAX_SWITCHES = 3", "MAX_SWITCHES = 1 + 2")
    assert key("1") != first, "an edit that nobody accepted counts as another method"
    forget()
    code_version.accept([("allocate", "1", target)])
    assert key("1") == first, "an accepted edit keeps what the version has given so far"
    edit(package / "allocators/searches/evolutionary.py", "MAX_SWITCHES = 1 + 2", "MAX_SWITCHES = 4")
    raised = key("2")
    forget()
    code_version.accept([("allocate", "2", target)])
    assert key("2") == raised != first
    entry = json.loads((package / "accepted.json").read_text())[f"allocate {target}"]
    assert entry == {"version": "2", "since": raised, "code": raised}
