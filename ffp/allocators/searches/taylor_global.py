"""Taylor scores with one global threshold: what |gradient * weight| says of every unit, from one backward pass.

The score of unit u, with its weights w in all matrices of its module and the mean loss L of the dense model, is

    s_u = sum over w of |dL/dw * w|,

a first-order estimate of what its removal costs, weight by weight. All units of the model stand in one order, each at
its own cost in parameters, and the last ones go until the budget holds. Scores of attention are multiplied by
`attention_factor` first: a KV group has as many weights as hundreds of FFN channels, and a sum as large.

Sources: LLM-Pruner (Ma et al., arXiv:2305.11627), `param_first`, on 10 samples of 64 tokens; NIRVANA (Ai et al.,
arXiv:2509.14230), on 32 samples of 128 tokens. Departures: the scores say how many units of each decision stay; which
ones, and their order of removal, are the `score` of a variant. LLM-Pruner keeps the first four and the last two blocks
whole, which is `keep_blocks` of a model here. NIRVANA takes the gradient of the largest logits, and two thresholds, by
which the share that leaves attention is a 3.36th of the FFNs' on Llama-3.1-8B; this is the loss, one threshold and a
factor. Biases have no score. The windows are of the search text and are paid from the search's budget.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.heuristics.flap import best_units
from ffp.allocators.start import WINDOWS
from ffp.allocators.tracker import GRADIENT_FORWARDS, Tracker
from ffp.core.problem import Allocation, PruningProblem
from ffp.core.projection import kept_budget, round_keep


class TaylorGlobal(Search):
    """Keeps the units with the largest Taylor scores of the whole model."""

    name: ClassVar[str] = "taylor-global"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "one ranking of all units by gradient times weight"
    citation: ClassVar[str] = "Ma et al., arXiv:2305.11627"
    equation: ClassVar[str] = (
        r"s_u = \sum_{w \in u} \left| \frac{\partial L}{\partial w}\, w \right|, \qquad "
        r"k_i = \left|\{u \in i : \gamma_i s_u > \tau\}\right|"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})
    fitnesses: ClassVar[tuple[str, ...]] = ("ppl",)  # its gradients are of the perplexity
    holds_gradients: ClassVar[bool] = True

    windows: int = Field(
        WINDOWS,
        ge=1,
        le=1_000_000,
        description="Windows of the search text behind the gradients, if the budget allows.",
    )
    attention_factor: float = Field(
        1.0, gt=0, le=1e6, description="gamma: what scores of attention are multiplied by; below 1, more of it goes."
    )

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a backward pass on one window."""
        return budget.all_windows >= GRADIENT_FORWARDS

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Measures the scores and ranks all units; answers ffn-only where the budget pays for no backward pass."""
        problem, affordable = tracker.problem, tracker.windows_left // GRADIENT_FORWARDS
        if not affordable:
            return tracker.finish([ffn_only_allocation(problem)])
        scores = tracker.taylor_scores(tracker.draw(rng, min(self.windows, affordable)))
        factors = [self.attention_factor if d.module == "attention" else 1.0 for d in problem.decisions]
        weighed = [factor * score for factor, score in zip(factors, scores, strict=True)]
        return tracker.finish([round_keep(problem, best_units(problem, weighed, kept_budget(problem)))])
