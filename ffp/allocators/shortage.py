"""Says in words that a budget is too small to search, so that no start is taken for the answer of a search."""

from __future__ import annotations

import itertools
from dataclasses import replace

from ffp.allocators.base import Search, SearchBudget
from ffp.core.problem import PruningProblem


def shortage(
    search: Search, problem: PruningProblem, budget: SearchBudget, n_windows: int, window_tokens: int, *,
    name: str = "", has_policy: bool = False,
) -> str:  # fmt: skip
    """Returns a sentence with the least budget that is enough, where a search has less; "" otherwise.

    Args:
        search: The search.
        problem: What it answers.
        budget: What it may spend.
        n_windows: Windows of the search text.
        window_tokens: Tokens of a window.
        name: What the search is called; its own name by default.
        has_policy: Whether it starts from another search's policy.
    """

    def is_paid(evaluations: int) -> bool:
        return search.is_paid(problem, replace(budget, evaluations=evaluations), n_windows, has_policy=has_policy)

    if is_paid(budget.evaluations):
        return ""
    enough = next(filter(is_paid, itertools.count(budget.evaluations + 1)))
    least = replace(budget, evaluations=enough).tokens(window_tokens)
    return (
        f"{budget.tokens(window_tokens):,} tokens are too few for {name or search.name} to search: it answers with "
        f"what it starts from, or as a simpler method does. Give it at least {least:,} tokens ({enough} evaluations)."
    )
