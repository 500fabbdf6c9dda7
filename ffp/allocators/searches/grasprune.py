"""GRASPrune: gates on all units, trained under a mask that meets the budget at each step (arXiv:2604.19398).

Unit u has a score s_u, 0 at first, and p_u = sigmoid(s_u / tau). All units stand in one order by p, each at its own
cost, and the mask m has the first ones that the budget pays for. The model is run with m, and the straight-through
gate z = m + p - stop_gradient(p) carries the gradient to kept and removed units alike:

    dL/ds_u = dL/dz_u p_u (1 - p_u) / tau.

AdamW follows it, one window a step. Then the mask stays, and kept units learn scales 1 + a tanh(gamma), gamma = 0 at
first, which are folded into the output projections. Constants are those of the authors' code.

Departures: the published 512 x 512 tokens pass four times for scores and once for scales, about 4 M of the tokens that
are counted here; a search takes the steps that its budget pays for, in the same proportion, on windows drawn anew. The
gate of a KV group is a factor on its output; the authors' is one on its keys and values. Of equal p, as all are at
first, the score of the variant decides. Where ridge solves for the weights that scales would be folded into, none are
learned, and all steps are spent on scores. Candidates are never compensated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field

from ffp.allocators.base import Search, SearchBudget
from ffp.allocators.heuristics.ffn_only import ffn_only_allocation
from ffp.allocators.tracker import GRADIENT_FORWARDS, Tracker
from ffp.allocators.unit_masks import best_gates, by_decision, is_noted
from ffp.core.problem import Allocation, FloatArray, PruningProblem

BETAS = (0.9, 0.99)  # of AdamW, whose weight decay is 0

Function = Callable[[FloatArray], FloatArray]


class GraspPrune(Search):
    """Trains a gate on every unit by straight-through gradients, then scales of what stays."""

    name: ClassVar[str] = "grasprune"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "gates of all units, trained under a hard budget"
    citation: ClassVar[str] = "Wang et al., arXiv:2604.19398"
    equation: ClassVar[str] = (
        r"p_u = \sigma(s_u / \tau), \qquad m = \mathrm{top}_B(p), \qquad "
        r"\frac{\partial L}{\partial s_u} = \frac{\partial L}{\partial z_u}\bigg|_{z = m} \frac{p_u (1 - p_u)}{\tau}"
    )
    granularities: ClassVar[frozenset[str]] = frozenset({"structured"})
    fitnesses: ClassVar[tuple[str, ...]] = ("ppl",)  # its gradients are of the perplexity

    temperature: float = Field(1.5, gt=0, le=1e6, description="tau: a score of this size moves p from 0.5 to 0.73.")
    learning_rate: float = Field(1e-2, ge=1e-12, le=1e3, description="Of AdamW, for scores and for scales.")
    step_windows: int = Field(1, ge=1, le=1_000_000, description="Windows of the search text behind a step.")
    scale_share: float = Field(
        0.2, ge=0, le=0.9, description="Share of the steps that learn scales, unless ridge follows."
    )
    scale_range: float = Field(0.5, ge=1e-3, le=0.99, description="a: scales lie between 1 - a and 1 + a.")

    @property
    def scores_compensated(self) -> bool:
        """Never: it differentiates gates."""
        return False

    @property
    def learns_scales(self) -> bool:
        """Whether any step learns scales."""
        return self.scale_share > 0

    def is_paid(
        self, problem: PruningProblem, budget: SearchBudget, n_windows: int, *, has_policy: bool = False
    ) -> bool:
        """Returns whether the budget pays for a step of the scores."""
        steps = budget.all_windows // (GRADIENT_FORWARDS * min(self.step_windows, n_windows))
        return round(self.scale_share * steps) < steps

    def run(self, tracker: Tracker, rng: np.random.Generator) -> Allocation:
        """Learns scores, then scales; answers ffn-only where the budget pays for no backward pass."""
        problem = tracker.problem
        steps = tracker.windows_left // (GRADIENT_FORWARDS * min(self.step_windows, tracker.reward.n_windows))
        if not steps:
            return tracker.finish([ffn_only_allocation(problem)])
        for_scales = round(self.scale_share * steps) if tracker.keeps_scales else 0
        scores = self._descend(
            tracker, rng, "gates", steps - for_scales, lambda s: best_gates(problem, s), self.straight_through
        )
        mask, a = best_gates(problem, scores), self.scale_range
        gamma = self._descend(
            tracker, rng, "scales", for_scales,
            lambda gamma: mask * (1 + a * np.tanh(gamma)), lambda gamma: mask * a / np.cosh(gamma) ** 2,
        )  # fmt: skip
        return tracker.finish_gated(by_decision(problem, mask * (1 + a * np.tanh(gamma))))

    def straight_through(self, scores: FloatArray) -> FloatArray:
        """Returns dp/ds, the slope that takes the place of the mask's, (n_units,)."""
        p = 1 / (1 + np.exp(-scores / self.temperature))
        slope: FloatArray = p * (1 - p) / self.temperature
        return slope

    def _descend(
        self, tracker: Tracker, rng: np.random.Generator, stage: str, steps: int, gates: Function, slope: Function
    ) -> FloatArray:
        """Minimises the loss in one number for each unit, 0 at first, by AdamW.

        Args:
            tracker: Of the search.
            rng: Draws the windows.
            stage: Name of this part, for the trace.
            steps: Gradient steps.
            gates: From the numbers to gates, (n_units,) each.
            slope: From the numbers to the slope of each gate in its own number.

        Returns:
            The numbers, (n_units,).
        """
        from ffp.allocators.descent import Descent

        descent = Descent(np.zeros(tracker.problem.n_units.sum()), BETAS)
        for step in range(steps):
            now = by_decision(tracker.problem, gates(descent.x))
            if is_noted(step, steps):
                tracker.answer_gated(now)
            slopes = tracker.gate_slopes(now, tracker.draw(rng, self.step_windows), stage=stage)
            descent.step(np.concatenate(slopes) * slope(descent.x), self.learning_rate)
        return descent.x
