"""Compares two sets of results as a reviewer does: what differs behind them, which cells changed, and who wins now."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ffp.config import Cell
from ffp.core.errors import ConfigError
from ffp.report.collect import Block, Record, add_mean_accuracy, find_shares, read_cell
from ffp.report.details import flat
from ffp.report.groups import TIE_STDERRS, Group, by_block, difference_stderr, group, tied
from ffp.store.layout import CellFiles
from ffp.store.schemas import CompareFile

Figure = tuple[float | None, float | None, float | None]  # A, B, standard error of the difference
SCORES = ("mean_acc", "model_sparsity")  # beside the perplexities
COUNTS = ("search_tokens", "search_evaluations", "recover_tokens")
MEASURED = ("search_s", "recover_s", "evaluation_s", "search_peak_mem_bytes", "evaluation_peak_mem_bytes")
COST_TOLERANCE = 0.25  # relative difference of MEASURED to overlook: they come from single runs
# Digests of what a step made: they follow from the rest.
RESULTS = ("masks", "updates", "recovered", "allocation", "masks seal", "updates seal", "recovered seal")
# From the best verdict to the worst.
IDENTICAL, COST, ROUNDING, NOISE, CHANGED = VERDICTS = ("identical", "only cost", "rounding", "within noise", "changed")
LOST, NEW = "only in A", "only in B"
SHOWN = (CHANGED, LOST, NEW, NOISE, ROUNDING, COST)  # the order of their cells
BEHIND = ("commit", "settings", "")  # the parts of provenance in the order that they are shown; "" for all others


@dataclass(frozen=True)
class Difference:
    """What became of one cell."""

    cell: str  # its path
    verdict: str  # one of VERDICTS, LOST or NEW
    figures: Mapping[str, Figure]  # by name, where A and B differ
    allocation: bool = False  # whether the allocations differ
    status: tuple[str, str] = ("done", "done")  # in A and in B
    other_windows: bool = False  # whether a perplexity is of other text or windows in B than in A
    other_documents: bool = False  # whether a task that differs was asked of other documents or in other words


@dataclass(frozen=True)
class Winner:
    """The methods of lowest perplexity at one model, granularity and sparsity, where they are not the same."""

    block: Block
    text: str  # column of the perplexity
    before: str  # the method in A
    after: str  # the method in B
    values: tuple[float, float]  # perplexity of each where it won
    tie: bool  # whether the two are tied in B, so that the change says little


@dataclass(frozen=True)
class Comparison:
    """All cells of two sets of results."""

    cells: list[Difference]  # identical cells included
    provenance: Mapping[str, Mapping[str, int]]  # by setting, version or digest: the number of cells by "A -> B"
    winners: list[Winner]  # where the best method changed
    commits: tuple[list[str], list[str]]  # of the cells in A and in B

    @property
    def changed(self) -> bool:
        """Whether a reader would draw other conclusions: a cell changed beyond the noise or was lost."""
        return any(difference.verdict in (CHANGED, LOST) for difference in self.cells)


def compare(before: Path, after: Path, *, tolerance: float = 1e-4) -> Comparison:
    """Compares the cells below two folders.

    A relative difference of a figure up to `tolerance` is rounding: another machine sums in another order. One is
    within noise if it is at most TIE_STDERRS standard errors of the difference; for perplexities of the same windows
    that is the error of the paired losses. A figure of no known error changed if it differs by more than rounding. The
    sparsity of the whole model may also differ by what two allocations of one budget leave over, see _budget_rounding.
    Mean accuracies are over the tasks that both have. A cell with the same scores whose tokens differ, or whose seconds
    or memory differ by more than COST_TOLERANCE, changed in cost alone.
    """
    ours = read(before)
    texts = Counter(record.scores.ppl.text for record in ours.values() if record.scores).most_common()
    first = texts[0][0] if texts else None  # the text of A's "ppl", and so of B's
    ours, theirs = read(before, first) if len(texts) > 1 else ours, read(after, first)
    find_shares([*ours.values(), *theirs.values()])
    cells, changes = [], defaultdict[str, Counter[str]](Counter)
    for path in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(path), theirs.get(path)
        if a is None or b is None:
            cells.append(Difference(path, LOST if b is None else NEW, {}))
            continue
        cells.append(_difference(a, b, tolerance))
        for key, change in _provenance(a, b):
            changes[key][change] += 1
    winners = list(_winners(group(ours.values()), group(theirs.values())))
    return Comparison(cells, changes, winners, (_commits(ours), _commits(theirs)))


def read(folder: Path, first_text: str | None = None) -> dict[str, Record]:
    """Returns the cells below a results folder (or its folder `cells`) by path; ConfigError if it holds none.

    first_text: as read_cell takes it.
    """
    root = folder / "cells" if (folder / "cells").is_dir() else folder
    found = {}
    for place in sorted(path for path in root.glob("*/*/s*/*/seed*") if path.is_dir()):
        name = place.relative_to(root).as_posix()
        try:
            cell = Cell.parse(name)
        except ConfigError as error:
            raise ConfigError(f"{place} is no cell. Move it out of {root}.") from error
        found[cell.path] = read_cell(cell, CellFiles(place), first_text=first_text)
    if not found:
        raise ConfigError(f"{folder} holds no cells. Name a results folder, such as results.")
    return found


def _difference(a: Record, b: Record, tolerance: float) -> Difference:
    states = (str(a.row["status"]), str(b.row["status"]))
    keep = [record.allocation and record.allocation.keep for record in (a, b)]
    figures: dict[str, Figure] = {}
    verdicts = [IDENTICAL if states[0] == states[1] else CHANGED]
    other_windows = False
    _add_common_mean(a, b)
    texts, tasks = dict.fromkeys([*a.perplexities, *b.perplexities]), {**_by_task(a), **_by_task(b)}
    for key in (*texts, *tasks, *SCORES):
        x, y = a.row.get(key), b.row.get(key)
        if x == y:
            continue
        error, rounding = None, 0.0
        known = a.done and b.done and None not in (x, y)
        if known and key == "model_sparsity":
            rounding = _budget_rounding(a, b)
        elif known:
            error = difference_stderr(group([a])[0], group([b])[0], key)
            other_windows |= a.windows_of(key) != b.windows_of(key)
        figures[key] = (x, y, error)
        added = x is None and a.done  # a text or a task that was not asked for before
        verdicts.append(IDENTICAL if added else _verdict(x, y, error, tolerance, rounding))
    asked = {tasks[key] for key in figures if key in tasks}
    other_documents = any(task in b.tasks and a.tasks[task].hash != b.tasks[task].hash for task in asked & {*a.tasks})
    costs = _costs(a, b, tolerance)
    verdict = max([*verdicts, *[COST] * len(costs)], key=VERDICTS.index)
    allocation = keep[0] != keep[1]
    return Difference(a.cell.path, verdict, figures | costs, allocation, states, other_windows, other_documents)


def _costs(a: Record, b: Record, tolerance: float) -> dict[str, Figure]:
    """Tokens, seconds and memory that differ."""
    found: dict[str, Figure] = {}
    for key, limit in {**dict.fromkeys(COUNTS, tolerance), **dict.fromkeys(MEASURED, COST_TOLERANCE)}.items():
        x, y = a.row.get(key), b.row.get(key)
        if x != y and (None in (x, y) or _verdict(x, y, None, limit) == CHANGED):
            found[key] = (x, y, None)
    return found


def _add_common_mean(a: Record, b: Record) -> None:
    """Adds the mean accuracy over the tasks that both have, so that one more task changes no mean."""
    common = [name for name in (a.scores.tasks if a.scores else ()) if b.scores and name in b.scores.tasks]
    for record in (a, b):
        add_mean_accuracy(record, common)


def _by_task(record: Record) -> dict[str, str]:
    """The task of each column that tables show of tasks."""
    return {f"{name}_{metric}": name for name, task in record.tasks.items() for metric in task.shown_metrics}


def _budget_rounding(a: Record, b: Record) -> float:
    """The share of the whole model by which two allocations of the same budget may differ; 0 where it is not the same.

    Each removes less than the cheapest unit that it could still keep beyond the target. What no unit takes along goes
    with the last unit of a part.
    """
    ours, theirs = a.allocation, b.allocation
    if not (ours and theirs and a.scores) or ours.problem != theirs.problem or ours.keep == theirs.keep:
        return 0.0
    pairs = list(zip(ours.problem.decisions, zip(ours.keep, theirs.keep, strict=True), strict=True))
    units = [min((d.params_per_unit for d, keep in pairs if keep[i] < d.n_units), default=0) for i in (0, 1)]
    emptied = sum(d.fixed_params for d, keep in pairs if min(keep) == 0 < max(keep))
    return (max(units) + emptied) / a.scores.params.dense


def _verdict(x: float | None, y: float | None, error: float | None, tolerance: float, rounding: float = 0.0) -> str:
    """How two figures compare; `tolerance` is relative, `rounding` absolute."""
    if x is None or y is None:
        return CHANGED
    if abs(x - y) <= max(tolerance * max(abs(x), abs(y)), rounding):
        return ROUNDING
    return NOISE if error is not None and abs(x - y) <= TIE_STDERRS * error else CHANGED


def _winners(ours: list[Group], theirs: list[Group]) -> Iterator[Winner]:
    """Yields the blocks and texts whose best method differs; the dense model is none."""
    before, after = (by_block(g for g in groups if g.done and not g.is_dense) for groups in (ours, theirs))
    for block in (block for block in before if block in after):
        keys = dict.fromkeys(key for g in before[block] for key in g.done[0].perplexities if key != "ppl_before")
        for key in keys:
            there = [[g for g in groups[block] if g.row.get(key) is not None] for groups in (before, after)]
            if not all(there):
                continue
            old, new = (min(found, key=lambda g: float(g.row[key])) for found in there)
            if old.method != new.method:
                values = (float(old.row[key]), float(new.row[key]))
                rival = next((g for g in there[1] if g.method == old.method), None)
                tie = rival is not None and tied(rival, new, key)
                yield Winner(block, key, old.method, new.method, values, tie)


def _commits(records: Mapping[str, Record]) -> list[str]:
    """The versions and commits behind the cells, each with its number of cells."""
    origins = [body.provenance for r in records.values() if (body := r.scores or r.allocation)]
    names = [f"{o.commit[:10] or 'no commit'}{' with uncommitted changes' * o.dirty}" for o in origins]
    return [f"{name} ({count} cells)" for name, count in Counter(names).items()]


def _provenance(a: Record, b: Record) -> Iterator[tuple[str, str]]:
    """Yields ("evaluation commit", "A -> B") for each setting and each part of the provenance that differs."""
    for step, ours, theirs in (("search", a.allocation, b.allocation), ("evaluation", a.scores, b.scores)):
        if ours and theirs:
            before, after = (
                dict(flat({**body.provenance.model_dump(mode="json"), "settings": body.settings}))
                for body in (ours, theirs)
            )
            for key in {**before, **after}:
                old, new = before.get(key, "absent"), after.get(key, "absent")
                if old != new and key not in RESULTS:
                    yield f"{step} {key}", f"{old[:40]} -> {new[:40]}"


def lines(found: Comparison, before: Path, after: Path) -> Iterator[str]:
    """Yields the comparison as text.

    First what differs behind the cells: commits, settings, the rest. Then winners that changed, and the cells that
    differ, those that changed most first. The totals are the last line.
    """
    for name, folder, commits in (("A", before, found.commits[0]), ("B", after, found.commits[1])):
        yield f"{name} {folder}: {', '.join(commits) or 'no cell is finished'}"
    kinds = defaultdict[str, list[str]](list)
    for key, changes in found.provenance.items():
        part = key.split(" ", 1)[1].split(".", 1)[0]
        text = "; ".join(f"{change} ({count} cells)" for change, count in changes.items())
        kinds[part if part in BEHIND else ""].append(f"differs: {key}: {text}")
    for part in BEHIND:
        yield from kinds[part]
    for winner in found.winners:
        yield _winner_line(winner)
    for verdict in SHOWN:
        for difference in (difference for difference in found.cells if difference.verdict == verdict):
            yield f"{verdict:12}  {difference.cell}  {'; '.join(_parts(difference))}".rstrip()
    totals = Counter(difference.verdict for difference in found.cells)
    yield ", ".join(f"{totals[verdict]} {verdict}" for verdict in (*SHOWN, IDENTICAL) if totals[verdict])


def _winner_line(winner: Winner) -> str:
    model, granularity, sparsity = winner.block
    x, y = winner.values
    tied = f"; tied with {winner.before} in B" if winner.tie else ""
    where = f"{model}, {granularity}, {float(sparsity):.0%}"
    return f"winner        {where}, {winner.text}: {winner.before} ({x:.6g}) -> {winner.after} ({y:.6g}){tied}"


def _parts(difference: Difference) -> Iterator[str]:
    if difference.status[0] != difference.status[1]:
        yield f"status {difference.status[0]} -> {difference.status[1]}"
    for key, (x, y, error) in difference.figures.items():
        if x is None or y is None:
            yield f"{key} {'absent' if x is None else f'{x:.6g}'} -> {'absent' if y is None else f'{y:.6g}'}"
        else:
            noise = f", {abs(y - x) / error:.1f} standard errors" if error else ""
            yield f"{key} {x:.6g} -> {y:.6g} ({y - x:+.3g}{noise})"
    if difference.other_windows:
        yield "on other windows"
    if difference.other_documents:
        yield "on other documents or prompts"
    if difference.allocation:
        yield "another allocation"


def write(found: Comparison, path: Path) -> None:
    """Writes the comparison as JSON; an unknown standard error is null."""
    cells = [asdict(difference) for difference in found.cells]
    provenance = {key: dict(changes) for key, changes in found.provenance.items()}
    winners = [asdict(winner) for winner in found.winners]
    CompareFile(changed=found.changed, cells=cells, provenance=provenance, winners=winners).write(path)
