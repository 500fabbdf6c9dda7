"""Proof that a report says what its artifacts say: every digest, budget, figure and text is checked again.

Nothing is trusted that can be computed: files against the digests that others recorded of them, kept units against
budgets, perplexities against the losses behind them, and the report against one that is made anew. Without torch.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ffp import report
from ffp.assets.splits import SPLITS, normalised, shingles
from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError, FfpError
from ffp.core.problem import Allocation, Decision, PruningProblem
from ffp.core.projection import kept_budget
from ffp.pruning.structured import count_kept
from ffp.store.files import digest, read_json, read_table, read_tensors, sha256

log = logging.getLogger("ffp")
Faults = Iterator[str]
SCHEMAS = {
    "asset.json": "ffp/asset/1",
    "tokens.safetensors": "ffp/tokens/1",
    "stats.safetensors": "ffp/stats/1",
    "calibrate.cost.json": "ffp/cost/1",
    "allocation.json": "ffp/allocation/2",
    "search.cost.json": "ffp/cost/1",
    "policy.safetensors": "ffp/policy/1",
    "masks.safetensors": "ffp/masks/1",
    "updates.safetensors": "ffp/updates/1",
    "scores.json": "ffp/scores/1",
}
CELL_FILES = ["allocation.json", "trace.parquet", "search.cost.json", "masks.safetensors", "updates.safetensors",
              "scores.json"]  # fmt: skip
TOLERANCE = 1e-9  # relative; figures are stored exactly, only sums may be ordered differently


class Verifier:
    """One pass over a grid's files. faults: one line each, naming the file; checked: how much was looked at."""

    def __init__(self, project: Experiment):
        self.project = project
        self.data, self.cells = Path(project.grid.data), Path(project.grid.results) / "cells"
        self.faults: list[str] = []
        self.checked: Counter[str] = Counter()
        self.digests: dict[str, str] = {}  # of assets, by "models/NAME", "text" and "tasks"
        self.calibrations: dict[str, str] = {}

    def run(self) -> list[str]:
        """Check everything; the faults, in the order found."""
        grid = self.project.grid
        self._try("text", self._asset, "text", self.data / "text" / grid.text)
        if grid.tasks:
            self._try("set of task", self._asset, "tasks", self.data / "tasks" / grid.tasks)
        self._try("leak", self._leaks)
        for model in grid.models:
            self._try("model", self._asset, f"models/{model}", self.data / "models" / model)
            self._try("calibration", self._calibration, model)
        for cell in self.project.cells():
            self._try("cell", self._cell, cell)
        self._try("report", self._report)
        return self.faults

    def _try(self, kind: str, check: Callable[..., Faults], *arguments: Any) -> None:
        """Note the faults of one thing; a file that cannot even be read is one, and ends the look at that thing."""
        self.checked[kind] += 1
        try:
            self.faults += check(*arguments)
        except FfpError as error:
            self.faults.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.faults.append(f"a {kind}'s artifact lacks what its schema promises: {error!r}. Make it again.")

    def _json(self, path: Path) -> dict[str, Any]:
        self.checked["file"] += 1
        return read_json(path, SCHEMAS[path.name], sealed=True)

    def _tensors(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        self.checked["file"] += 1
        return read_tensors(path, SCHEMAS[path.name], sealed=True)

    def _broken(self, paths: Iterable[Path]) -> list[str]:
        """What is wrong with the files that are missing, damaged or of another schema, one line a file."""
        found = []
        for path in paths:
            try:
                if path.suffix == ".parquet":
                    read_table(path)
                else:
                    (self._json if path.suffix == ".json" else self._tensors)(path)
            except ArtifactError as error:
                found.append(str(error))
        return found

    def _asset(self, key: str, folder: Path) -> Faults:
        """The files of an asset against asset.json. Models need not be here: they come again from pinned sources."""
        if key.startswith("models/") and not folder.exists():
            log.info("verify: %s is not here; its recorded digest is checked, its files are not", folder)
            return
        facts = self._json(folder / "asset.json")
        self.digests[key] = facts["digest"]
        for name, expected in facts["files"].items():
            self.checked["file"] += 1
            yield from _equal(f"{folder / name}: sha256", sha256(folder / name), expected)
        yield from _equal(f"{folder / 'asset.json'}: digest", facts["digest"], digest(facts["files"]))

    def _leaks(self) -> Faults:
        """No document, and no run of 13 words, in two of the four texts, or in a task and a text that methods see."""
        folder = self.data / "text" / self.project.grid.text
        texts = {name: _documents(folder / f"{name}.jsonl") for name in SPLITS}
        copies = {name: {normalised(str(line["text"])) for line in lines} for name, lines in texts.items()}
        runs = {name: {run for text in copies[name] for run in shingles(text)} for name in SPLITS}
        self.checked["document"] += sum(map(len, texts.values()))
        for one, other in itertools.combinations(SPLITS, 2):
            if shared := len(copies[one] & copies[other]) + len(runs[one] & runs[other]):
                yield f"{folder}: texts {one} and {other} share {shared} documents or runs of 13 words. Fetch again."
        seen = set().union(*(runs[name] for name in SPLITS if name != "test"))
        for task in self.project.tasks.tasks if self.project.tasks else ():
            path = self.data / "tasks" / str(self.project.grid.tasks) / f"{task}.jsonl"
            leaked = [
                number for number, row in enumerate(_documents(path), 1)
                if any(run in seen for text in _long_strings(row) for run in shingles(text))
            ]  # fmt: skip
            if leaked:
                yield (
                    f"{path}: {len(leaked)} documents, the first in line {leaked[0]}, share a run of 13 words with a "
                    "text that methods are fitted to. Take another corpus, or leave the task out."
                )

    def _calibration(self, model: str) -> Faults:
        folder = self.data / "calibration" / model
        files = [folder / name for name in ("tokens.safetensors", "stats.safetensors")]
        if broken := self._broken([*files, folder / "calibrate.cost.json"]):
            yield from broken
            return
        origins = [self._tensors(path)[1] for path in files]
        origins.append(self._json(folder / "calibrate.cost.json")["provenance"])
        settings = _plain(self.project.settings("calibrate", Cell(model, "structured", "0.00", "dense", 0)))
        for origin in origins:
            yield from self._origin(folder, origin, model=f"models/{model}", text="text")
            yield from _equal(f"{folder}: settings", origin["settings"], settings)
        self.calibrations[model] = digest([sha256(path) for path in files])

    def _origin(self, where: Path, origin: Mapping[str, Any], **inputs: str) -> Faults:
        """The digests of assets that an artifact says it was made from, against those that are here."""
        for name, key in inputs.items():
            if key in self.digests:
                yield from _equal(f"{where}: its {name}'s digest", origin[name], self.digests[key])

    def _calibrated(self, where: Path, origin: Mapping[str, Any], cell: Cell) -> Faults:
        """The same for its calibration; a broken one has been told of already."""
        if cell.model in self.calibrations:
            yield from _equal(f"{where}: calibration", origin["calibration"], self.calibrations[cell.model])

    def _cell(self, cell: Cell) -> Faults:
        folder, problem = self.cells / cell.path, None
        names = ["scores.json"] if cell.method == "dense" else CELL_FILES
        learned = folder.glob("policy.safetensors")
        if broken := self._broken([*learned, *(folder / name for name in names)]):
            yield from broken
            return
        if cell.method != "dense":
            body = self._json(folder / "allocation.json")
            problem = _problem(body)
            yield from self._allocation(cell, folder, body, problem)
            yield from self._cut(cell, folder, body, problem)
        yield from self._scores(cell, folder, self._json(folder / "scores.json"), problem)

    def _allocation(self, cell: Cell, folder: Path, body: Mapping[str, Any], problem: PruningProblem) -> Faults:
        """The budget, the settings and the files of a cell's search."""
        where = folder / "allocation.json"
        keep, origin = tuple(body["keep"]), body["provenance"]
        Allocation(body["problem_id"], keep).check(problem)
        slack = kept_budget(problem) - int(np.dot(keep, problem.params_per_unit))
        addable = [u.params_per_unit for u, k in zip(problem.decisions, keep, strict=True) if k < u.n_units]
        if not 0 <= slack < min(addable, default=math.inf):
            yield f"{where}: {slack} parameters of the budget are unused, enough for another unit. Allocate again."
        yield from _equal(f"{where}: cell", body["cell"], _identity(cell))
        yield from _equal(f"{where}: target", problem.target, float(cell.sparsity))
        yield from _equal(f"{where}: granularity", problem.granularity, cell.granularity)
        yield from _equal(f"{where}: block_sparsity", body["block_sparsity"], problem.sparsity_of(keep))
        yield from _equal(f"{where}: settings", body["settings"], _plain(self.project.settings("allocate", cell)))
        yield from self._calibrated(where, origin, cell)
        yield from self._origin(where, origin, model=f"models/{cell.model}")
        for name, expected in body["files"].items():
            self.checked["file"] += 1
            yield from _equal(f"{folder / name}: sha256", sha256(folder / name), expected)
        yield from self._trace(folder, self._json(folder / "search.cost.json"), origin)

    def _trace(self, folder: Path, cost: Mapping[str, Any], origin: Mapping[str, Any]) -> Faults:
        """Every evaluation that was paid for is in the trace, within the budget."""
        trace, search = read_table(folder / "trace.parquet"), self.project.grid.search
        where = folder / "search.cost.json"
        yield from _equal(f"{where}: provenance", cost["provenance"], origin)
        yield from _equal(f"{where}: evaluations", cost["evaluations"], len(trace))
        spent = int(trace["tokens"].max()) if len(trace) else 0
        yield from _equal(f"{where}: n_tokens", cost["n_tokens"], spent + cost["selection_tokens"])
        if spent > (limit := search.budget().tokens(search.context)):
            yield f"{where}: {spent} tokens exceed the budget of {limit}. Search again."
        if not trace["tokens"].is_monotonic_increasing:
            yield f"{folder / 'trace.parquet'}: tokens fall from one evaluation to the next. Search again."

    def _cut(self, cell: Cell, folder: Path, body: Mapping[str, Any], problem: PruningProblem) -> Faults:
        """Masks and updates: of this allocation, and with exactly its number of units."""
        settings = _plain(self.project.settings("apply", cell))
        allocation = sha256(folder / "allocation.json")
        kept, meta = self._tensors(folder / "masks.safetensors")
        updates, other = self._tensors(folder / "updates.safetensors")
        counts = count_kept(problem, kept, folder / "masks.safetensors")
        yield from _equal(f"{folder / 'masks.safetensors'}: units kept", counts, body["keep"])
        yield from _equal(f"{folder / 'masks.safetensors'}: problem_id", meta["problem_id"], problem.problem_id)
        for name, origin in (("masks", meta["provenance"]), ("updates", other["provenance"])):
            where = folder / f"{name}.safetensors"
            yield from _equal(f"{where}: allocation", origin["allocation"], allocation)
            yield from _equal(f"{where}: settings", origin["settings"], settings)
            yield from self._calibrated(where, origin, cell)
        compensated = self.project.compensation(cell.method) != "none"
        expected = compensated if cell.granularity == "structured" else self.project.pruner(cell.method) == "sparsegpt"
        yield from _equal(f"{folder / 'updates.safetensors'}: holds updates", bool(updates), expected)

    def _scores(self, cell: Cell, folder: Path, body: Mapping[str, Any], problem: PruningProblem | None) -> Faults:
        where, origin, params = folder / "scores.json", body["provenance"], body["params"]
        yield from _equal(f"{where}: cell", body["cell"], _identity(cell))
        yield from _equal(f"{where}: settings", body["settings"], _plain(self.project.settings("evaluate", cell)))
        yield from self._origin(where, origin, model=f"models/{cell.model}", text="text")
        removed = biases = 0
        if problem is not None:
            keep = self._json(folder / "allocation.json")["keep"]
            removed = int(np.dot(problem.n_units - np.asarray(keep), problem.params_per_unit))
            updates, _ = self._tensors(folder / "updates.safetensors")
            biases = sum(array.size for name, array in updates.items() if name.endswith(".bias"))
            for name in ("masks", "updates"):
                yield from _equal(f"{where}: {name}", origin[name], sha256(folder / f"{name}.safetensors"))
            yield from _equal(f"{where}: block_sparsity", body["block_sparsity"], problem.sparsity_of(keep))
        gone = params["dense"] - params["kept"]
        if gone != removed - biases:  # biases that a compensation adds where the parent has none
            yield from _equal(f"{where}: parameters removed", gone, removed)
        yield from _equal(f"{where}: model_sparsity", body["model_sparsity"], 1 - params["kept"] / params["dense"])
        yield from _perplexity(where, body["ppl"])
        wanted = self.project.tasks.tasks if self.project.tasks else {}
        yield from _equal(f"{where}: tasks", sorted(body["tasks"]), sorted(wanted))
        if wanted:
            yield from self._origin(where, origin, tasks="tasks")
        for name, result in body["tasks"].items():
            yield from _accuracies(f"{where}: {name}", result)

    def _report(self) -> Faults:
        """Every file of the report against one that is made anew from the artifacts."""
        there = Path(self.project.grid.results) / "report"
        with tempfile.TemporaryDirectory(prefix="ffp-verify-") as scratch:
            report.build(self.project, Path(scratch))
            for fresh in sorted(Path(scratch).iterdir()):
                self.checked["file"] += 1
                if not (there / fresh.name).is_file():
                    yield f"{there / fresh.name} is missing. Run the rule that makes it again."
                elif (old := (there / fresh.name).read_bytes()) != (new := fresh.read_bytes()):
                    yield f"{there / fresh.name} is not what its artifacts give{_difference(old, new)}. Report again."
        self.checked["row"] += len(list(self.project.cells()))


def verify(project: Experiment) -> str:
    """Check a grid's artifacts and report; a line that says how much. ArtifactError with all faults, one a line."""
    if not Path(project.grid.results).is_dir():
        raise ArtifactError(f"there is no folder {project.grid.results} to verify. Name one, or run the grid first.")
    verifier = Verifier(project)
    faults = verifier.run()
    counts = ", ".join(f"{count} {name}s" for name, count in sorted(verifier.checked.items()) if name != "leak")
    if faults:
        raise ArtifactError("\n".join([*faults, f"{len(faults)} faults in {project.grid.results} ({counts} checked)."]))
    return f"{project.grid.results}: everything agrees ({counts} checked)."


def _equal(what: str, found: Any, expected: Any) -> Faults:
    """A fault unless both are equal, floats up to TOLERANCE."""
    both = found, expected
    if all(isinstance(value, int | float) for value in both):
        same = math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=1e-12)
    else:
        same = found == expected
    if not same:
        yield f"{what} is {_short(found)}, expected {_short(expected)}."


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 120 else f"{text[:117]}..."


def _plain(settings: Mapping[str, Any]) -> Any:
    """Settings as JSON gives them back: tuples as lists."""
    return json.loads(json.dumps(settings))


def _identity(cell: Cell) -> dict[str, Any]:
    return {"model": cell.model, "granularity": cell.granularity, "sparsity": float(cell.sparsity),
            "method": cell.method, "seed": cell.seed}  # fmt: skip


def _problem(body: Mapping[str, Any]) -> PruningProblem:
    facts = body["problem"]
    return PruningProblem(tuple(Decision(**each) for each in facts["decisions"]), facts["target"], facts["granularity"])


def _documents(path: Path) -> list[dict[str, Any]]:
    """The lines of a jsonl file; ArtifactError if it is missing or damaged."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Fetch it again.") from error


def _long_strings(value: Any) -> Iterator[str]:
    """Every string of nested plain data that has at least 13 words."""
    if isinstance(value, str):
        if len(value.split()) >= 13:
            yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _long_strings(part)


def _perplexity(where: Path, ppl: Mapping[str, Any]) -> Faults:
    """The perplexity and its error from the losses of the windows; see evaluation.perplexity."""
    losses = np.array(ppl["loss_by_window"])
    value, count = math.exp(losses.mean()), len(losses)
    yield from _equal(f"{where}: ppl.n_windows", ppl["n_windows"], count)
    yield from _equal(f"{where}: ppl.n_tokens", ppl["n_tokens"], count * (ppl["context"] - 1))
    yield from _equal(f"{where}: ppl.value", ppl["value"], value)
    stderr = value * float(losses.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    yield from _equal(f"{where}: ppl.stderr", ppl["stderr"], stderr)


def _accuracies(where: str, result: Mapping[str, Any]) -> Faults:
    """Accuracies are shares of n documents, with the standard error of a share."""
    n = result["n"]
    if not 0 < n <= result["n_total"]:
        yield f"{where}.n is {n}, outside 1..{result['n_total']}."
    for metric in ("acc", "acc_norm"):
        if (figure := result["metrics"].get(metric)) is not None:
            share = figure["value"]
            yield from _equal(f"{where}.{metric}", share, round(share * n) / n)
            stderr = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
            yield from _equal(f"{where}.{metric} stderr", figure["stderr"], stderr)


def _difference(old: bytes, new: bytes) -> str:
    """Where two files of text part, as far as a line can tell."""
    try:
        pairs = itertools.zip_longest(old.decode().splitlines(), new.decode().splitlines(), fillvalue="")
        number, (one, other) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    except (UnicodeDecodeError, StopIteration):
        return ""
    start = max(0, next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0) - 20)
    return f": line {number} has {one[start : start + 60]!r}, expected {other[start : start + 60]!r}"
