"""The defaults of `ffp prune`: what is asked where little is said, and that everything that is said counts."""

from __future__ import annotations

from typing import Any

import pytest

from ffp.config.grid import CalibrationConfig
from ffp.config.pruning import CALIBRATION, SEARCH, PruneSettings, prune_settings


def chosen(settings: PruneSettings) -> tuple[str, Any, str, bool]:
    """Method, start, order of units, and whether candidates are compensated."""
    start = getattr(settings.method, "start", None)
    return settings.method.name, start, settings.calibration.score, settings.compensated_search


GUIDED, KNAPSACK = "fastforward-guided", "guided-knapsack"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (KNAPSACK, None, "obs", True)),
        ({"compensate": "ridge-dense"}, (KNAPSACK, None, "obs", True)),
        ({"compensate": "none"}, (GUIDED, "fisher-table", "pairwise", False)),
        ({"compensate": "bias"}, (GUIDED, "fisher-table", "pairwise", False)),
        ({"params": {"memory": 0.5}}, (KNAPSACK, None, "obs", True)),
        ({"params": {"start": "uniform"}, "compensate": "none"}, (GUIDED, "uniform", "pairwise", False)),
        ({"calibration": CALIBRATION.model_copy(update={"score": "wanda"})}, (KNAPSACK, None, "wanda", True)),
        ({"search": SEARCH.model_copy(update={"compensated": False})}, (GUIDED, "fisher-table", "pairwise", False)),
        ({"search": {"evaluations": 9}}, (KNAPSACK, None, "obs", True)),
        ({"method": GUIDED}, (GUIDED, "ffn-only", "wanda", False)),
        ({"method": "owl"}, ("owl", None, "wanda", False)),
        ({"tokens": 0}, ("ffn-only", None, "wanda", False)),
        ({"granularity": "n-of-4"}, ("uniform", None, "wanda", False)),
    ],
)
def test_what_is_not_said_follows_from_what_is(given: dict[str, Any], expected: tuple[str, Any, str, bool]) -> None:
    assert chosen(prune_settings(0.3, **given)) == expected


def test_tokens_are_the_budget_of_the_default_search_too() -> None:
    settings = prune_settings(0.3, tokens=1024, calibration=CalibrationConfig(windows=4, context=64))
    assert settings.search.evaluations == 4 and settings.search.compensated
    assert (settings.calibration.windows, settings.calibration.context) == (4, 64)
