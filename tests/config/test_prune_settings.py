"""The defaults of `ffp prune`: what is asked where little is said, and that everything that is said counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ffp.allocators import METHODS, create
from ffp.cli import front
from ffp.config.grid import CalibrationConfig, SearchConfig
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
        ({"method": "grasprune"}, ("grasprune", None, "wanda", False)),
        (
            {"method": "policy-gradient", "params": {"start": "fisher-table"}, "search": {"compensated": True}},
            ("policy-gradient", "fisher-table", "wanda", True),
        ),
        ({"tokens": 0}, ("ffn-only", None, "wanda", False)),
        ({"granularity": "n-of-4"}, ("uniform", None, "wanda", False)),
    ],
)
def test_what_is_not_said_follows_from_what_is(given: dict[str, Any], expected: tuple[str, Any, str, bool]) -> None:
    assert chosen(prune_settings(0.3, **given)) == expected


@pytest.mark.parametrize("method", ["grasprune", "policy-gradient"])
def test_a_compensated_search_of_a_method_that_scores_gates_alone_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"no effect with {method}, which scores gates on units alone; leave it out"):
        prune_settings(0.3, method=method, search={"compensated": True})


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_seed_that_a_library_would_refuse_late_is_refused(seed: int) -> None:
    assert prune_settings(0.3, seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(ConfigError, match=rf"^seed = '{seed}': Input should be (greater|less) than or equal to"):
        prune_settings(0.3, seed=seed)


def test_hyper_parameters_of_numpy_are_as_good_as_pythons() -> None:
    for method, python, numpy in (
        ("evolutionary", {"offspring": 4}, {"offspring": np.int64(4)}),
        ("owl", {"max_deviation": 0.25}, {"max_deviation": np.float32(0.25)}),
        ("uniform", {"equal": True}, {"equal": np.bool_(True)}),
    ):
        assert prune_settings(0.3, method=method, params=numpy) == prune_settings(0.3, method=method, params=python)


@pytest.mark.bad_input
@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if "zero_shot" in each.model_fields])
def test_an_answer_without_a_search_is_refused_where_no_policy_can_be_given(method: str) -> None:
    """It searched, without a word."""
    given = {"params": {"zero_shot": True}}, {"method": method, "params": {"zero_shot": True}}
    for asked in (*given, {"method": create(method, {"zero_shot": True})}):
        with pytest.raises(ConfigError, match=r"^zero_shot = true of .* only a grid gives\. Leave it out, or na"):
            prune_settings(0.3, **asked)
    prune_settings(0.3, method=method, params={"zero_shot": False})


def test_tokens_are_the_budget_of_the_default_search_too() -> None:
    settings = prune_settings(0.3, tokens=1024, calibration=CalibrationConfig(windows=4, context=64))
    assert settings.search.evaluations == 4 and settings.search.compensated
    assert (settings.calibration.windows, settings.calibration.context) == (4, 64)


def sizes(settings: PruneSettings) -> dict[str, tuple[int, ...]]:
    """Windows and contexts of the texts, and what the search may spend."""
    calibration, search, evaluation = settings.calibration, settings.search, settings.evaluation
    return {
        "calibration": (calibration.windows, calibration.context),
        "search": (search.windows, search.selection_windows, search.context, search.budget().tokens(search.context)),
        "evaluation": (evaluation.windows, evaluation.context),
    }


DEFAULTS = {"calibration": (128, 256), "search": (32, 8, 256, 24_576), "evaluation": (12, 512)}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"calibration": {"windows": 64}}, {"calibration": (64, 256)}),
        ({"calibration": {"score": "wanda"}}, {}),
        ({"calibration": {"context": 512}}, {"calibration": (64, 512)}),
        ({"calibration": CalibrationConfig(windows=64)}, {"calibration": (64, 2048)}),
        ({"search": {"windows": 64}}, {"search": (64, 8, 256, 24_576)}),
        ({"search": {"context": 512}}, {"search": (32, 8, 512, 24_576)}),
        ({"search": {"windows_per_evaluation": 4}}, {"search": (32, 8, 256, 24_576)}),
        ({"search": {"evaluations": 9}}, {"search": (32, 8, 256, 9 * 256)}),
        ({"search": {"windows": 64}, "tokens": 1024}, {"search": (64, 8, 256, 1024)}),
        ({"evaluation": {"windows": 6}}, {"evaluation": (6, 512)}),
    ],
)
@pytest.mark.parametrize("named", [{}, {"method": GUIDED}])
def test_what_a_section_leaves_out_is_the_default_of_the_command(
    named: dict[str, Any], given: dict[str, Any], changed: dict[str, tuple[int, ...]]
) -> None:
    assert sizes(prune_settings(0.3, **named, **given)) == DEFAULTS | changed


@pytest.mark.parametrize("section", [{"evaluations": 9}, SearchConfig(context=256, evaluations=9)])
def test_a_budget_that_is_given_twice_is_refused(section: Any) -> None:
    with pytest.raises(ConfigError, match=r"^tokens and search\.evaluations both say what a search may spend"):
        prune_settings(0.3, search=section, tokens=1024)


@pytest.mark.parametrize("context", [256, 512, 100, 20_000])
def test_the_command_line_asks_for_the_same_as_python(context: int) -> None:
    asked = front._sizes(context, CALIBRATION.windows * CALIBRATION.context, {}, {})
    line = prune_settings(0.3, **asked, evaluation=front._evaluation(context, 100, False, ""))
    each, twice = {"context": context}, {"context": 2 * context}
    assert line == prune_settings(0.3, calibration=each, search=each, evaluation=twice)
    assert (line.calibration.score, line.search.compensated) == ("obs", True)


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"windws": 3}, "unknown key 'search.windws': did you mean windows"),
        ({"context": 1}, "search.context = '1': Input should be greater than or equal to 2"),
        ({"windows": None}, "search.windows = 'None'"),
    ],
)
def test_a_wrong_section_is_named_as_the_user_wrote_it(section: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        prune_settings(0.3, search=section)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
