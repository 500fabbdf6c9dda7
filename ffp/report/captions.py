"""What a reader must know to judge the tables and figures; computed from the cells, so that it is always current."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from ffp.config import Experiment
from ffp.report.collect import Record, task_metric
from ffp.report.groups import TIE_STDERRS
from ffp.store.schemas import TaskScores

USUAL_CONTEXT = 2048
OTHER_MACHINES = (
    "Searches compare losses; another CPU kernel, thread count or device can lead a search to another allocation."
)


def counts(records: Iterable[Record]) -> dict[str, int]:
    """Returns the number of cells by status, in a fixed order."""
    found = Counter(record.row["status"] for record in records)
    return {status: found[status] for status in ("done", "skipped", "failed", "missing") if found[status]}


def tables(experiment: Experiment, records: list[Record]) -> dict[str, list[str]]:
    """Returns the caption of each table: how to read it, and for the comparison what was not controlled."""
    read = list(reading(experiment, records))
    return {
        "comparison": [*read, *uncontrolled(experiment, records)],
        "tasks": read,
        "ablation": [
            "Δ PPL is the perplexity of the variant minus that of its base, ± the standard error of the difference "
            "over the same windows and over seeds.",
            f"A tie lies within {TIE_STDERRS:g} of these standard errors.",
        ],
    }


def reading(experiment: Experiment, records: list[Record]) -> Iterator[str]:
    """Yields what the columns and marks mean, a sentence or two each."""
    done = [record for record in records if record.done]
    for what, values in _constants(experiment, records).items():
        if len(values) == 1:
            yield f"{what}: {values.pop()}."
    yield (
        "Sparsity is the requested share of the blocks' attention and FFN parameters that is removed; "
        "whole model counts all parameters."
    )
    contexts = sorted({(r.row["ppl_windows"], r.row["ppl_context"]) for r in done})
    shape = " or ".join(f"{windows} windows of {context} tokens" for windows, context in contexts)
    yield f"PPL is the perplexity on the test part of {experiment.text.title}: {shape or 'not measured yet'}."
    several = len(experiment.grid.seeds) > 1
    if several:
        yield (
            "Figures are means ± standard deviation over seeds. "
            "Methods without random draws have one cell, shown with its standard error."
        )
    else:
        yield "PPL is shown ± its standard error over windows."
    tasks: dict[str, TaskScores] = {}
    for record in done:
        tasks |= {name: result for name, result in record.tasks.items() if name not in tasks}
    if tasks:
        error = "" if several else ", ± standard error over documents"
        parts = [f"{name} {task_metric(t)} on {_documents(t)}" for name, t in tasks.items()]
        yield f"Tasks are zero-shot{error}: {'; '.join(parts)}."
        yield "The mean takes acc_norm if a task has it, otherwise acc."
    paired = all(record.scores and record.scores.ppl.loss_by_window for record in done)
    how = "window by window" if paired else "from the errors of both"
    yield (
        f"Bold: the best of its model, granularity and sparsity. †: tied with the best, which means that they differ "
        f"by at most {TIE_STDERRS:g} standard errors of the difference (for PPL computed {how})."
    )
    yield (
        "Evaluations and search tokens include the finalists. "
        "Search seconds do not include model loading and calibration."
    )


def figure(experiment: Experiment, name: str, records: Iterable[Record] = ()) -> str:
    """Returns the caption under a figure.

    Args:
        experiment: The grid.
        name: A key of plots.FIGURES.
        records: All cells, to count those that a figure leaves out.
    """
    seeds = len(experiment.grid.seeds)
    several = seeds > 1
    spread = (
        f"the standard deviation over {seeds} seeds, small points single seeds" if several else "the standard error"
    )
    quality = (
        f"Bars show {spread}. Markers that would overlap are shifted sideways; the lines are exact. "
        "Dotted lines are methods that forward no search text, the dashed line is the dense model. "
        "Select a point to open its cell."
    )
    allocation = (
        f"The share of units that each method keeps in each block{f', mean of {seeds} seeds' if several else ''}."
    )
    texts = {"quality_cost": quality, "quality_time": quality, "allocation": allocation}
    return texts[name] if name in texts else " ".join(_anytime(experiment, records))


def _anytime(experiment: Experiment, records: Iterable[Record]) -> Iterator[str]:
    """Yields the caption of the searches' progress, a sentence each."""
    budget, seeds = experiment.grid.search, len(experiment.grid.seeds)
    yield (
        "The answer that each search would have given after so many tokens. Points show how much higher its loss is "
        "than the dense model's on the selection text. That text is the same for all searches, and none of them is "
        "rewarded on it; it only decides among the finalists at the end."
    )
    if seeds > 1:
        yield f"Lines are means over {seeds} seeds, bands hold all of them."
    yield "A search without an answer on its way has one point, at its end."
    yield (
        f"The budget of every search is {budget.evaluations} evaluations of "
        f"{budget.windows_per_evaluation} x {budget.context} tokens; a backward pass counts as two forwards."
    )
    older = sum(bool(r.cost and r.cost.evaluations and r.allocation and r.answers is None) for r in records)
    if older:
        what = "1 search" if older == 1 else f"{older} searches"
        yield f"Left out: {what} without answers.json, made by an older version. Run again to show."


def _documents(result: TaskScores) -> str:
    total = f" of {result.n_total}" if result.n_total else ""
    return f"{result.n}{total} documents"


def _constants(experiment: Experiment, records: list[Record]) -> dict[str, set[str]]:
    """Values that have a column of their own only if they vary."""
    return {
        "Model": {experiment.models[record.cell.model].title for record in records},
        "Granularity": {record.cell.granularity for record in records},
        "Seed": {str(record.cell.seed) for record in records},
    }


def uncontrolled(experiment: Experiment, records: list[Record]) -> list[str]:
    """Returns what limits these figures, a sentence each; only what holds for these cells."""
    done = [record for record in records if record.done]
    notes = []
    if len(experiment.grid.seeds) == 1:
        notes.append("Not controlled: one seed for every search, so the spread between runs of a search is unknown.")
    notes += _samples(done)
    if any(record.row.get("search_s") for record in done):
        notes.append("Not controlled: seconds and memory come from single runs, whatever else the machine was doing.")
    if any(record.row.get("search_tokens") for record in done):
        notes.append(OTHER_MACHINES)
    for what, values in _mixtures(done).items():
        if len(values) > 1:
            notes.append(f"Not controlled: the cells were made with different {what}: {', '.join(sorted(values))}.")
    if any(record.scores and record.scores.provenance.dirty for record in done):
        notes.append("Not controlled: some cells come from a working tree with uncommitted changes.")
    stale = sum(bool(record.notes) for record in records)
    if stale:
        notes.append(f"{stale} of {len(records)} cells were made under other settings than the configuration has now.")
    found = counts(records)
    if found.get("done", 0) < len(records):
        states = ", ".join(f"{count} {status}" for status, count in found.items())
        notes.append(f"Incomplete: {states} of {len(records)} cells.")
    return notes


def _samples(done: list[Record]) -> Iterator[str]:
    """Yields notes on small samples and short contexts."""
    contexts = {record.row["ppl_context"] for record in done} - {USUAL_CONTEXT}
    if contexts:
        shown = ", ".join(str(context) for context in sorted(contexts))
        yield f"Perplexities at a context of {shown} do not compare with published ones at {USUAL_CONTEXT}."
    tasks: dict[str, list[TaskScores]] = {}
    for record in done:
        for name, result in record.tasks.items():
            tasks.setdefault(name, []).append(result)
    sizes = sorted({t.n for results in tasks.values() for t in results if t.n < t.n_total})
    if sizes:
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        yield f"Task scores are of a seeded sample of {span} documents a task and do not compare with published ones."
    for name, results in tasks.items():
        if len({result.hash for result in results}) > 1:
            yield f"Not controlled: {name} was scored on different documents or prompts in different cells."


def _mixtures(done: list[Record]) -> dict[str, set[str]]:
    """Values of the provenance that should be the same for all cells."""
    found: dict[str, set[str]] = {"commits": set(), "devices": set(), "machines": set(), "package versions": set()}
    for origin in (record.scores.provenance for record in done if record.scores):
        for what, value in (("commits", origin.commit), ("devices", origin.device), ("machines", origin.machine)):
            found[what] |= {value[:12]} if value else set()
        packages = sorted(origin.packages.items())
        found["package versions"].add(" ".join(f"{name} {version}" for name, version in packages))
    return found
