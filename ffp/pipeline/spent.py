"""What a grid took, beside what was planned for the same jobs."""

from __future__ import annotations

from collections.abc import Iterator

from ffp.config import Experiment
from ffp.core.plain import duration
from ffp.pipeline.plan import planned_flops, table
from ffp.pipeline.sizes import computing_cells, forward_flops, load_sizes, memory_of, prunables_of
from ffp.pipeline.task_plan import task_tokens
from ffp.pipeline.took import speed_of, took
from ffp.pipeline.training_plan import recovery_memory

COLUMNS = ("jobs", "time planned", "time taken", "tokens planned", "tokens taken", "GB planned", "GB taken")
NO_TOKENS = ("apply", "recover")  # steps whose work is not counted in tokens of a forward, or not written down


def compare(experiment: Experiment) -> str:
    """Returns a table with a row for each model and step that has finished jobs.

    Time is planned at the speed that calibration and searches of the model had, so that it says whether the shares of
    the steps are as planned; model loading is in no figure. Tokens are those of texts, without tasks.
    """
    rows = {row[0]: row[1:] for name in experiment.grid.models for row in _rows(experiment, name)}
    if not rows:
        return f"No job of {experiment.file} has ended yet."
    notes = "Memory planned is the tensors'; taken on a CPU, the whole process's, of which libraries are about 0.5 GB."
    return f"{table(rows, COLUMNS)}\n\n{notes}"


def _rows(experiment: Experiment, name: str) -> Iterator[tuple[str, ...]]:
    """The rows of a model; its sizes are looked at only where a job has ended."""
    if not (found := took(experiment, name)):
        return
    prunable = prunables_of(experiment, name, load_sizes(experiment, name))[0]
    memory = memory_of(prunable, experiment, name) | recovery_memory(prunable, experiment, name)
    work = planned_flops(prunable, experiment, name, task_tokens(experiment, {}))
    of_texts, forward = planned_flops(prunable, experiment, name, 0), forward_flops(prunable)
    cells = {step: len(cells) for step, cells in computing_cells(experiment, name).items()}
    jobs = {"calibrate": 1, "grams": 1, **cells}
    speed = speed_of(experiment, name, prunable).flops
    for step, spent in found.items():
        share, counted = spent.jobs / jobs[step], step not in NO_TOKENS
        yield (
            f"{name} {step}",
            f"{spent.jobs} of {jobs[step]}",
            duration(share * work[step] / speed),
            duration(spent.seconds),
            f"{share * of_texts[step] / forward:,.0f}" if counted else "",
            f"{spent.tokens:,}" if counted else "",
            f"{memory[step] / 1e9:.2f}",
            f"{spent.memory / 1e9:.2f}",
        )
