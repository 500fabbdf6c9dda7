"""Picks published perplexities that compare with this grid: not measured here, and never ranked."""

from __future__ import annotations

from dataclasses import dataclass

from ffp.config import Experiment, HubSource, PublishedSet
from ffp.report.groups import Block

LABEL = "published, not measured here"


@dataclass(frozen=True)
class Reference:
    """One published perplexity and the set of config/published.yaml that it comes from."""

    method: str
    ppl: float
    origin: PublishedSet

    @property
    def note(self) -> str:
        """Where it comes from and how it was measured, in one line."""
        conditions = f"context {self.origin.context}, calibration: {self.origin.calibration}"
        return f"{LABEL}: {self.origin.source} ({self.origin.status}); {conditions}"


def references(experiment: Experiment) -> dict[Block, list[Reference]]:
    """Returns the published perplexities of each block of the grid.

    They have the same weights, granularity, sparsity, test text and context. A dense one stands under sparsity
    "0.00". A grid that measures a sample of the test text has none.
    """
    grid, found = experiment.grid, dict[Block, list[Reference]]()
    if grid.evaluation.windows:
        return found
    comparable = [
        origin for origin in experiment.published.sets
        if (origin.text, origin.context) == (grid.text, grid.evaluation.context)
        and origin.granularity in grid.granularities
    ]  # fmt: skip
    for model in grid.models:
        for origin in comparable:
            targets = ["0.00", *(f"{sparsity:.2f}" for sparsity in grid.sparsities_of(origin.granularity))]
            for name in _names(experiment, model):
                for method, by_sparsity in origin.values.get(name, {}).items():
                    for target in (t for t in targets if t in by_sparsity):
                        block = (model, origin.granularity, target)
                        found.setdefault(block, []).append(Reference(method, by_sparsity[target], origin))
    return found


def _names(experiment: Experiment, model: str) -> list[str]:
    """The names that config/published.yaml gives a model of the grid, found by its hub repository."""
    source = experiment.models[model].source
    repo = source.repo.casefold() if isinstance(source, HubSource) else ""
    return [name for name, repos in experiment.published.models.items() if repo in {r.casefold() for r in repos}]
