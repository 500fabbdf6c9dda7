"""Settings of a grid that change nothing are named, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ffp.config import Experiment
from ffp.pipeline.idle import idle_settings
from tests.helpers.cells import make_experiment

RIDGE = {"use": "evolutionary", "compensate": "ridge"}
WEIGHTS = {"granularities": ["unstructured"], "methods": ["owl"]}
TASKS = "the grid scores no tasks"


def idle(folder: Path, **grid: Any) -> list[str]:
    """The sentences on a grid that scores no tasks, by default, without their ends."""
    return list(idle_settings(make_experiment(folder, **{"tasks": None, **grid})))


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        ({"calibration": {"score": "obs"}, **WEIGHTS}, "calibration.score has no effect: no cell removes units"),
        ({"calibration": {"score": "obs"}, "methods": ["a"], "variants": {"a": {"use": "owl", "score": "wifv"}}},
         "calibration.score has no effect: all methods that remove units have a score of their own"),
        ({"search": {"compensated": True}}, "search.compensated has no effect: no search of the grid scores"),
        ({"search": {"compensated": True}, "methods": ["a"], "variants": {"a": {"use": "owl", "compensate": "ridge"}}},
         "search.compensated has no effect: no search of the grid scores"),
        ({"search": {"compensated": True}, "methods": ["a"], "variants": {"a": {**RIDGE, "compensated": False}}},
         "search.compensated has no effect: no search of the grid scores"),
        ({"pruner": "sparsegpt"}, "pruner has no effect: no cell removes single weights"),
        ({"pruner": "sparsegpt", "granularities": ["unstructured"], "methods": ["a"],
          "variants": {"a": {"use": "owl", "pruner": "wanda"}}}, "pruner has no effect: all methods that remove"),
        ({"recover": "lora", **WEIGHTS}, "recover has no effect: no cell removes units"),
        ({"recover": {"method": "none", "dense": True}}, "recover.dense has no effect: recover.method is none."),
        ({"recover": "lora", "methods": ["a"], "variants": {"a": {"use": "owl", "recover": "none"}}},
         "recover has no effect: all methods that remove units have a recover of their own."),
        ({"evaluation": {"documents": 3}}, f"evaluation.documents has no effect: {TASKS}. Add tasks."),
        ({"evaluation": {"system_prompt": "Be brief."}}, f"evaluation.system_prompt has no effect: {TASKS}"),
        ({"evaluation": {"chat_template": True}}, f"evaluation.chat_template has no effect: {TASKS}"),
        ({"evaluation": {"fewshot_as_multiturn": False}}, f"evaluation.fewshot_as_multiturn has no effect: {TASKS}"),
        ({"evaluation": {"fewshot_as_multiturn": False}, "tasks": "two"},
         "evaluation.fewshot_as_multiturn has no effect: chat_template is false."),
        ({"evaluation": {"seed": 3}, "tasks": "two"}, "evaluation.seed has no effect: all documents are scored."),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_named(grid: dict[str, Any], named: str, tmp_path: Path) -> None:
    [sentence] = idle(tmp_path, **grid)
    assert sentence.startswith(named)


@pytest.mark.parametrize(
    "grid",
    [
        {},
        {"calibration": {"score": "obs"}},
        {"search": {"compensated": True}, "methods": ["a", "owl"], "variants": {"a": RIDGE}},
        {"pruner": "sparsegpt", "granularities": ["structured", "n-of-4"], "sparsities": [0.5]},
        {"recover": {"dense": True}, "methods": ["a"], "variants": {"a": {"use": "owl", "recover": "none"}}},
        {
            "evaluation": {"documents": 3, "seed": 1, "chat_template": True, "fewshot_as_multiturn": False},
            "tasks": "two",
        },
    ],
)
def test_what_has_an_effect_is_not(grid: dict[str, Any], tmp_path: Path) -> None:
    assert idle(tmp_path, **grid) == []


@pytest.mark.parametrize("grid", sorted(Path("config/grids").glob("*.yaml")), ids=lambda grid: grid.stem)
def test_the_grids_that_come_with_the_package_say_nothing_in_vain(grid: Path) -> None:
    assert list(idle_settings(Experiment(grid))) == []
