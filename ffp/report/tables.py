"""The comparison as rows and columns of text: one table, written as Markdown, LaTeX and HTML; figures as CSV."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffp import artifacts
from ffp.config import Project
from ffp.report.collect import Record, columns, task_metric

TIE_STDERRS = 2.0
DASH = "\N{EN DASH}"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", DASH: "--",
}  # fmt: skip
_MARKDOWN = "\\`*_{}[]<>|"


@dataclass(frozen=True)
class Entry:
    """One entry of the table. mark: "best" of its block, "tie" with the best, or ""; sort: the number behind it."""

    text: str
    mark: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class Table:
    """headings, and for each cell of the grid its entries; numeric: which columns hold numbers."""

    headings: list[str]
    numeric: list[bool]
    rows: list[tuple[Record, list[Entry]]]


def comparison(project: Project, records: list[Record]) -> Table:
    """The table that a reader sees: rounded, with errors; columns that never vary in this grid are left out."""
    marks = {key: best_and_ties(records, key) for key in ("ppl", "mean_acc")}
    tasks = _task_columns(records)
    varying = [key for key in ("model", "granularity", "seed") if len({record.row[key] for record in records}) > 1]
    headings = [*varying, "sparsity (%)", "method", "whole model (%)", "PPL"]
    headings += [f"{task} {metric} (%)" for task, metric in tasks]
    headings += ["mean (%)"] if tasks else []
    headings += ["evaluations", "search tokens", "search (s)", "status"]
    text = {"model", "granularity", "method", "status"}
    rows = [(r, _entries(project, r, varying, tasks, marks)) for r in records]
    return Table(headings, [heading not in text for heading in headings], rows)


def _entries(
    project: Project, record: Record, varying: list[str], tasks: list[tuple[str, str]], marks: Mapping[str, Any]
) -> list[Entry]:
    row, path = record.row, record.cell.path
    title = {"model": project.models[record.cell.model].title}
    entries = [Entry(title.get(key, str(row[key])), sort=row[key] if key == "seed" else None) for key in varying]
    entries += [_number(row, "sparsity", 100, 0), Entry(record.cell.method), _number(row, "model_sparsity", 100, 1)]
    entries.append(_number(row, "ppl", 1, 2, marks["ppl"].get(path, "")))
    entries += [_number(row, f"{task}_{metric}", 100, 1) for task, metric in tasks]
    if tasks:
        entries.append(_number(row, "mean_acc", 100, 1, marks["mean_acc"].get(path, "")))
    entries += [
        _number(row, "search_evaluations", 1, 0),
        _number(row, "search_tokens", 1, 0),
        _number(row, "search_s", 1, 1),
    ]
    return [
        *entries,
        Entry(row["status"] if record.done else f"{row['status']}: {row.get('reason') or 'no reason given'}"),
    ]


def _task_columns(records: Iterable[Record]) -> list[tuple[str, str]]:
    """(task, metric) for each task scored anywhere."""
    found: dict[str, str] = {}
    for record in records:
        for task, result in record.tasks.items():
            found.setdefault(task, task_metric(result))
    return list(found.items())


def _number(row: Mapping[str, Any], key: str, scale: float, digits: int, mark: str = "") -> Entry:
    """A figure with its standard error where it has one; an en dash where there is none."""
    value, stderr = row.get(key), row.get(f"{key}_stderr")
    if value is None:
        return Entry(DASH)
    text = f"{value * scale:,.{digits}f}"
    if stderr is not None:
        text += f" ± {stderr * scale:,.{digits}f}"
    return Entry(text, mark, float(value))


def best_and_ties(records: Iterable[Record], key: str) -> dict[str, str]:
    """Mark by cell path: "best" of each block of comparable rows, and "tie" where the difference is within the error.

    key: "ppl" (lower is better) or "mean_acc" (higher). Within the error: at most TIE_STDERRS standard errors of
    the difference. Perplexities of the same windows are compared window by window, which is far sharper than
    two separate errors; everything else adds errors in quadrature. Blocks with one finished row get no mark.
    """
    blocks: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.done and record.row.get(key) is not None:
            blocks[record.block].append(record)
    marks = {}
    for block in blocks.values():
        if len(block) > 1:
            best = (min if key == "ppl" else max)(block, key=lambda record: float(record.row[key]))
            for record in block:
                if record is best:
                    marks[record.cell.path] = "best"
                elif abs(record.row[key] - best.row[key]) <= TIE_STDERRS * difference_stderr(record, best, key):
                    marks[record.cell.path] = "tie"
    return marks


def difference_stderr(one: Record, other: Record, key: str) -> float:
    """Standard error of the difference of two figures; paired by window for perplexities where possible.

    Infinite where an error is unknown (a single window or document): such a difference proves nothing.
    """
    pair = [((record.scores or {}).get("ppl") or {}).get("loss_by_window") or [] for record in (one, other)]
    count = len(pair[0])
    if key == "ppl" and count == len(pair[1]) and count > 1:
        # The delta method on both sides: d(PPL1 - PPL2) = PPL1 dL1 - PPL2 dL2, window by window.
        terms = [one.row[key] * a - other.row[key] * b for a, b in zip(*pair, strict=True)]
        mean = sum(terms) / count
        return math.sqrt(sum((term - mean) ** 2 for term in terms) / (count - 1) / count)
    errors = [record.row.get(f"{key}_stderr") for record in (one, other)]
    return math.hypot(*(math.inf if error is None else error for error in errors))


def markdown(table: Table) -> str:
    """A GitHub table; the best of a block in bold, ties with it marked by a dagger."""
    lines = ["| " + " | ".join(_escape_markdown(h) for h in table.headings) + " |"]
    lines.append("|" + "|".join("---:" if numeric else "---" for numeric in table.numeric) + "|")
    for _, entries in table.rows:
        lines.append(
            "| " + " | ".join(_marked(_escape_markdown(e.text), e.mark, "**{}**", "{} †") for e in entries) + " |"
        )
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A booktabs tabular, to be \\input in a table environment; a rule between models, granularities and targets."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{" + "".join("r" if n else "l" for n in table.numeric) + "}",
    ]
    lines += ["\\toprule", " & ".join(escape_latex(heading) for heading in table.headings) + " \\\\", "\\midrule"]
    previous = None
    for record, entries in table.rows:
        if previous not in (None, record.block):
            lines.append("\\midrule")
        previous = record.block
        texts = [_marked(escape_latex(e.text), e.mark, "\\textbf{{{}}}", "{}$^\\dagger$") for e in entries]
        lines.append(" & ".join(texts) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _marked(text: str, mark: str, best: str, tie: str) -> str:
    return {"best": best, "tie": tie}.get(mark, "{}").format(text)


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _escape_markdown(text: str) -> str:
    return "".join("\\" + c if c in _MARKDOWN else c for c in " ".join(text.split()))


def write(project: Project, records: list[Record], caption: str, out: Path) -> Table:
    """Write comparison.{csv,parquet,md,tex}; csv and parquet hold every figure at full precision."""
    names = columns(records)
    rows = [{name: record.row.get(name) for name in names} for record in records]
    with artifacts.whole(out / "comparison.csv") as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    artifacts.write_table(out / "comparison.parquet", list(rows), names)
    table = comparison(project, records)
    comment = "".join(f"% {line}\n" for line in caption.splitlines())
    for name, text in (("md", f"{markdown(table)}\n{_escape_markdown(caption)}\n"), ("tex", comment + latex(table))):
        with artifacts.whole(out / f"comparison.{name}") as partial:
            partial.write_text(text, encoding="utf-8")
    return table
