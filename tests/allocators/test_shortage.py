"""A budget that pays for no step of a search is warned of, with the least one that does."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from ffp import api
from ffp.allocators import METHODS, Search, create
from ffp.allocators.base import SearchBudget
from ffp.allocators.shortage import shortage
from ffp.allocators.start import StartedSearch
from ffp.core.problem import PruningProblem
from ffp.models.prunable import PrunableModel
from ffp.pruning.cuts import StructuredCut
from tests.helpers.families import tiny, tokens
from tests.helpers.synthetic import SyntheticReward, run_search, structured_problem

# What each search does in a step: rows of the trace by stage, and how many of them make it a search.
STEPS = {
    "2ssp": ("attention", 1),
    "cma-es": ("generation", 11),  # 4 + 3 ln(12)
    "error-table-dp": ("table", 2),
    "evolutionary": ("stage", 2),
    "fastforward": (("policy", "curriculum"), 2),
    "fastforward-guided": ("gates", 1),
    "fisher-table": ("table", 1),
    "grasprune": ("gates", 1),
    "guided-knapsack": ("gates", 1),
    "policy-gradient": ("policy", 2),
    "random-search": ("sample", 2),
    "taylor-global": ("table", 1),
    "tyr-search": ("stage", 2),
}
TABLE = {"start": "fisher-table"}
STARTED = [(name, TABLE) for name, method in METHODS.items() if issubclass(method, StartedSearch)]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("grasprune", {"step_windows": 3}),
    ("grasprune", {"scale_share": 0.9}),
    ("fastforward-guided", {"step_windows": 50}),  # more than the text has
    ("policy-gradient", {"samples": 7, "step_windows": 3, **TABLE}),
    ("2ssp", {"windows": 2}),
    ("fastforward", {"rescore": False}),
]


def problem_of(name: str) -> PruningProblem:
    problem = structured_problem(0.4)
    if name != "2ssp":
        return problem
    empty = (dataclasses.replace(d, min_keep=0) if d.module == "attention" else d for d in problem.decisions)
    return dataclasses.replace(problem, decisions=tuple(empty))


def made(name: str, params: dict[str, Any]) -> Search:
    method = create(name, params)
    assert isinstance(method, Search)
    return method


def test_every_search_is_known_here() -> None:
    assert STEPS.keys() == {name for name, method in METHODS.items() if issubclass(method, Search)}


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize(("name", "params"), [*((name, {}) for name in STEPS), *STARTED, *OTHERS])
def test_the_least_budget_that_is_said_pays_for_a_step_and_one_evaluation_less_does_not(
    name: str, params: dict[str, Any], windows: int
) -> None:
    problem, method = problem_of(name), made(name, params)
    n_windows = SyntheticReward(problem).n_windows

    def budget(evaluations: int) -> SearchBudget:
        return SearchBudget(evaluations, windows, 2)

    def searches(evaluations: int) -> bool:
        _, tracker = run_search(method, problem, SyntheticReward(problem), budget(evaluations))
        stages = [row["stage"] for row in tracker.rows]
        starts = params.get("start") != "fisher-table" or stages[:1] == ["table"]
        prefix, least = STEPS[name]
        return starts and sum(stage.startswith(prefix) for stage in stages) >= least

    enough = next(e for e in itertools.count(1) if method.is_paid(problem, budget(e), n_windows))
    assert searches(enough)
    assert enough == 1 or not searches(enough - 1)
    short = shortage(method, problem, budget(enough), n_windows, 10)
    assert short == ""
    if enough > 1:
        line = shortage(method, problem, budget(enough - 1), n_windows, 10, name="mine")
        had, least = 10 * windows * (enough - 1), 10 * windows * enough
        assert line.startswith(f"{had:,} tokens are too few for mine to search: ")
        assert line.endswith(f"Give it at least {least:,} tokens ({enough} evaluations).")


@pytest.mark.parametrize("name", ["fastforward", "fastforward-guided", "guided-knapsack"])
def test_a_policy_takes_the_place_of_the_start_and_zero_shot_needs_nothing(name: str) -> None:
    problem = problem_of(name)
    asked = (problem, SearchBudget(1, 1, 2), 8)
    assert not made(name, {"zero_shot": True}).is_paid(*asked)
    assert made(name, {"zero_shot": True}).is_paid(*asked, has_policy=True)
    assert not made(name, {}).is_paid(*asked, has_policy=True)


def test_a_run_warns_in_one_line_and_answers_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """5 windows pay for no step of 6, and not for a table to start from."""
    ids = tokens(12, 16)
    prunable = PrunableModel(tiny("llama").float())
    calibration = api.calibrate(prunable, api.Windows(ids[:4], ids[4:8], ids[8:]), grams=True)

    def keep(method: str, evaluations: int, **params: Any) -> dict[str, int]:
        caplog.clear()
        budget, cut = SearchBudget(evaluations, 1, 2), StructuredCut("obs", "ridge", compensated_search=True)
        return api.allocate(prunable, calibration, create(method, params), sparsity=0.3, cut=cut, budget=budget).keep

    starved = keep("fastforward-guided", 5, **TABLE)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "80 tokens are too few for fastforward-guided to search: it answers with what it starts from, or as a simpler "
        "method does. Give it at least 192 tokens (12 evaluations)."
    ]
    assert starved == keep("ffn-only", 5)
    keep("fastforward-guided", 12, **TABLE)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
