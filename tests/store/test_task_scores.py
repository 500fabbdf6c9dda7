"""Which metric of a task counts, and whether it is a share."""

from __future__ import annotations

import pytest

from ffp.store.task_scores import Metric, TaskScores, is_share


def scores(**values):
    metrics = {name: {"value": value, "stderr": None} for name, value in values.items()}
    return TaskScores.model_validate({"version": 1, "hash": "a", "n": 1, "n_total": 1, "metrics": metrics})


@pytest.mark.parametrize(
    "name, value, share",
    [
        ("acc", 0.5, True), ("acc_norm", 1.0, True), ("exact_match,strict-match", 0.0, True), ("f1", 0.3, True),
        ("bleu_acc", 0.4, True), ("rouge1_acc", 0.4, True), ("pass_at_1", 0.2, True), ("mcc", 0.1, True),
        ("bleu_max", 0.9, False), ("bleu", 0.4, False), ("rouge1_max", 0.4, False), ("rougeL", 0.4, False),
        ("bert_score", 0.8, False), ("chrf", 0.8, False), ("ter", 0.8, False), ("word_perplexity", 0.9, False),
        ("bits_per_byte,none", 0.8, False),
        ("exact", 0.5, False), ("HasAns_exact", 0.5, False), ("best_f1", 0.5, False),
        ("smoothed_bleu_4", 0.9, False), ("eqbench", 0.9, False), ("percent_parseable", 0.0, False),
        ("score", 26.3, False), ("score", 0.263, True), ("score", -0.1, False),
    ],
)  # fmt: skip
def test_shares_are_told_from_other_figures(name, value, share):
    assert is_share(name, [figure(value)]) is share


def figure(value, *, higher_is_better=True):
    return Metric(value=value, stderr=None, higher_is_better=higher_is_better)


def test_a_metric_is_a_share_in_all_cells_or_in_none():
    assert is_share("score", map(figure, (0.0, 0.5, 1.0)))
    assert not is_share("score", map(figure, (0.9, 14.2)))
    assert not is_share("score", map(figure, (0.9, -0.2)))
    assert not is_share("score", [figure(0.9), figure(0.8, higher_is_better=False)])


def test_the_main_metric_is_the_normalised_accuracy_where_there_is_one():
    assert scores(acc=0.1, acc_norm=0.2).main_metric == "acc_norm"
    assert scores(bleu_max=26.3, acc=0.2).main_metric == "acc"
    found = scores(**{"exact_match,strict": 0.1, "exact_match,flexible": 0.2})
    assert found.shown_metrics == ["exact_match,strict", "exact_match,flexible"]
