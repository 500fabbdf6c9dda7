"""The data sets that tasks ask for: from the hub once, at a commit, and from files after that."""

import logging

import datasets
import pytest

from ffp.assets import fetch_tasks
from ffp.assets.task_data import Stored, answered_by, build_stock, stock_objects
from ffp.config import TasksConfig
from ffp.config.assets import StockTask
from ffp.core.errors import ArtifactError, AssetError
from ffp.store.layout import AssetFiles
from ffp.store.schemas import AssetFile, DatasetsFile
from tests.helpers import arc


def listed(*tasks):
    return TasksConfig.of([StockTask.model_validate(task) for task in tasks])


@pytest.fixture
def push(hub, tmp_path, monkeypatch):
    """Returns what makes another commit of ARC on the hub."""
    return lambda word: arc.push(hub, tmp_path / "arc", word, monkeypatch)


def loaded(tasks, out, tmp_path, name):
    scratch = tmp_path / f"scratch-{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    manager = build_stock(tasks, scratch)
    with answered_by(Stored(out, name, scratch)):
        return stock_objects(manager, name, tasks.tasks[name])


def test_data_comes_from_the_hub_once_and_from_files_at_that_commit_after_that(push, hub, out, tmp_path, caplog):
    commit, tasks = push("Old"), listed("ai2_arc")
    with caplog.at_level(logging.INFO, logger="ffp"):
        fetch_tasks(tasks, out)
    assert caplog.text.count(f"data set allenai/ai2_arc is at commit {commit}") == 1
    entries = DatasetsFile.read(AssetFiles(out).datasets).tasks["ai2_arc"]
    assert [(entry.name, entry.commit) for entry in entries] == [("ARC-Challenge", commit), ("ARC-Easy", commit)]
    assert all(set(entry.splits) == {"train", "test"} and entry.scored == ["test"] for entry in entries)
    assert set(AssetFile.read(AssetFiles(out).manifest).files) >= {"allenai-ai2_arc--ARC-Easy--test.arrow"}
    push("New")
    asked = len(hub.requests)
    fetch_tasks(tasks, out)  # what is there stays, at the commit that was found first
    challenge, easy = loaded(tasks, out, tmp_path, "ai2_arc")
    assert len(hub.requests) == asked
    assert (challenge.task_name, easy.task_name) == ("arc_challenge", "arc_easy")
    assert [row["question"] for row in easy.eval_docs] == [f"Old ARC-Easy test {i}?" for i in range(3)]
    assert easy.fewshot_docs()[0]["question"] == "Old ARC-Easy train 0?"


def test_a_revision_is_taken_and_another_one_is_fetched_again(push, hub, out, tmp_path):
    old, new = push("Old"), push("New")
    for commit, word in ((old, "Old"), (new, "New")):
        tasks = listed({"task": "arc_easy", "revision": commit})
        fetch_tasks(tasks, out)
        (easy,) = loaded(tasks, out, tmp_path, "arc_easy")
        assert easy.eval_docs[0]["question"] == f"{word} ARC-Easy test 0?"


@pytest.mark.bad_input
def test_what_is_not_there_is_named_in_one_line(hub, out, tmp_path, push):
    with pytest.raises(AssetError, match=r"the hub has no repository openai/gsm8k") as fault:
        fetch_tasks(listed("gsm8k"), out)
    assert "\n" not in str(fault.value)
    push("Old")
    fetch_tasks(listed("arc_easy"), out)
    with pytest.raises(
        ArtifactError, match=r"task 'arc_easy' wants the data set allenai/ai2_arc, ARC-Challenge, which"
    ):
        Stored(out, "arc_easy", tmp_path)._load("allenai/ai2_arc", "ARC-Challenge")
    (out / "allenai-ai2_arc--ARC-Easy--test.arrow").unlink()
    with pytest.raises(ArtifactError, match=r"ARC-Easy--test\.arrow is missing\. Run the rule"):
        loaded(listed("arc_easy"), out, tmp_path, "arc_easy")


def test_a_folder_stands_for_the_data_set_of_a_task(out, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/dev/null/cache")  # as in a home that is read-only
    for split, count in (("train", 6), ("test", 2)):
        rows = [{"question": f"{split} {i}", "answer": f"So.\n#### {i}"} for i in range(count)]
        arc.write_rows(tmp_path / "gsm" / "main" / f"{split}.jsonl", rows)
    source = {"kind": "local", "path": str(tmp_path / "gsm")}
    config = {"gsm8k": {"stock": "gsm8k", "source": source, "reader": "dataset"}}
    tasks = TasksConfig.model_validate({"title": "t", "version": "1", "tasks": config})
    fetch_tasks(tasks, out)
    (task,) = loaded(tasks, out, tmp_path, "gsm8k")
    assert len(task.eval_docs) == 2 and len(task.fewshot_docs()) == 6
    first = AssetFile.read(AssetFiles(out).manifest).digest
    arc.write_rows(tmp_path / "gsm" / "main" / "test.jsonl", [{"question": "other", "answer": "#### 3"}])
    fetch_tasks(tasks, out)  # an edit below the folder is noticed
    assert AssetFile.read(AssetFiles(out).manifest).digest != first
    (tmp_path / "gsm" / "main" / "train.jsonl").unlink()
    with pytest.raises(AssetError, match=r"task 'gsm8k': lm-eval cannot build 'gsm8k': '?train"):
        fetch_tasks(tasks, out)


@pytest.mark.bad_input
def test_examples_that_are_scored_documents_are_refused(out, tmp_path):
    arc.write_rows(tmp_path / "test.jsonl", arc.documents("Which"))
    arc.write_rows(tmp_path / "train.jsonl", arc.documents("Who", 2) + arc.documents("Which", 1))
    sources = {key: {"kind": "local", "path": str(tmp_path / f"{name}.jsonl")}
               for key, name in (("source", "test"), ("fewshot", "train"))}  # fmt: skip
    config = {"a": {"stock": "arc_easy", **sources, "reader": "jsonl", "num_fewshot": 2}}
    with pytest.raises(AssetError, match=r"task 'a': 1 of its examples are scored documents\. Give fewshot other"):
        fetch_tasks(TasksConfig.model_validate({"title": "t", "version": "1", "tasks": config}), out)
