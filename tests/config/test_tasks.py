"""Tasks of a grid: a file's name, or a list of what lm-eval ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ffp.config import Cell, Experiment, TasksConfig
from ffp.config.grid import EvaluationConfig
from ffp.core.errors import ConfigError
from ffp.store.identity import asset_settings, step_settings
from tests.helpers.cells import make_experiment

LIST = ["arc_easy", {"task": "gsm8k", "num_fewshot": 8, "gen_kwargs": {"max_gen_toks": 64}}]


def test_a_list_is_a_set_of_tasks_with_data_from_the_hub(tmp_path: Path) -> None:
    tasks = make_experiment(tmp_path, tasks=LIST).tasks
    assert tasks is not None
    assert tasks.title == "arc_easy, gsm8k"
    assert tasks.version == "arc_easy; gsm8k(num_fewshot=8, gen_kwargs={'max_gen_toks': 64})"
    arc, gsm8k = tasks.tasks.values()
    assert (arc.stock, arc.source, arc.num_fewshot, arc.has_files) == ("arc_easy", None, None, False)
    assert (gsm8k.num_fewshot, gsm8k.gen_kwargs) == (8, {"max_gen_toks": 64})
    assert tasks.sources == []


def test_a_list_has_a_folder_of_its_own_by_all_that_was_asked(tmp_path: Path) -> None:
    names = [make_experiment(tmp_path, tasks=tasks).tasks_name for tasks in (LIST, ["arc_easy", "gsm8k"], "two", None)]
    first, second, third, none = names
    assert first and second and first != second and first.startswith("arc_easy.gsm8k-")
    assert (third, none) == ("two", None)
    long = make_experiment(tmp_path, tasks=[f"mmlu_subject_{i}" for i in range(20)]).tasks_name
    assert long and len(long) < 60


def test_cells_are_evaluated_again_when_a_list_or_the_way_of_asking_changes(tmp_path: Path) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        experiment = make_experiment(tmp_path, **changes)
        return step_settings(experiment, "evaluate", next(experiment.cells()))

    first = settings(tasks=LIST)
    assert settings(tasks=LIST) == first
    assert settings(tasks=["arc_easy", "gsm8k"]) != first
    assert settings(tasks=LIST, evaluation={"chat_template": True}) != first
    assert settings(tasks=LIST, evaluation={"system_prompt": "Hello"}) != first


def test_tasks_of_cells_whose_attentions_may_be_gone_are_scored_again(tmp_path: Path) -> None:
    def settings(least: int, **changes: Any) -> dict[str, Any]:
        file, model = make_experiment(tmp_path, **changes).file, tmp_path / "config" / "models" / "tiny.yaml"
        model.write_text(json.dumps(json.loads(model.read_text()) | {"min_keep": least}))
        return step_settings(Experiment(file), "evaluate", Cell("tiny", "structured", "0.30", "owl", 0))

    assert settings(0, tasks=LIST) == settings(1, tasks=LIST) | {"caches": "counted"}
    assert settings(0, tasks=None) == settings(1, tasks=None)


def test_what_was_made_before_there_were_these_keys_is_the_same(tmp_path: Path) -> None:
    assert set(EvaluationConfig().model_dump()) == {"context", "windows", "documents", "seed"}
    experiment = make_experiment(tmp_path)
    assert experiment.tasks is not None
    for task in asset_settings(experiment.tasks)["tasks"].values():
        assert set(task) == {"stock", "source", "reader"}
    assert experiment.grid.model_dump(mode="json")["tasks"] == "two"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["arc_easy", "arc_easy"], "names something twice"),
        ([], "at least 1 item"),
        (["a/b"], r"tasks\.0\.task = 'a/b'"),
        ([{"task": "gsm8k", "fewshot": 3}], "unknown key"),
        ([{"task": "gsm8k", "num_fewshot": -1}], r"num_fewshot = '-1'"),
        ([{"task": "gsm8k", "revision": "main"}], r"revision = 'main'"),
        ("tow", "did you mean two"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(tasks: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as fault:
        make_experiment(tmp_path, tasks=tasks)
    assert "\n" not in str(fault.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fewshot": {"kind": "local", "path": "x"}}, "fewshot needs a source of files"),
        ({"source": {"kind": "local", "path": "x"}, "revision": "a" * 40}, "a source has its own"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TasksConfig.model_validate({"title": "t", "version": "1", "tasks": {"gsm8k": {"stock": "gsm8k", **keys}}})


def test_an_experiment_without_tasks_has_none(tmp_path: Path) -> None:
    assert isinstance(experiment := make_experiment(tmp_path, tasks=None), Experiment) and experiment.tasks is None
