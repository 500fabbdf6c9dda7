"""What a reader must know to judge the tables and figures; computed from the cells, so that it is always current.

The sentences stand in captions.html.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from ffp.config import Experiment
from ffp.config.bos import IN_WORDS
from ffp.report.collect import Record, by_task
from ffp.report.groups import TIE_STDERRS
from ffp.report.tables import text_headings

USUAL_CONTEXT = 2048  # of published perplexities


def template(name: str, *, autoescape: bool) -> Template:
    """Returns a template of this package."""
    environment = Environment(autoescape=autoescape, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(resources.files("ffp.report").joinpath(name).read_text("utf-8"))


_CONSTANTS = {"ties": f"{TIE_STDERRS:g}", "usual_context": USUAL_CONTEXT}
_CAPTIONS = template("captions.html", autoescape=False).make_module(_CONSTANTS)


def _lines(name: str, **values: Any) -> list[str]:
    return [line for line in getattr(_CAPTIONS, name)(**values).split("\n") if line]


def counts(records: Iterable[Record]) -> dict[str, int]:
    """Returns the number of cells by status, in a fixed order."""
    found = Counter(record.row["status"] for record in records)
    return {status: found[status] for status in ("done", "skipped", "failed", "missing") if found[status]}


def tables(experiment: Experiment, records: list[Record]) -> dict[str, list[str]]:
    """Returns the caption of each table: how to read it, and for the comparison what was not controlled."""
    read = reading(experiment, records)
    comparison = read + uncontrolled(experiment, records)
    unknown = bool(_without_error((record for record in records if record.done), ["ppl"]))
    fixed = {name: _lines(name, unknown=unknown) for name in ("winners", "ranking", "ablation")}
    return {"comparison": comparison, "tasks": read, **fixed}


def reading(experiment: Experiment, records: list[Record]) -> list[str]:
    """Returns what the columns and marks mean, a sentence or two each."""
    done = [record for record in records if record.done]
    # Values that have a column of their own only if they vary.
    values: dict[str, set[Any]] = {
        "Model": {experiment.models[record.cell.model].title for record in records},
        "Granularity": {record.cell.granularity for record in records},
        "Seed": {record.cell.seed for record in records},
    }
    constants = {what: found.pop() for what, found in values.items() if len(found) == 1}
    texts = [
        (heading, experiment.texts[name].title, _measured(done, key))
        for name, (key, heading) in zip(experiment.grid.test_texts, text_headings(experiment).items(), strict=True)
    ]
    tasks = [(name, results[0].main_metric, results[0]) for name, results in by_task(done).items()]
    left_out = [f"{name} {metric}" for name, metric, _ in tasks if f"{name}_{metric}" not in done[0].shares]
    columns = text_headings(experiment)
    for name, _, result in tasks:
        columns |= {f"{name}_{metric}": f"{name} {metric}" for metric in result.shown_metrics}
    columns["mean_acc"] = "mean accuracy"
    unknown = [columns[key] for key in _without_error(done, columns)]
    paired = all(record.perplexities["ppl"].loss_by_window for record in done)
    windows = {(record.cell.model, record.windows_of("ppl")) for record in done}
    paired = paired and len(windows) == len({model for model, _ in windows})
    trained = any("ppl_before" in record.row for record in done)
    return _lines(
        "reading", experiment=experiment, constants=constants, texts=texts, tasks=tasks, left_out=left_out,
        unknown=unknown, paired=paired, trained=trained, bits=any("bits_per_byte" in record.row for record in done),
    )  # fmt: skip


def _without_error(done: Iterable[Record], columns: Iterable[str]) -> list[str]:
    """Those of the columns in which some cell has a figure without a standard error."""
    rows = [record.row for record in done]
    return [key for key in columns if any(r.get(key) is not None and r.get(f"{key}_stderr") is None for r in rows)]


def _measured(records: Iterable[Record], key: str) -> list[tuple[int, int, str]]:
    """(windows, context, where a BOS stands) of the perplexities in a column, each once."""
    found = [record.perplexities[key] for record in records if key in record.perplexities]
    sizes = sorted({(ppl.n_windows, ppl.context, ppl.bos) for ppl in found})
    return [(windows, context, IN_WORDS[bos]) for windows, context, bos in sizes]


def uncontrolled(experiment: Experiment, records: list[Record]) -> list[str]:
    """Returns what limits these figures, a sentence each; only what holds for these cells."""
    done = [record for record in records if record.done]
    tasks = by_task(done)
    sizes = sorted(t.n for results in tasks.values() for t in results if t.n < t.n_total)
    origins = [record.scores.provenance for record in done if record.scores]
    packages = {" ".join(f"{name} {version}" for name, version in sorted(o.packages.items())) for o in origins}
    parts = ("commit", "device", "machine")
    mixtures = {f"{part}s": {getattr(origin, part)[:12] for origin in origins} - {""} for part in parts}
    return _lines(
        "uncontrolled",
        experiment=experiment,
        contexts=sorted({record.row["ppl_context"] for record in done} - {USUAL_CONTEXT}),
        sizes=(sizes[0], sizes[-1]) if sizes else (),
        tasks=_unlike(done),
        timed=any(record.row.get("search_s") for record in done),
        searched=any(record.row.get("search_tokens") for record in done),
        mixtures=mixtures | {"package versions": packages},
        dirty=any(origin.dirty for origin in origins),
        stale=sum(bool(record.notes) for record in records),
        cells=len(records),
        counts=counts(records),
    )


def _unlike(done: Iterable[Record]) -> list[str]:
    """The tasks that cells of the same model were not asked alike; models differ by their templates."""
    hashes = defaultdict[tuple[str, str], set[str]](set)
    for record in done:
        for task, result in record.tasks.items():
            hashes[task, record.cell.model].add(result.hash)
    return list(dict.fromkeys(task for (task, _), found in hashes.items() if len(found) > 1))


def figure(experiment: Experiment, name: str, records: Iterable[Record] = ()) -> str:
    """Returns the caption under a figure of plots.FIGURES; the records are those that the figure may leave out."""
    seeds, budget = len(experiment.grid.seeds), experiment.grid.search
    if name == "anytime":
        older = sum(bool(r.cost and r.cost.evaluations and r.allocation and r.answers is None) for r in records)
        return " ".join(_lines("anytime", seeds=seeds, budget=budget, older=older))
    return " ".join(_lines(name if name in ("allocation", "models", "overview") else "quality", seeds=seeds))
