r"""The tables of a paper: comparison, tasks and ablation, in Markdown and LaTeX; their figures as CSV and parquet.

Markdown and LaTeX are written here: pandas' Styler sets no \midrule between blocks of rows and prints < > | Δ as they
are, tabulate escapes bold and italics together with the names.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ffp.config import Experiment
from ffp.core.plain import one_line, spreadsheet
from ffp.report.collect import Block, Record, bits_column, by_task, columns
from ffp.report.groups import Group, best_and_ties, by_block, difference_stderr, tied
from ffp.report.groups import winners as outcomes
from ffp.report.published import references
from ffp.report.ranks import rank
from ffp.store.files import whole, write_table, write_text
from ffp.store.layout import ReportFiles

DASH = "\N{EN DASH}"
UNKNOWN = "error unknown"  # in place of a verdict; the captions say why
SHARED = ("model", "granularity", "sparsity (%)")
TEXT_COLUMNS = {"model", "granularity", "method", "status", "base", "change", "verdict", "tied with it",
                "at fewer tokens"}  # fmt: skip
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "Δ": r"$\Delta$", "\N{MINUS SIGN}": "$-$", DASH: "--",
})  # fmt: skip
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>|"})
_LATEX_STYLES = {"best": r"\textbf{{{}}}", "tie": r"{}$^\dagger$", "published": r"\textit{{{}}}"}
_MARKDOWN_STYLES = {"best": "**{}**", "tie": "{} †", "published": "*{}*"}


@dataclass(frozen=True)
class Entry:
    """One entry of a table."""

    text: str
    mark: str = ""  # "best" of its block, or "tie" with the best
    sort: float | None = None  # the number behind the text, if there is one


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    block: Block
    group: Group | None  # the cells behind the row; None for a published one
    entries: list[Entry]  # one for each heading
    note: str = ""  # the source of a published row, in words
    url: str = ""  # the address of that source
    published: bool = False


@dataclass(frozen=True)
class Table:
    """Headings, and lines with one entry for each of them."""

    headings: list[str]
    lines: list[Line]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [heading not in TEXT_COLUMNS for heading in self.headings]


@dataclass(frozen=True)
class _Column:
    """How a figure is shown: its key, what it is multiplied by, its digits, and whether low is better."""

    key: str
    scale: float
    digits: int
    low: bool


def comparison(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns one row per method: rounded, with errors; columns that never vary in this grid are left out."""
    texts = text_headings(experiment)
    marks = {key: best_and_ties(groups, key) for key in ("mean_acc", *texts)}
    scored, trained = (any(key in group.row for group in groups) for key in ("mean_acc", "ppl_before"))
    bits = [key for key in texts if any(bits_column(key) in group.row for group in groups)]
    varying, known = _varying(groups), references(experiment)

    several = len(experiment.grid.seeds) > 1

    def entries(group: Group) -> dict[str, Entry]:
        found = _identity(experiment, group, varying)
        found["whole model (%)"] = _number(group, "model_sparsity", 100, 1)
        if trained:
            found["PPL before"] = _number(group, "ppl_before", 1, 2)
        for key, heading in texts.items():
            found[heading] = _number(group, key, 1, 2, marks[key])
            if several:
                found[f"{heading} sd"] = _spread(group, key, 1, 2)
        found |= {bits_heading(texts[key]): _number(group, bits_column(key), 1, 3) for key in bits}
        if scored:
            found["mean acc. (%)"] = _number(group, "mean_acc", 100, 1, marks["mean_acc"])
            if several:
                found["acc. sd"] = _spread(group, "mean_acc", 100, 1)
        found |= {"evaluations": _count(group, "search_evaluations"), "search tokens": _count(group, "search_tokens")}
        found["search (s)"] = _number(group, "search_s", 1, 1)
        if trained:
            found["recover tokens"] = _count(group, "recover_tokens")
            found["recover (s)"] = _number(group, "recover_s", 1, 1)
        if several:
            found["seeds"] = _count(group, "seeds")
        return found | {"status": Entry(status(group.row))}

    lines = []
    for block, members in by_block(groups).items():
        lines += [Line(block, group, list(entries(group).values())) for group in members]
        unknown = {name: old if name in SHARED else Entry(DASH) for name, old in entries(members[0]).items()}
        for reference in known.get(block, []):
            ppl = {texts[text_column(experiment, reference.text)]: Entry(f"{reference.ppl:,.2f}", sort=reference.ppl)}
            found = unknown | {"method": Entry(reference.method), **ppl, "status": Entry(reference.label)}
            entry = list(found.values())
            lines.append(Line(block, None, entry, reference.note, reference.origin.url, published=True))
    return Table(list(entries(groups[0])), lines)


def winners(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns a row for each model, granularity and sparsity: the best method, and who else would do."""
    dense = {group.block[:2]: group for group in groups if group.method == "dense" and group.done}
    varying, lines = _varying(groups), []
    for winner in outcomes(groups):
        base, cheaper = dense.get(winner.block[:2]), winner.cheaper
        *identity, method = _identity(experiment, winner.best, varying).values()
        entries = [
            *identity,
            Entry(f"{base.row['ppl']:,.2f}", sort=float(base.row["ppl"])) if base else Entry(DASH),
            method,
            _number(winner.best, "ppl", 1, 2),
            _count(winner.best, "search_tokens"),
            Entry(", ".join(group.method for group in winner.ties) or DASH),
            Entry(f"{cheaper.method} ({_count(cheaper, 'search_tokens').text})" if cheaper else DASH),
        ]
        lines.append(Line(winner.block, winner.best, entries))
    ppl = text_headings(experiment)["ppl"]
    headings = ["sparsity (%)", f"dense {ppl}", "method", ppl, "search tokens", "tied with it", "at fewer tokens"]
    return Table([*varying, *headings], lines)


def text_column(experiment: Experiment, text: str) -> str:
    """Returns the column of a test text's perplexity: "ppl" for the first text, "ppl_on_NAME" for another one."""
    return "ppl" if text == experiment.grid.test_texts[0] else f"ppl_on_{text}"


def text_headings(experiment: Experiment) -> dict[str, str]:
    """Returns the heading of each test text's perplexity by its column: "PPL NAME" where there are several texts."""
    names = experiment.grid.test_texts
    return {text_column(experiment, name): f"PPL {name}" if len(names) > 1 else "PPL" for name in names}


def bits_heading(heading: str) -> str:
    """Returns the heading of bits per byte beside that of a perplexity."""
    return heading.replace("PPL", "bits per byte", 1)


def tasks(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns one row per method; for each task a column with the metric that counts in the mean, by each filter."""
    scored = [group for group in groups if any(record.tasks for record in group.done)]
    records = [record for group in scored for record in group.done]
    shown: dict[str, _Column] = {}
    for task, (first, *_) in by_task(records).items():
        for metric in first.shown_metrics:
            key, low = f"{task}_{metric}", not first.metrics[metric].higher_is_better
            share = key in records[0].shares  # the same in all records
            shown[f"{task} {metric}{' (%)' if share else ''}"] = _Column(key, *((100, 1) if share else (1, 2)), low)
    shown["mean (%)"] = _Column("mean_acc", 100, 1, low=False)
    marks = {column.key: best_and_ties(scored, column.key, low=column.low) for column in shown.values()}
    varying, lines = _varying(groups), []
    for group in scored:
        figures = [_number(group, c.key, c.scale, c.digits, marks[c.key]) for c in shown.values()]
        lines.append(Line(group.block, group, [*_identity(experiment, group, varying).values(), *figures]))
    return Table([*varying, "sparsity (%)", "method", *shown], lines)


def ablation(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns the variants of each method, compared with the one of them that has the fewest settings.

    Δ PPL is variant minus base, ± the standard error of this difference; see groups.difference_stderr.
    """
    varying, lines = _varying(groups), []
    for block, members in by_block(g for g in groups if not g.is_dense).items():
        families = defaultdict[str, list[Group]](list)
        for member in members:
            families[experiment.method(member.method).name].append(member)
        for family in (family for family in families.values() if len(family) > 1):
            base = min(family, key=lambda g: len(experiment.settings_of(g.method)))
            for member in (base, *(g for g in family if g is not base)):
                *identity, method = _identity(experiment, member, varying).values()
                change = Entry(DASH if member is base else _change(experiment, base.method, member.method))
                figures = [_number(member, "ppl", 1, 2), *_difference(member, base)]
                lines.append(Line(block, member, [*identity, Entry(base.method), method, change, *figures]))
    return Table([*varying, "sparsity (%)", "base", "method", "change", "PPL", "Δ PPL", "verdict"], lines)


def ranking(experiment: Experiment, groups: list[Group]) -> Table:
    """Returns the methods by their mean rank over models and sparsities; no line in a grid of one setting."""
    ranks = rank(groups)
    several = len({found.granularity for found in ranks}) > 1
    lines = []
    for found in ranks:
        low, high = found.interval
        entries = [Entry(found.granularity)] if several else []
        entries += [
            Entry(found.method),
            Entry(f"{found.mean:.1f} ({low:.1f} to {high:.1f})", sort=found.mean),
            *(Entry(str(count), sort=count) for count in (found.wins, found.ties, found.losses, found.settings)),
        ]
        lines.append(Line(("", found.granularity, ""), found.group, entries))
    first = ["granularity"] if several else []
    return Table([*first, "method", "mean rank", "wins", "ties", "losses", "settings"], lines)


def _change(experiment: Experiment, base: str, variant: str) -> str:
    """What a variant sets differently from its base, e.g. "compensate: ridge"."""
    ours, theirs = experiment.settings_of(variant), experiment.settings_of(base)
    changed = [f"{key}: {value}" for key, value in ours.items() if theirs.get(key) != value]
    return "; ".join(changed + [f"default {key}" for key in theirs if key not in ours])


def _difference(member: Group, base: Group) -> list[Entry]:
    if member is base or member.row.get("ppl") is None or base.row.get("ppl") is None:
        return [Entry(DASH), Entry(DASH if member.done else status(member.row))]
    gap, error = member.row["ppl"] - base.row["ppl"], difference_stderr(member, base, "ppl")
    unequal = UNKNOWN if error is None else "better" if gap < 0 else "worse"
    verdict = "tie" if tied(member, base, "ppl") else unequal
    text = (f"{gap:+,.2f}" + ("" if error is None else f" ± {error:,.2f}")).replace("-", "\N{MINUS SIGN}")
    return [Entry(text, sort=gap), Entry(verdict)]


def status(row: Mapping[str, Any]) -> str:
    """Returns a row's state, with the reason unless it is done."""
    reason = one_line(row.get("reason") or "no reason given")
    return "done" if row["status"] == "done" else f"{row['status']}: {reason}"


def _varying(groups: list[Group]) -> list[str]:
    return [key for key in ("model", "granularity") if len({group.row[key] for group in groups}) > 1]


def _identity(experiment: Experiment, group: Group, varying: list[str]) -> dict[str, Entry]:
    """The first columns by heading: those of `varying`, sparsity and method."""
    titles = {"model": experiment.models[group.row["model"]].title, "granularity": group.row["granularity"]}
    entries = {key: Entry(titles[key]) for key in varying}
    return entries | {"sparsity (%)": _number(group, "sparsity", 100, 0), "method": Entry(group.method)}


def _number(group: Group, key: str, scale: float, digits: int, marks: Mapping[str, str] | None = None) -> Entry:
    """A mean over seeds, ± its standard error over windows or documents where it has one; else a dash."""
    value, error = group.row.get(key), group.row.get(f"{key}_stderr")
    if value is None:
        return Entry(DASH)
    text = f"{value * scale:,.{digits}f}" + ("" if error is None else f" ± {error * scale:,.{digits}f}")
    return Entry(text, (marks or {}).get(group.path, ""), float(value))


def _spread(group: Group, key: str, scale: float, digits: int) -> Entry:
    """The standard deviation of a figure over seeds; a dash for a single one."""
    value = group.row.get(f"{key}_sd")
    return Entry(DASH) if value is None else Entry(f"{value * scale:,.{digits}f}", sort=float(value))


def _count(group: Group, key: str) -> Entry:
    value = group.row.get(key)
    return Entry(DASH) if value is None else Entry(f"{value:,.0f}", sort=float(value))


def markdown(table: Table) -> str:
    """Returns a GitHub table: the best of a block in bold, its ties with a dagger, published rows in italics."""
    rows = [[_escaped(heading, _MARKDOWN) for heading in table.headings]]
    rows += [_texts(line, _MARKDOWN, _MARKDOWN_STYLES) for line in table.lines]
    heading, *lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|".join("---:" if numeric else "---" for numeric in table.numeric)
    return "\n".join([heading, f"|{rule}|", *lines, ""])


def latex(table: Table) -> str:
    r"""Returns a booktabs tabular, to be \input in a table environment, with a rule between blocks."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_row([_escaped(heading, _LATEX) for heading in table.headings]), r"\midrule"]
    for above, line in zip([None, *table.lines], table.lines, strict=False):
        if above and above.block != line.block:
            lines.append(r"\midrule")
        lines.append(_latex_row(_texts(line, _LATEX, _LATEX_STYLES)))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(entries: list[str]) -> str:
    r"""A row. Behind the \\ of the row above, a [ would begin a length and a * would be part of the command."""
    first = "{}" if entries[0].startswith(("[", "*")) else ""
    return first + " & ".join(entries) + r" \\"


def _texts(line: Line, escapes: Mapping[int, str], styles: Mapping[str, str]) -> list[str]:
    plain = styles["published"] if line.published else "{}"
    texts = [plain.format(_escaped(entry.text, escapes)) for entry in line.entries]
    return [styles.get(entry.mark, "{}").format(text) for entry, text in zip(line.entries, texts, strict=True)]


def _escaped(text: str, escapes: Mapping[int, str]) -> str:
    return one_line(text).translate(escapes)


def write_figures(records: list[Record], groups: list[Group], files: ReportFiles) -> None:
    """Writes every figure at full precision: comparison with a row per cell, summary with a row per method."""
    by_method = list(dict.fromkeys(key for group in groups for key in group.row))
    for name, names, rows in (
        ("comparison", columns(records), [record.row for record in records]),
        ("summary", by_method, [group.row for group in groups]),
    ):
        chosen: list[Mapping[str, Any]] = [{key: row.get(key) for key in names} for row in rows]
        with whole(files.file(name, "csv")) as partial:
            shown = [{key: spreadsheet(value) for key, value in row.items()} for row in chosen]
            pd.DataFrame(shown, columns=names, dtype=object).to_csv(partial, index=False, lineterminator="\n")
        write_table(files.file(name, "parquet"), chosen, names)


def write_texts(tables: Mapping[str, Table], captions: Mapping[str, Iterable[str]], files: ReportFiles) -> None:
    """Writes each table with its caption as Markdown and LaTeX."""
    for name, table in tables.items():
        lines = list(dict.fromkeys([*captions[name], *(line.note for line in table.lines if line.note)]))
        text = "\n".join(_escaped(line, _MARKDOWN) for line in lines)
        comment = "".join(f"% {one_line(line)}\n" for line in lines)
        for kind, body in (("md", f"{markdown(table)}\n{text}\n"), ("tex", comment + latex(table))):
            write_text(files.file(name, kind), body)
