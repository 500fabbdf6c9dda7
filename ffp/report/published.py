"""Perplexities that others published, picked where they compare with this grid: never measured here, never ranked."""

from __future__ import annotations

from dataclasses import dataclass

from ffp.config import Experiment, HubSource, PublishedSet
from ffp.report.groups import Block

LABEL = "published, not measured here"


@dataclass(frozen=True)
class Reference:
    """One published perplexity. origin: the set that it comes from."""

    method: str
    ppl: float
    origin: PublishedSet

    @property
    def note(self) -> str:
        """Where it comes from and under what conditions, in one line."""
        facts = f"context {self.origin.context}, calibration: {self.origin.calibration}"
        return f"{LABEL}: {self.origin.source} ({self.origin.status}); {facts}"


def references(project: Experiment) -> dict[Block, list[Reference]]:
    """The references of each block of the grid: same weights, granularity, sparsity, test text and context.

    None where perplexities are of a sample of the test text. A dense reference stands under sparsity "0.00".
    """
    grid, found = project.grid, dict[Block, list[Reference]]()
    if grid.evaluation.windows:
        return found
    targets = ["0.00", *(f"{sparsity:.2f}" for sparsity in grid.sparsities)]
    for model in grid.models:
        for origin in project.published.sets:
            if (origin.text, origin.context) != (grid.text, grid.evaluation.context):
                continue
            if origin.granularity not in grid.granularities:
                continue
            for name in _names(project, model):
                for method, by_sparsity in origin.values.get(name, {}).items():
                    for target in (t for t in targets if t in by_sparsity):
                        reference = Reference(method, by_sparsity[target], origin)
                        found.setdefault((model, origin.granularity, target), []).append(reference)
    return found


def _names(project: Experiment, model: str) -> list[str]:
    """What config/published.yaml calls a model of the grid, by its hub repository."""
    source = project.models[model].source
    repo = source.repo.casefold() if isinstance(source, HubSource) else ""
    return [name for name, repos in project.published.models.items() if repo in {r.casefold() for r in repos}]
