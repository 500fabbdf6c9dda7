"""Tables and captions of tasks with examples, filters and groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ffp.config import Experiment
from ffp.report import captions, tables
from ffp.report.collect import Record, collect, columns
from ffp.report.compare import compare
from ffp.report.groups import group
from tests.helpers.cells import files_of, make_experiment, write_cell

DENSE, UNIFORM = "tiny/structured/s0.00/dense/seed0", "tiny/structured/s0.20/uniform/seed0"


def leaf(metrics: dict[str, float], shots: int = 0, **more: Any) -> dict[str, Any]:
    figures = {name: {"value": value, "stderr": 0.1, **more} for name, value in metrics.items()}
    return {"version": 1.0, "hash": "h", "n": 8, "n_total": 9, "num_fewshot": shots, "metrics": figures}


def scores(strict: float) -> dict[str, Any]:
    stem = leaf({"acc": 0.25}, shots=5)
    return {
        "gsm8k": leaf({"exact_match,strict-match": strict, "exact_match,flexible-extract": 0.5}, shots=5),
        "mmlu": leaf({"acc": 0.3}, shots=5, counts=False) | {"subtasks": {"mmlu_stem": stem}},
        "ai2_arc": leaf({}) | {"subtasks": {"arc_easy": leaf({"acc": 0.5, "acc_norm": 0.75})}},
        "wikitext": leaf({"word_perplexity": 20.0}, higher_is_better=False, counts=False),
    }


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    found = make_experiment(
        tmp_path, tasks=["gsm8k", "mmlu", "ai2_arc", "wikitext"], methods=["uniform"], sparsities=[0.2],
        evaluation={"chat_template": True},
    )  # fmt: skip
    for path, strict in ((DENSE, 0.4), (UNIFORM, 0.2)):
        write_cell(found, path, [2.0, 2.1], tasks=False)
        rewrite(found, path, strict)
    return found


def rewrite(experiment: Experiment, path: str, strict: float, **more: dict[str, Any]) -> None:
    """Gives a cell other scores; more: of further tasks."""
    from ffp.store.schemas import ScoresFile

    file = files_of(experiment, path).scores
    ScoresFile.model_validate(ScoresFile.read(file).model_dump() | {"tasks": scores(strict) | more}).write(file)


def records(experiment: Experiment) -> list[Record]:
    return [record for record in collect(experiment) if record.done]


def test_filters_of_a_metric_have_columns_of_their_own(experiment: Experiment) -> None:
    found = records(experiment)
    names = columns(found)
    assert "gsm8k_exact_match,strict-match" in names and "gsm8k_exact_match,flexible-extract" in names
    table = tables.tasks(experiment, group(found))
    shown = dict(zip(table.headings, (entry.text for entry in table.lines[1].entries), strict=True))
    assert shown["gsm8k exact_match,strict-match (%)"].startswith("20.0")
    assert shown["gsm8k exact_match,flexible-extract (%)"].startswith("50.0")
    assert shown["mmlu acc (%)"].startswith("30.0")
    assert shown["arc_easy acc_norm (%)"].startswith("75.0"), "a tag gives way to its tasks"
    assert shown["wikitext word_perplexity"].startswith("20.00"), "no share of documents"
    assert not any("mmlu_stem" in heading for heading in table.headings)


def test_the_mean_takes_the_first_filter_and_shares_alone(experiment: Experiment) -> None:
    rows = {record.cell.method: record.row for record in records(experiment)}
    assert rows["uniform"]["mean_acc"] == pytest.approx((0.2 + 0.3 + 0.75) / 3)
    assert rows["dense"]["mean_acc"] == pytest.approx((0.4 + 0.3 + 0.75) / 3)


@pytest.fixture
def to_a_hundred(tmp_path: Path) -> Experiment:
    """A task whose scores end at 100, and one that lies below 1 in the pruned cell alone."""
    names = ["gsm8k", "mmlu", "ai2_arc", "wikitext", "eq_bench", "other"]
    found = make_experiment(tmp_path, tasks=names, methods=["uniform"], sparsities=[0.2])
    for path, value in ((DENSE, 14.2), (UNIFORM, 0.9)):
        write_cell(found, path, [2.0, 2.1], tasks=False)
        rewrite(found, path, 0.2, eq_bench=leaf({"eqbench": value}), other=leaf({"score": value}))
    return found


def test_the_mean_is_over_the_same_tasks_in_all_rows(to_a_hundred: Experiment) -> None:
    found = records(to_a_hundred)
    means = [record.row["mean_acc"] for record in found]
    assert means == [pytest.approx((0.2 + 0.3 + 0.75) / 3)] * 2
    for order in (found, found[::-1]):
        table = tables.tasks(to_a_hundred, group(order))
        shown = {line.group.method: [e.text for e in line.entries] for line in table.lines if line.group}
        place = table.headings.index("other score")
        assert (shown["dense"][place], shown["uniform"][place]) == ("14.20 ± 0.10", "0.90 ± 0.10")
        assert "eq_bench eqbench" in table.headings
    text = " ".join(captions.reading(to_a_hundred, found))
    assert "leaves out what is no share of 1: wikitext word_perplexity, eq_bench eqbench, other score." in text


def test_compare_takes_the_means_of_both_folders_over_the_same_tasks(to_a_hundred: Experiment, tmp_path: Path) -> None:
    import shutil

    before = tmp_path / "before"
    shutil.copytree(tmp_path / "results", before)
    for path in (DENSE, UNIFORM):
        rewrite(to_a_hundred, path, 0.2, eq_bench=leaf({"eqbench": 0.9}), other=leaf({"score": 0.9}))
    (changed,) = (cell for cell in compare(before, tmp_path / "results").cells if cell.verdict != "identical")
    assert changed.cell == DENSE and set(changed.figures) == {"eq_bench_eqbench", "other_score"}


def test_captions_say_how_many_examples_a_prompt_has(experiment: Experiment) -> None:
    text = " ".join(captions.reading(experiment, records(experiment)))
    assert "Tasks are few-shot, asked as a chat" in text
    assert "gsm8k exact_match,strict-match, 5-shot, on 8 of 9 documents" in text
    assert "arc_easy acc_norm on 8 of 9 documents" in text
    assert "otherwise acc, otherwise its first metric." in text


def test_compare_sees_a_score_that_changed(experiment: Experiment, tmp_path: Path) -> None:
    import shutil

    before = tmp_path / "before"
    shutil.copytree(tmp_path / "results", before)
    assert not compare(before, tmp_path / "results").changed
    rewrite(experiment, UNIFORM, 1.0)
    found = compare(before, tmp_path / "results")
    (changed,) = (cell for cell in found.cells if cell.verdict != "identical")
    assert changed.cell == UNIFORM and "mean_acc" in changed.figures
