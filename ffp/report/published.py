"""Picks published perplexities that compare with this grid: not measured here, and never ranked."""

from collections import defaultdict
from dataclasses import dataclass

from ffp.config import Experiment, HubSource, PublishedSet
from ffp.config.published import MEANINGS
from ffp.report.collect import Block

LABEL = "published, not measured here"


@dataclass(frozen=True)
class Reference:
    """One published perplexity, the set that it comes from, and the grid's text that it was measured on."""

    method: str
    ppl: float
    origin: PublishedSet
    text: str

    @property
    def label(self) -> str:
        """What stands in the column of states."""
        return LABEL if self.origin.status != "unconfirmed" else f"{LABEL}, unconfirmed"

    @property
    def note(self) -> str:
        """Where it comes from and how it was measured, with the address of the source at the end."""
        origin = self.origin
        status = f"{origin.status}: {MEANINGS[origin.status]}"
        conditions = f"context {origin.context}; calibration: {origin.calibration}"
        remarks = f"; {origin.remarks}" if origin.remarks else ""
        return f"{LABEL}: {origin.source} ({status}); {conditions}{remarks}. {origin.url}"


def references(experiment: Experiment) -> dict[Block, list[Reference]]:
    """Returns the published perplexities of each block of the grid.

    They have the same weights (hub repository), granularity, sparsity, test text (one of the grid's) and context. A
    dense one stands under sparsity "0.00". A grid that measures a sample of the test texts has none.
    """
    grid, found = experiment.grid, defaultdict[Block, list[Reference]](list)
    sets = [(origin, name) for origin in experiment.published.sets for name in grid.test_texts]
    comparable = [(origin, name) for origin, name in sets if _is_comparable(experiment, origin, name)]
    for model in grid.models:
        for origin, text in comparable:
            targets = ["0.00", *(f"{sparsity:.2f}" for sparsity in grid.sparsities_of(origin.granularity))]
            for name in _names(experiment, model):
                for method, by_sparsity in origin.values.get(name, {}).items():
                    for target in (t for t in targets if t in by_sparsity):
                        reference = Reference(method, by_sparsity[target], origin, text)
                        found[model, origin.granularity, target].append(reference)
    return found


def _is_comparable(experiment: Experiment, origin: PublishedSet, text: str) -> bool:
    """Whether the grid prunes like a set, and measures all of a text that is the set's in windows of its length."""
    grid = experiment.grid
    return (
        experiment.published.same_text(origin.text, text)
        and not grid.evaluation.windows
        and grid.evaluation.context == origin.context
        and origin.granularity in grid.granularities
    )


def _names(experiment: Experiment, model: str) -> list[str]:
    """The names that config/published.yaml gives a model of the grid, found by its hub repository."""
    source = experiment.models[model].source
    repo = source.repo.casefold() if isinstance(source, HubSource) else ""
    return [name for name, repos in experiment.published.models.items() if repo in {r.casefold() for r in repos}]
