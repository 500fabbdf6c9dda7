"""What `ffp verify` finds, without drawing the report where that is not needed: it takes longer than all else."""

from __future__ import annotations

from collections.abc import Iterator

from ffp.config import Experiment
from ffp.pipeline.verify import Verifier


class AllButTheReport(Verifier):
    """Every check but the last, that of the report."""

    def _report(self) -> Iterator[str]:
        yield from ()


def faults(experiment: Experiment) -> list[str]:
    """The faults of a grid; those of its report are looked for only where there is no other."""
    return AllButTheReport(experiment).run() or Verifier(experiment).run()
