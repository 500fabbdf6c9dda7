"""Picks published perplexities that compare with this grid: not measured here, and never ranked."""

from collections import defaultdict
from dataclasses import dataclass

from ffp.config import Experiment, HubSource
from ffp.report.collect import Block

LABEL = "published, not measured here"


@dataclass(frozen=True)
class Reference:
    """One published perplexity, with a note on where it comes from and how it was measured."""

    method: str
    ppl: float
    note: str


def references(experiment: Experiment) -> dict[Block, list[Reference]]:
    """Returns the published perplexities of each block of the grid.

    They have the same weights, granularity, sparsity, test text and context. A dense one stands under sparsity
    "0.00". A grid that measures a sample of the test text has none.
    """
    grid, found = experiment.grid, defaultdict[Block, list[Reference]](list)
    wanted = (grid.text, grid.evaluation.context)
    same = [origin for origin in experiment.published.sets if (origin.text, origin.context) == wanted]
    comparable = [origin for origin in same if origin.granularity in grid.granularities]
    for model in grid.models if not grid.evaluation.windows else ():
        for origin in comparable:
            conditions = f"context {origin.context}, calibration: {origin.calibration}"
            note = f"{LABEL}: {origin.source} ({origin.status}); {conditions}"
            targets = ["0.00", *(f"{sparsity:.2f}" for sparsity in grid.sparsities_of(origin.granularity))]
            for name in _names(experiment, model):
                for method, by_sparsity in origin.values.get(name, {}).items():
                    for target in (t for t in targets if t in by_sparsity):
                        reference = Reference(method, by_sparsity[target], note)
                        found[model, origin.granularity, target].append(reference)
    return found


def _names(experiment: Experiment, model: str) -> list[str]:
    """The names that config/published.yaml gives a model of the grid, found by its hub repository."""
    source = experiment.models[model].source
    repo = source.repo.casefold() if isinstance(source, HubSource) else ""
    return [name for name, repos in experiment.published.models.items() if repo in {r.casefold() for r in repos}]
