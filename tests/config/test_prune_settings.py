"""The defaults of `ffp prune`: what is asked where little is said, and that everything that is said counts."""

from __future__ import annotations

from typing import Any

import pytest

from ffp.config.grid import CalibrationConfig
from ffp.config.pruning import CALIBRATION, SEARCH, PruneSettings, prune_settings
from ffp.core.errors import ConfigError


def chosen(settings: PruneSettings) -> tuple[str, Any, str, bool]:
    """Method, start, order of units, and whether candidates are compensated."""
    start = getattr(settings.method, "start", None)
    return settings.method.name, start, settings.calibration.score, settings.compensated_search


GUIDED = "fastforward-guided"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (GUIDED, "fisher-table", "obs", True)),
        ({"compensate": "ridge-dense"}, (GUIDED, "fisher-table", "obs", True)),
        ({"compensate": "none"}, (GUIDED, "fisher-table", "pairwise", False)),
        ({"compensate": "bias"}, (GUIDED, "fisher-table", "pairwise", False)),
        ({"params": {"start": "uniform"}}, (GUIDED, "uniform", "obs", True)),
        ({"calibration": CALIBRATION.model_copy(update={"score": "wanda"})}, (GUIDED, "fisher-table", "wanda", True)),
        ({"search": SEARCH.model_copy(update={"compensated": False})}, (GUIDED, "fisher-table", "pairwise", False)),
        ({"search": {"evaluations": 9}}, (GUIDED, "fisher-table", "obs", True)),
        ({"method": GUIDED}, (GUIDED, "ffn-only", "wanda", False)),
        ({"method": "owl"}, ("owl", None, "wanda", False)),
        ({"tokens": 0}, ("ffn-only", None, "wanda", False)),
        ({"granularity": "n-of-4"}, ("uniform", None, "wanda", False)),
    ],
)
def test_what_is_not_said_follows_from_what_is(given: dict[str, Any], expected: tuple[str, Any, str, bool]) -> None:
    assert chosen(prune_settings(0.3, **given)) == expected


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_seed_that_a_library_would_refuse_late_is_refused(seed: int) -> None:
    assert prune_settings(0.3, seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(ConfigError, match=rf"^seed = '{seed}': Input should be (greater|less) than or equal to"):
        prune_settings(0.3, seed=seed)


def test_tokens_are_the_budget_of_the_default_search_too() -> None:
    settings = prune_settings(0.3, tokens=1024, calibration=CalibrationConfig(windows=4, context=64))
    assert settings.search.evaluations == 4 and settings.search.compensated
    assert (settings.calibration.windows, settings.calibration.context) == (4, 64)
