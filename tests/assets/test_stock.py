"""The index of lm-eval's tasks: what lm-eval's own index finds, in less time."""

import logging

import pytest

from ffp.assets import stock
from ffp.config import TasksConfig
from ffp.core.errors import ConfigError


def test_quoted_names_groups_tags_and_tasks_in_python_are_found():
    assert stock.find_stock("mmlu_abstract_algebra").kind == "task"  # its file says "task": in quotes
    assert stock.find_stock("mmlu").kind == "group"
    assert stock.find_stock("squadv2").kind == "task"
    assert stock.find_stock("ai2_arc") == stock.StockEntry("tag", None, ("arc_challenge", "arc_easy"))


@pytest.mark.long
def test_the_index_is_that_of_lm_eval(monkeypatch):
    from lm_eval.tasks._index import TaskIndex

    monkeypatch.setattr(logging.getLogger("lm_eval"), "disabled", True)
    kinds = {"TASK": "task", "PY_TASK": "task", "GROUP": "group", "TAG": "tag"}
    theirs = {
        name: stock.StockEntry(
            kinds[entry.kind.name], entry.yaml_path, tuple(sorted(entry.tags)) if entry.kind.name == "TAG" else ()
        )
        for name, entry in TaskIndex.build([stock._tasks_folder()]).items()
    }
    assert stock.stock_index() == theirs and len(theirs) > 10_000


def test_a_group_is_made_of_all_that_its_groups_and_tags_name():
    found = stock.members("mmlu")
    assert {"mmlu", "mmlu_stem", "mmlu_stem_tasks", "mmlu_abstract_algebra"} <= found
    assert len([name for name in found if stock.find_stock(name).kind == "task"]) == 57
    assert "mmlu_stem_tasks" not in stock.stubs(["mmlu"])  # a tag has no file


def one(stock_name, name=None, **more):
    files = {"source": {"kind": "local", "path": "x"}, "reader": "jsonl"} if more.pop("files", False) else {}
    tasks = {name or stock_name: {"stock": stock_name, **files, **more}}
    return TasksConfig.model_validate({"title": "t", "version": "1", "tasks": tasks})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (one("arc_esay"), "lm-eval has no stock task 'arc_esay': did you mean .*arc_easy"),
        (one("qqqqqqqqqqqqqq"), r"none of the \d+ names is near it"),
        (one("mmlu", files=True), "'mmlu' is a group, for which one source of files cannot stand.*reader: dataset"),
        (one("mmlu", "m"), "'mmlu' is a group, which keeps its name. Call it 'mmlu'"),
        (one("arc_challenge_chat", num_fewshot=3), "is fixed to 0 examples in lm-eval. Leave num_fewshot out"),
        (one("piqa", gen_kwargs={"max_gen_toks": 3}), "'piqa' generates nothing. Leave gen_kwargs out"),
        (one("gsm8k", files=True), "is 5-shot, and its source has one split, which is scored. Give other documents"),
        (one("piqa", files=True, num_fewshot=2), "'piqa' is 2-shot, and its source has one split"),
    ],
)
def test_tasks_that_cannot_be_asked_are_refused_in_one_line_before_any_data(tasks, message):
    with pytest.raises(ConfigError, match=message) as fault:
        stock.check_tasks(tasks)
    assert "\n" not in str(fault.value)


def several(*sets):
    tasks = {name: task for each in sets for name, task in each.model_dump(exclude_unset=True)["tasks"].items()}
    return TasksConfig.model_validate({"title": "t", "version": "1", "tasks": tasks})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("tasks", "common"),
    [
        (several(one("arc_challenge", "zero"), one("arc_challenge", "few", num_fewshot=25)), "arc_challenge"),
        (several(one("ai2_arc"), one("arc_easy", num_fewshot=5)), "arc_easy"),
        (several(one("mmlu", num_fewshot=5), one("mmlu_anatomy")), "mmlu_anatomy"),
        (several(one("mmlu"), one("mmlu_stem")), "mmlu_abstract_algebra"),
        (several(one("winogrande", "piqa", files=True), one("piqa", "other")), "piqa"),
    ],
)
def test_a_task_that_a_set_asks_twice_is_refused(tasks, common):
    """lm-eval would keep the scores of the last one for both."""
    first, second = tasks.tasks
    with pytest.raises(ConfigError, match=f"tasks '{first}' and '{second}' both ask '{common}") as fault:
        stock.check_tasks(tasks)
    assert "\n" not in str(fault.value)


def test_tasks_that_can_be_asked_pass():
    stock.check_tasks(several(one("mmlu", num_fewshot=5), one("ai2_arc"), one("gsm8k"), one("wikitext")))
    stock.check_tasks(several(one("piqa"), one("piqa", "mine", files=True)))
    for tasks in (one("gsm8k"), one("gsm8k", files=True, num_fewshot=0), one("mmlu", num_fewshot=5), one("ai2_arc")):
        stock.check_tasks(tasks)
    stock.check_tasks(one("gsm8k", files=True, fewshot={"kind": "local", "path": "y"}))
