r"""The tables of a paper: comparison, tasks and ablation, in Markdown and LaTeX; their figures as CSV and parquet.

Markdown and LaTeX are written here: pandas' Styler sets no \midrule between blocks of rows and prints < > | Δ as they
are, tabulate escapes bold and italics together with the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ffp.config import Experiment
from ffp.report.collect import Record, columns, task_metric
from ffp.report.groups import TIE_STDERRS, Block, Group, best_and_ties, by_block, difference_stderr
from ffp.report.published import LABEL, Reference, references
from ffp.store.files import whole, write_table
from ffp.store.layout import ReportFiles

DASH = "\N{EN DASH}"
TEXT_COLUMNS = {"model", "granularity", "method", "status", "base", "change", "verdict"}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "Δ": r"$\Delta$", "\N{MINUS SIGN}": "$-$", DASH: "--",
}  # fmt: skip
_MARKDOWN = "\\`*_{}[]<>|"


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        text: What is shown.
        mark: "best" of its block, "tie" with the best, or "".
        sort: The number behind the text, if there is one.
    """

    text: str
    mark: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        block: Model, granularity and sparsity.
        group: The cells behind the row; None for a published one.
        entries: One for each heading.
        note: The source of a published row.
    """

    block: Block
    group: Group | None
    entries: list[Entry]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Headings, and lines with one entry for each of them."""

    headings: list[str]
    lines: list[Line]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [heading not in TEXT_COLUMNS for heading in self.headings]


def comparison(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns one row per method: rounded, with errors; columns that never vary in this grid are left out."""
    marks = {key: best_and_ties(groups, key) for key in ("ppl", "mean_acc")}
    scored = any("mean_acc" in group.row for group in groups)
    several = len(experiment.grid.seeds) > 1
    varying = _varying(groups)
    headings = [*varying, "sparsity (%)", "method", "whole model (%)", "PPL", *(["mean acc. (%)"] if scored else [])]
    headings += ["evaluations", "search tokens", "search (s)", *(["seeds"] if several else []), "status"]

    def line(group: Group) -> Line:
        row = group.row
        entries = [*_identity(experiment, group, varying), _number(row, "model_sparsity", 100, 1)]
        entries.append(_number(row, "ppl", 1, 2, marks["ppl"].get(group.path, "")))
        entries += [_number(row, "mean_acc", 100, 1, marks["mean_acc"].get(group.path, ""))] if scored else []
        entries += [_count(row, "search_evaluations"), _count(row, "search_tokens"), _number(row, "search_s", 1, 1)]
        entries += [_count(row, "seeds")] if several else []
        return Line(group.block, group, [*entries, Entry(status(row))])

    known = references(experiment)
    lines = []
    for block, members in by_block(groups).items():
        lines += [line(group) for group in members]
        lines += [_reference(headings, lines[-1], block, reference) for reference in known.get(block, [])]
    return Table(headings, lines)


def _reference(headings: list[str], beside: Line, block: Block, reference: Reference) -> Line:
    """A published row: its perplexity, and dashes for all that was not measured here."""
    known = {"method": Entry(reference.method), "PPL": Entry(f"{reference.ppl:,.2f}", sort=reference.ppl),
             "status": Entry(LABEL)}  # fmt: skip
    shared = {"model", "granularity", "sparsity (%)"}
    entries = [
        entry if heading in shared else known.get(heading, Entry(DASH))
        for heading, entry in zip(headings, beside.entries, strict=True)
    ]
    return Line(block, None, entries, reference.note)


def tasks(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns one row per method and one column per task, with the metric that counts in the mean."""
    scored = [group for group in groups if any(record.tasks for record in group.done)]
    metrics: dict[str, str] = {}
    for record in (record for group in scored for record in group.done):
        for task, result in record.tasks.items():
            metrics.setdefault(task, task_metric(result))
    keys = [f"{task}_{metric}" for task, metric in metrics.items()] + ["mean_acc"]
    marks = {key: best_and_ties(scored, key) for key in keys}
    varying = _varying(groups)
    headings = [*varying, "sparsity (%)", "method"]
    headings += [f"{task} {metric} (%)" for task, metric in metrics.items()] + ["mean (%)"]
    lines = [
        Line(group.block, group, _identity(experiment, group, varying)
             + [_number(group.row, key, 100, 1, marks[key].get(group.path, "")) for key in keys])
        for group in scored
    ]  # fmt: skip
    return Table(headings, lines)


def ablation(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns the variants of each method, compared with the one of them that has the fewest settings.

    Δ PPL is variant minus base, ± the standard error of this difference; see groups.difference_stderr. A grid without
    two variants of the same method has no rows.
    """
    varying = _varying(groups)
    headings = [*varying, "sparsity (%)", "base", "method", "change", "PPL", "Δ PPL", "verdict"]
    lines = []
    for block, members in by_block(g for g in groups if g.method != "dense").items():
        families: dict[str, list[Group]] = {}
        for member in members:
            families.setdefault(experiment.method(member.method).name, []).append(member)
        for family in (family for family in families.values() if len(family) > 1):
            base = min(family, key=lambda g: len(_settings(experiment, g.method)))
            for member in (base, *(g for g in family if g is not base)):
                identity = _identity(experiment, member, varying)
                identity.insert(-1, Entry(base.method))
                change = Entry(DASH if member is base else _change(experiment, base.method, member.method))
                entries = [*identity, change, _number(member.row, "ppl", 1, 2), *_difference(member, base)]
                lines.append(Line(block, member, entries))
    return Table(headings, lines)


def _settings(experiment: Experiment, name: str) -> dict[str, Any]:
    compensation = experiment.compensation(name)
    return {**experiment.parameters(name), **({"compensate": compensation} if compensation != "none" else {})}


def _change(experiment: Experiment, base: str, variant: str) -> str:
    """What a variant sets differently from its base, e.g. "compensate: ridge"."""
    ours, theirs = _settings(experiment, variant), _settings(experiment, base)
    changed = [f"{key}: {value}" for key, value in ours.items() if theirs.get(key) != value]
    return "; ".join(changed + [f"default {key}" for key in theirs if key not in ours])


def _difference(member: Group, base: Group) -> list[Entry]:
    if member is base or member.row.get("ppl") is None or base.row.get("ppl") is None:
        return [Entry(DASH), Entry(DASH if member.done else status(member.row))]
    gap, error = member.row["ppl"] - base.row["ppl"], difference_stderr(member, base, "ppl")
    verdict = "tie" if abs(gap) <= TIE_STDERRS * error else "better" if gap < 0 else "worse"
    text = f"{gap:+,.2f} ± {error:,.2f}".replace("-", "\N{MINUS SIGN}")
    return [Entry(text, sort=gap), Entry(verdict)]


def status(row: Mapping[str, Any]) -> str:
    """Returns a row's state, with the reason unless it is done."""
    if row["status"] == "done":
        return "done"
    return f"{row['status']}: {row.get('reason') or 'no reason given'}"


def _varying(groups: list[Group]) -> list[str]:
    return [key for key in ("model", "granularity") if len({group.row[key] for group in groups}) > 1]


def _identity(experiment: Experiment, group: Group, varying: list[str]) -> list[Entry]:
    """The varying columns, sparsity and method."""
    titles = {"model": experiment.models[group.row["model"]].title, "granularity": group.row["granularity"]}
    entries = [Entry(titles[key]) for key in varying]
    return [*entries, _number(group.row, "sparsity", 100, 0), Entry(group.method)]


def _number(row: Mapping[str, Any], key: str, scale: float, digits: int, mark: str = "") -> Entry:
    """A figure ± its standard deviation over seeds, or ± its standard error if it is of a single cell; else a dash."""
    value = row.get(key)
    if value is None:
        return Entry(DASH)
    spread = row.get(f"{key}_sd", row.get(f"{key}_stderr") if row.get("seeds") == 1 else None)
    text = f"{value * scale:,.{digits}f}" + ("" if spread is None else f" ± {spread * scale:,.{digits}f}")
    return Entry(text, mark, float(value))


def _count(row: Mapping[str, Any], key: str) -> Entry:
    return Entry(DASH) if row.get(key) is None else Entry(f"{row[key]:,.0f}", sort=float(row[key]))


def markdown(table: Table) -> str:
    """Returns a GitHub table: the best of a block in bold, its ties with a dagger, published rows in italics."""
    lines = ["| " + " | ".join(escape_markdown(h) for h in table.headings) + " |"]
    lines.append("|" + "|".join("---:" if numeric else "---" for numeric in table.numeric) + "|")
    for line in table.lines:
        style = "{}" if line.group else "*{}*"
        texts = (_marked(style.format(escape_markdown(e.text)), e.mark, "**{}**", "{} †") for e in line.entries)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    r"""Returns a booktabs tabular, to be \input in a table environment, with a rule between blocks."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{" + "".join("r" if n else "l" for n in table.numeric) + "}",
    ]
    lines += ["\\toprule", " & ".join(escape_latex(heading) for heading in table.headings) + " \\\\", "\\midrule"]
    previous = None
    for line in table.lines:
        if previous not in (None, line.block):
            lines.append("\\midrule")
        previous = line.block
        style = ("{}", "\\textit{{{}}}")[line.group is None]
        texts = (
            _marked(style.format(escape_latex(e.text)), e.mark, "\\textbf{{{}}}", "{}$^\\dagger$") for e in line.entries
        )
        lines.append(" & ".join(texts) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _marked(text: str, mark: str, best: str, tie: str) -> str:
    return {"best": best, "tie": tie}.get(mark, "{}").format(text)


def escape_latex(text: str) -> str:
    """Returns text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def escape_markdown(text: str) -> str:
    """Returns text that Markdown prints as it stands, on one line."""
    return "".join("\\" + c if c in _MARKDOWN else c for c in " ".join(text.split()))


def write_figures(records: list[Record], groups: list[Group], files: ReportFiles) -> None:
    """Writes every figure at full precision: comparison with a row per cell, summary with a row per method."""
    by_method = list(dict.fromkeys(key for group in groups for key in group.row))
    for name, names, rows in (
        ("comparison", columns(records), [record.row for record in records]),
        ("summary", by_method, [group.row for group in groups]),
    ):
        chosen: list[Mapping[str, Any]] = [{key: row.get(key) for key in names} for row in rows]
        with whole(files.file(name, "csv")) as partial:
            pd.DataFrame(chosen, columns=names, dtype=object).to_csv(partial, index=False, lineterminator="\n")
        write_table(files.file(name, "parquet"), chosen, names)


def write_texts(tables: Mapping[str, Table], captions: Mapping[str, Iterable[str]], files: ReportFiles) -> None:
    """Writes each table with its caption as Markdown and LaTeX."""
    for name, table in tables.items():
        lines = list(dict.fromkeys([*captions[name], *(line.note for line in table.lines if line.note)]))
        text = "\n".join(escape_markdown(line) for line in lines)
        comment = "".join(f"% {line}\n" for line in lines)
        for kind, body in (("md", f"{markdown(table)}\n{text}\n"), ("tex", comment + latex(table))):
            with whole(files.file(name, kind)) as partial:
                partial.write_text(body, encoding="utf-8")
