"""What a reader must know to judge the figures: computed from the cells, so that it cannot go stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ffp.config import Experiment
from ffp.report.collect import Record, task_metric
from ffp.report.groups import TIE_STDERRS

USUAL_CONTEXT = 2048


def counts(records: Iterable[Record]) -> dict[str, int]:
    """Cells by status, in a fixed order."""
    found = Counter(record.row["status"] for record in records)
    return {status: found[status] for status in ("done", "skipped", "failed", "missing") if found[status]}


def tables(project: Experiment, records: list[Record]) -> dict[str, list[str]]:
    """The caption under each table: how to read it, and for the comparison what was not controlled."""
    read = list(reading(project, records))
    return {
        "comparison": [*read, *uncontrolled(project, records)],
        "tasks": read,
        "ablation": [
            "Δ PPL: variant minus base, ± standard error of the difference over the same windows and over seeds.",
            f"Tie: within {TIE_STDERRS:g} of these standard errors.",
        ],
    }


def reading(project: Experiment, records: list[Record]) -> Iterable[str]:
    """What the columns and marks mean, one sentence each."""
    done = [record for record in records if record.done]
    for what, values in _constants(project, records).items():
        if len(values) == 1:
            yield f"{what}: {values.pop()}."
    yield (
        "Sparsity is the target share of the blocks' attention and FFN parameters; whole model counts all parameters."
    )
    contexts = sorted({(r.row["ppl_windows"], r.row["ppl_context"]) for r in done})
    shape = " or ".join(f"{windows} windows of {context} tokens" for windows, context in contexts)
    yield f"PPL: perplexity on the test part of {project.text.title}, {shape or 'not measured yet'}."
    if len(project.grid.seeds) > 1:
        yield "Mean ± standard deviation over seeds; methods that draw nothing have one cell and its standard error."
    else:
        yield "PPL ± standard error over windows."
    chosen: dict[str, dict[str, Any]] = {}
    for record in done:
        chosen.update({name: result for name, result in record.tasks.items() if name not in chosen})
    if chosen:
        parts = [f"{name} {task_metric(t)} on {_documents(t)}" for name, t in chosen.items()]
        error = "" if len(project.grid.seeds) > 1 else ", ± standard error over documents"
        yield f"Tasks, zero-shot{error}: {'; '.join(parts)}."
        yield "Mean: of acc_norm where a task has it, otherwise of acc."
    paired = all((r.scores or {}).get("ppl", {}).get("loss_by_window") for r in done)
    how = "window by window" if paired else "from both errors"
    yield (
        f"Bold: best of its model, granularity and sparsity. †: tied with it, the difference is within "
        f"{TIE_STDERRS:g} standard errors of the difference (PPL: {how})."
    )
    yield "Search: evaluations and tokens forwarded, finalists included; seconds without model loading and calibration."


def figure(project: Experiment, name: str) -> str:
    """The caption under a figure."""
    seeds, budget = len(project.grid.seeds), project.grid.search
    several = seeds > 1
    spread = f"standard deviation over {seeds} seeds, the small points" if several else "standard error over windows"
    quality = (
        f"Bars: {spread}. Points that would hide each other stand side by side. "
        "Dotted: methods that forward no search text. Dashed: the dense model. A point opens its cell."
    )
    anytime = (
        f"Reward on the search text, not on the test text. {'Line: mean, band: all seeds. ' if several else ''}"
        f"Budget, the same for every method: {budget.evaluations} evaluations of "
        f"{budget.windows_per_evaluation} x {budget.context} tokens."
    )
    allocation = f"Share of the units kept in each block{f', mean of {seeds} seeds' if several else ''}."
    return {"quality_cost": quality, "quality_time": quality, "anytime": anytime, "allocation": allocation}[name]


def _documents(result: dict[str, Any]) -> str:
    total = f" of {result['n_total']}" if result.get("n_total") else ""
    return f"{result['n']}{total} documents"


def _constants(project: Experiment, records: list[Record]) -> dict[str, set[str]]:
    """Facts that have a column of their own only where they vary."""
    return {
        "Model": {project.models[record.cell.model].title for record in records},
        "Granularity": {record.cell.granularity for record in records},
        "Seed": {str(record.cell.seed) for record in records},
    }


def uncontrolled(project: Experiment, records: list[Record]) -> list[str]:
    """What limits these figures, one sentence each; only what holds for these cells."""
    done = [record for record in records if record.done]
    notes = []
    if len(project.grid.seeds) == 1:
        notes.append("Not controlled: one seed for every search, so the spread between runs of a search is unknown.")
    notes += _samples(done)
    if any(record.row.get("search_s") for record in done):
        notes.append("Not controlled: seconds and memory are of single runs; other load on the machine is unknown.")
    for what, values in _mixtures(done).items():
        if len(values) > 1:
            notes.append(f"Not controlled: the cells were made with different {what}: {', '.join(sorted(values))}.")
    if any(((r.scores or {}).get("provenance") or {}).get("dirty") for r in done):
        notes.append("Not controlled: some cells come from a working tree with uncommitted changes.")
    stale = sum(bool(record.notes) for record in records)
    if stale:
        notes.append(f"{stale} of {len(records)} cells were made under other settings than the configuration has now.")
    found = counts(records)
    if found.get("done", 0) < len(records):
        states = ", ".join(f"{count} {status}" for status, count in found.items())
        notes.append(f"Incomplete: {states} of {len(records)} cells.")
    return notes


def _samples(done: list[Record]) -> Iterable[str]:
    """Notes on small samples and short contexts."""
    contexts = {record.row["ppl_context"] for record in done} - {USUAL_CONTEXT}
    if contexts:
        shown = ", ".join(str(context) for context in sorted(contexts))
        yield f"Perplexities at a context of {shown} do not compare with published ones at {USUAL_CONTEXT}."
    sampled = {name: t for r in done for name, t in r.tasks.items() if t["n"] < t.get("n_total", t["n"])}
    if sampled:
        sizes = sorted({t["n"] for t in sampled.values()})
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        yield f"Task scores are of a seeded sample of {span} documents a task and do not compare with published ones."
    hashes: dict[str, set[str]] = {}
    for record in done:
        for name, t in record.tasks.items():
            hashes.setdefault(name, set()).add(str(t["hash"]))
    for name, values in hashes.items():
        if len(values) > 1:
            yield f"Not controlled: {name} was scored on different documents or prompts in different cells."


def _mixtures(done: list[Record]) -> dict[str, set[str]]:
    """Facts of the provenance that should be the same for all cells."""
    found: dict[str, set[str]] = {"commits": set(), "devices": set(), "machines": set(), "package versions": set()}
    for record in done:
        facts = (record.scores or {}).get("provenance") or {}
        for what, key in (("commits", "commit"), ("devices", "device"), ("machines", "machine")):
            if facts.get(key):
                found[what].add(str(facts[key])[:12])
        packages = facts.get("packages") or {}
        found["package versions"].add(" ".join(f"{name} {version}" for name, version in sorted(packages.items())))
    return found
