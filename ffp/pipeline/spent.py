"""What a grid took, beside what was planned for the same jobs."""

from __future__ import annotations

from collections.abc import Iterator

from ffp.config import Experiment
from ffp.core.plain import duration
from ffp.pipeline.plan import ModelPlan, plan_model, table

COLUMNS = ("step", "jobs", "time planned", "time taken", "tokens planned", "tokens taken", "GB planned", "GB taken")
NO_TOKENS = ("apply", "recover")  # steps whose work is not counted in tokens of a forward, or not written down


def compare(experiment: Experiment) -> str:
    """Returns a table with a row for each model and step that has finished jobs.

    Time is planned at the speed that the timed steps of the model had, so that it says whether their shares are as
    planned; model loading is in no figure.
    """
    rows = {}
    for name in experiment.grid.models:
        for row in _rows(plan_model(experiment, name)):
            rows[f"{name} {row[0]}"] = row[1:]
    if not rows:
        return f"No job of {experiment.file} has ended yet."
    notes = "Memory planned is the tensors'; taken on a CPU, the whole process's, of which libraries are about 0.5 GB."
    return f"{table(rows, COLUMNS[1:])}\n\n{notes}"


def _rows(plan: ModelPlan) -> Iterator[tuple[str, ...]]:
    for step, spent in plan.took.items():
        planned = plan.flops[step] * spent.jobs / plan.computing[step]
        counted = step not in NO_TOKENS and spent.tokens > 0
        yield (
            step,
            f"{spent.jobs} of {plan.computing[step]}",
            duration(planned / plan.speed.flops),
            duration(spent.seconds),
            f"{planned / plan.forward:,.0f}" if counted else "",
            f"{spent.tokens:,}" if counted else "",
            f"{plan.memory.get(step, 0) / 1e9:.2f}",
            f"{spent.memory / 1e9:.2f}",
        )
