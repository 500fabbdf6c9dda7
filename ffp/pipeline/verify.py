"""Checks that a report says what its artifacts say: every digest, budget, figure and text is computed again.

Files are compared with the digests that others recorded of them, kept units with budgets, perplexities with the losses
behind them, and the report with one that is made anew. Without torch.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ffp import report
from ffp.config import Cell, Experiment
from ffp.core.errors import ArtifactError, FfpError
from ffp.core.plain import shell_line
from ffp.core.projection import kept_budget
from ffp.pipeline.leaks import documents, leaks
from ffp.pipeline.verify_tasks import Faults, equal, task_faults
from ffp.pruning.pruners import find_pruner
from ffp.pruning.structured import count_kept, kept_units, learned_scales
from ffp.store import schemas
from ffp.store.digests import GRAMS_SEAL, calibration_digest, cut_files
from ffp.store.files import digest, sha256
from ffp.store.identity import step_settings
from ffp.store.layout import SPLITS, AssetFiles, CellFiles, Layout
from ffp.store.provenance import test_keys
from ffp.store.schemas import AllocationFile, AnswersFile, AssetFile, CostFile, Provenance, ScoresFile

log = logging.getLogger("ffp")
Readers = dict[Path, Callable[..., Any]]


class Verifier:
    """One pass over a grid's files.

    Attributes:
        faults: One line each, naming the file.
        checked: How many things of each kind were looked at.
    """

    def __init__(self, experiment: Experiment):
        self.experiment, self.layout = experiment, Layout.from_grid(experiment.grid)
        self.faults: list[str] = []
        self.checked: Counter[str] = Counter()
        self.digests: dict[str, str] = {}  # of assets, by "models/NAME", "texts/NAME" and "tasks"
        self.text = f"texts/{experiment.grid.calibration_text}"  # that methods are fitted to
        self.calibrations: dict[str, str] = {}
        self.grams: dict[str, str | None] = {}  # seals, by model

    def run(self) -> list[str]:
        """Checks everything and returns the faults in the order found."""
        grid = self.experiment.grid
        for name in grid.all_texts:
            self._try("text", self._asset, f"texts/{name}", self.layout.text(name))
        if tasks := self.experiment.tasks_name:
            self._try("set of task", self._asset, "tasks", self.layout.tasks(tasks))
        self._try("leak", self._leaks)
        for model in grid.models:
            self._try("model", self._asset, f"models/{model}", self.layout.model(model))
            self._try("calibration", self._calibration, model)
        for cell in self.experiment.cells():
            self._try("cell", self._cell, cell)
        self._try("report", self._report)
        return self.faults

    def _try(self, kind: str, check: Callable[..., Faults], *arguments: Any) -> None:
        """Notes the faults of one thing; a file that cannot be read is one, and ends the look at that thing."""
        self.checked[kind] += 1
        try:
            self.faults += check(*arguments)
        except FfpError as error:
            self.faults += str(error).splitlines()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.faults.append(f"a {kind}'s artifact lacks what its schema promises: {error!r}. Make it again.")

    def _read(self, readers: Readers) -> dict[Path, Any]:
        """Reads files, sealed; ArtifactError names every one that is missing, damaged or of another schema."""
        found, broken = {}, []
        for path, read in readers.items():
            self.checked["file"] += 1
            try:
                found[path] = read(path, sealed=True)
            except ArtifactError as error:
                broken.append(str(error))
        if broken:
            raise ArtifactError("\n".join(broken))
        return found

    def _asset(self, key: str, files: AssetFiles) -> Faults:
        """The files of an asset against its manifest. Models need not be here: they come again from their sources."""
        if key.startswith("models/") and not files.folder.exists():
            log.info("verify: %s is not here; its recorded digest is checked, its files are not", files.folder)
            return
        manifest = self._read({files.manifest: AssetFile.read})[files.manifest]
        self.digests[key] = manifest.digest
        for name, expected in manifest.files.items():
            yield from self._sha256(files.folder / name, expected)
        yield from equal(f"{files.manifest}: digest", manifest.digest, digest(manifest.files))

    def _sha256(self, path: Path, expected: str) -> Faults:
        self.checked["file"] += 1
        yield from equal(f"{path}: sha256", sha256(path), expected)

    def _leaks(self) -> Faults:
        """Texts that methods are fitted to, against those that cells are scored on."""
        files = self.layout.text(self.experiment.grid.calibration_text)
        further = [self.layout.text(name) for name in self.experiment.grid.all_texts[1:]]
        paths = [files.documents(name) for name in SPLITS] + [text.documents("test") for text in further]
        self.checked["document"] += sum(len(documents(path)) for path in paths)
        yield from leaks(self.experiment)

    def _calibration(self, model: str) -> Faults:
        files = self.layout.calibration(model)
        found = self._read(
            {files.tokens: schemas.TOKENS.read, files.stats: schemas.STATS.read, files.cost: CostFile.read}
        )
        origins = [found[files.tokens][1].provenance, found[files.stats][1].provenance, found[files.cost].provenance]
        cell = Cell.dense_of(model)
        for origin in origins:
            yield from self._inputs(files.folder, origin, model=f"models/{model}", text=self.text)
            yield from self._settings(files.folder, origin.get("settings"), "calibrate", cell)
        self.calibrations[model] = calibration_digest(files.folder)
        if self.experiment.keeps_grams:
            found = self._read({files.grams: schemas.GRAMS.read, files.grams_cost: CostFile.read})
            self.grams[model] = schemas.GRAMS.read_seal(files.grams)
            for origin in (found[files.grams][1].provenance, found[files.grams_cost].provenance):
                yield from self._inputs(files.folder, origin, model=f"models/{model}")
                yield from self._calibrated(files.folder, origin, cell)
                yield from self._settings(files.folder, origin.get("settings"), "grams", cell)

    def _inputs(self, where: Path, origin: Provenance, **inputs: str) -> Faults:
        """The digests of assets that a file says it was made from, against those that are here."""
        for name, key in inputs.items():
            if key in self.digests:
                yield from equal(f"{where}: its {name}'s digest", origin.get(name), self.digests[key])

    def _calibrated(self, where: Path, origin: Provenance, cell: Cell) -> Faults:
        """The same for the calibration and the Gram matrices; broken ones are reported already."""
        if cell.model in self.calibrations:
            yield from equal(f"{where}: calibration", origin.get("calibration"), self.calibrations[cell.model])
        if cell.model in self.grams and (seal := origin.get(GRAMS_SEAL)) is not None:
            yield from equal(f"{where}: {GRAMS_SEAL}", seal, self.grams[cell.model])

    def _settings(self, where: Path, found: Any, step: str, cell: Cell) -> Faults:
        expected = json.loads(json.dumps(step_settings(self.experiment, step, cell)))
        yield from equal(f"{where}: settings", found, expected)

    def _cell(self, cell: Cell) -> Faults:
        files = self.layout.cell(cell)
        readers: Readers = {files.scores: ScoresFile.read}
        trained = self.experiment.recover(cell).wanted
        if trained:
            readers |= {files.recovered: schemas.UPDATES.read, files.curve: schemas.CURVE.read}
            readers |= {files.recover_cost: CostFile.read}
        if not cell.is_dense:
            readers |= {
                files.allocation: AllocationFile.read,
                files.trace: schemas.TRACE.read,
                files.answers: AnswersFile.read,
                files.search_cost: CostFile.read,
                files.masks: schemas.MASKS.read,
                files.updates: schemas.UPDATES.read,
            }
            optional = {files.policy: schemas.POLICY.read, files.units: schemas.UNITS.read}
            readers |= {path: read for path, read in optional.items() if path.exists()}
        found = self._read(readers)
        scores, allocation = found[files.scores], found.get(files.allocation)
        yield from self._scores(cell, files, scores)
        for name, (kind, path) in cut_files(self.experiment, cell, files).items():
            if (seal := scores.provenance.get(f"{name} seal")) is not None:
                yield from equal(f"{files.scores}: {name} seal", seal, kind.read_seal(path))
        if trained:
            yield from self._recovery(cell, files, found)
        if allocation is not None:
            yield from self._allocation(cell, files, allocation)
            yield from self._search(cell, files, found)
            yield from self._cut(cell, files, found)
            yield from self._removed(cell, files, found)

    def _allocation(self, cell: Cell, files: CellFiles, body: AllocationFile) -> Faults:
        """The budget, the settings and the files of a cell's allocation."""
        where, problem, keep, origin = files.allocation, body.pruning_problem, body.keep, body.provenance
        body.allocation.check(problem)
        slack = kept_budget(problem) - int(np.dot(keep, problem.params_per_unit))
        addable = [d.params_per_unit for d, k in zip(problem.decisions, keep, strict=True) if k < d.n_units]
        if not 0 <= slack < min(addable, default=math.inf):
            yield f"{where}: {slack} parameters of the budget are unused, enough for another unit. Allocate again."
        yield from equal(f"{where}: cell", body.cell.model_dump(), cell.as_dict())
        yield from equal(f"{where}: target", problem.target, float(cell.sparsity))
        yield from equal(f"{where}: granularity", problem.granularity, cell.granularity)
        yield from equal(f"{where}: block_sparsity", body.block_sparsity, problem.sparsity_of(keep))
        yield from self._settings(where, body.settings, "allocate", cell)
        yield from self._calibrated(where, origin, cell)
        yield from self._inputs(where, origin, model=f"models/{cell.model}")
        for name, expected in body.files.items():
            yield from self._sha256(files.folder / name, expected)

    def _search(self, cell: Cell, files: CellFiles, found: dict[Path, Any]) -> Faults:
        """Every evaluation that was paid for is in the trace, within the budget; the last answer is the allocation."""
        trace, cost, allocation = found[files.trace], found[files.search_cost], found[files.allocation]
        search, where = self.experiment.grid.search, files.search_cost
        yield from equal(f"{where}: provenance", cost.provenance, allocation.provenance)
        yield from equal(f"{where}: evaluations", cost.evaluations, len(trace))
        spent = int(trace["tokens"].max()) if len(trace) else 0
        yield from equal(f"{where}: n_tokens", cost.n_tokens, spent + cost.selection_tokens)
        if spent > (limit := search.budget().tokens(search.context)):
            yield f"{where}: {spent} tokens exceed the budget of {limit}. Search again."
        if not trace["tokens"].is_monotonic_increasing:
            yield f"{files.trace}: tokens fall from one evaluation to the next. Search again."
        points = found[files.answers].points
        if points and points[-1].share == 1:
            yield from equal(f"{files.answers}: last answer", list(points[-1].keep), list(allocation.keep))

    def _cut(self, cell: Cell, files: CellFiles, found: dict[Path, Any]) -> Faults:
        """Masks and updates: of this allocation, and with exactly its number of units."""
        (kept, masks), (updates, other) = found[files.masks], found[files.updates]
        body, problem = found[files.allocation], found[files.allocation].pruning_problem
        yield from equal(f"{files.masks}: units kept", count_kept(problem, kept, files.masks), list(body.keep))
        yield from equal(f"{files.masks}: problem_id", masks.problem_id, problem.problem_id)
        allocation = sha256(files.allocation)
        for where, origin in ((files.masks, masks.provenance), (files.updates, other.provenance)):
            yield from equal(f"{where}: allocation", origin.get("allocation"), allocation)
            yield from self._settings(where, origin.get("settings"), "apply", cell)
            yield from self._calibrated(where, origin, cell)
        compensated = self.experiment.compensation(cell.method) != "none"
        if files.units.name in body.files and files.units in found:
            chosen = replace(body.allocation, units=found[files.units][0])
            by_decision = kept_units(problem, chosen, {})
            wrong = [name for name, units in by_decision.items() if not np.array_equal(units, kept[name])]
            yield from equal(f"{files.masks}: decisions without the units of {files.units.name}", wrong, [])
            compensated = compensated or bool(learned_scales(chosen))
        changed = find_pruner(self.experiment.pruner(cell.method)).changes_kept
        expected = compensated if cell.granularity == "structured" else changed
        yield from equal(f"{files.updates}: holds updates", bool(updates), expected)

    def _recovery(self, cell: Cell, files: CellFiles, found: dict[Path, Any]) -> Faults:
        """New weights of every linear of the blocks, trained from these masks and updates on the tokens asked for."""
        (weights, meta), curve, cost = found[files.recovered], found[files.curve], found[files.recover_cost]
        asked, scores, origin = self.experiment.recover(cell), found[files.scores], meta.provenance
        yield from equal(f"{files.recover_cost}: provenance", cost.provenance, origin)
        yield from self._settings(files.recovered, origin.get("settings"), "recover", cell)
        yield from self._inputs(files.recovered, origin, model=f"models/{cell.model}", text=self.text)
        for name, path in () if cell.is_dense else (("masks", files.masks), ("updates", files.updates)):
            yield from equal(f"{files.recovered}: {name}", origin.get(name), sha256(path))
        yield from equal(f"{files.scores}: recovered", scores.provenance.get("recovered"), sha256(files.recovered))
        broken = [name for name, array in weights.items() if not (array.ndim == 2 and np.isfinite(array).all())]
        yield from equal(f"{files.recovered}: weights that are no finite matrix", broken, [])
        context = self.experiment.grid.calibration.context
        yield from equal(
            f"{files.curve}: tokens", int(curve["tokens"].max()), max(1, asked.tokens // context) * context
        )
        passes = 4 if asked.loss == "kl" else 3
        yield from equal(f"{files.recover_cost}: n_tokens", cost.n_tokens, passes * int(curve["tokens"].max()))

    def _removed(self, cell: Cell, files: CellFiles, found: dict[Path, Any]) -> Faults:
        """What scores.json says was removed, against masks and updates."""
        scores, allocation = found[files.scores], found[files.allocation]
        problem, keep = allocation.pruning_problem, allocation.keep
        removed = int(np.dot(problem.n_units - np.asarray(keep), problem.params_per_unit))
        biases = sum(array.size for name, array in found[files.updates][0].items() if name.endswith(".bias"))
        for name, path in (("masks", files.masks), ("updates", files.updates)):
            yield from equal(f"{files.scores}: {name}", scores.provenance.get(name), sha256(path))
        yield from equal(f"{files.scores}: block_sparsity", scores.block_sparsity, problem.sparsity_of(keep))
        gone = scores.params.dense - scores.params.kept
        # With the last query head of a block go its KV heads, which no unit counts.
        shared = sum(d.fixed_params for d, k in zip(problem.decisions, keep, strict=True) if k == 0)
        if not 0 <= gone - (removed - biases) <= shared:  # biases that a compensation adds where the parent has none
            yield from equal(f"{files.scores}: parameters removed", gone, removed)

    def _scores(self, cell: Cell, files: CellFiles, body: ScoresFile) -> Faults:
        where, params = files.scores, body.params
        yield from equal(f"{where}: cell", body.cell.model_dump(), cell.as_dict())
        yield from self._settings(where, body.settings, "evaluate", cell)
        yield from self._inputs(where, body.provenance, model=f"models/{cell.model}")
        yield from self._tested(cell, where, body)
        if cell.is_dense:
            yield from equal(f"{where}: parameters removed", params.dense - params.kept, 0)
        yield from equal(f"{where}: model_sparsity", body.model_sparsity, 1 - params.kept / params.dense)
        trained = self.experiment.recover(cell).wanted
        yield from equal(f"{where}: has a perplexity before recovery", body.ppl_before is not None, trained)
        wanted = self.experiment.tasks.tasks if self.experiment.tasks else {}
        yield from equal(f"{where}: tasks", sorted(body.tasks), sorted(wanted))
        if wanted:
            yield from self._inputs(where, body.provenance, tasks="tasks")
        for name, result in body.tasks.items():
            yield from task_faults(f"{where}: {name}", result)

    def _tested(self, cell: Cell, where: Path, body: ScoresFile) -> Faults:
        """A perplexity for each test text, from the losses of its windows; and the texts that were read."""
        names = self.experiment.grid.test_texts
        texts = {key: f"texts/{name}" for key, name in zip(test_keys(names), names, strict=True)}
        yield from self._inputs(where, body.provenance, **texts)
        yield from equal(f"{where}: ppl_further", list(body.ppl_further), list(names[1:]))
        asked = self.experiment.models[cell.model].bos
        named = {"ppl": names[0], "ppl_before": names[0], **{f"ppl_on_{name}": name for name in names[1:]}}
        for key, ppl in body.perplexities.items():
            yield from _perplexity(f"{where}: {key}", ppl)
            expected = body.ppl.bos if asked == "auto" and body.ppl.bos != "once" else asked
            yield from equal(f"{where}: {key}.bos", ppl.bos, expected)
            if ppl.text is not None:
                yield from equal(f"{where}: {key}.text", ppl.text, named.get(key))

    def _report(self) -> Faults:
        """Every file of the report against one that is made anew from the artifacts."""
        there = self.layout.report.folder
        with tempfile.TemporaryDirectory(prefix="ffp-verify-") as scratch:
            report.build(self.experiment, Path(scratch))
            for fresh in sorted(Path(scratch).iterdir()):
                self.checked["file"] += 1
                if not (there / fresh.name).is_file():
                    yield f"{there / fresh.name} is missing. Run the rule that makes it again."
                elif (old := (there / fresh.name).read_bytes()) != (new := fresh.read_bytes()):
                    yield f"{there / fresh.name} is not what its artifacts give{_difference(old, new)}. Report again."
        self.checked["row"] += len(list(self.experiment.cells()))


def verify(experiment: Experiment) -> str:
    """Checks a grid's artifacts and report, and returns a line that says how much was looked at.

    Raises:
        ArtifactError: Something does not agree; all faults, one a line.
    """
    results = Layout.from_grid(experiment.grid).results
    if not results.is_dir():
        raise ArtifactError(f"there is no folder {results} to verify. Name one, or run the grid first.")
    if not any(Layout.from_grid(experiment.grid).cell(cell).folder.exists() for cell in experiment.cells()):
        command = shell_line(["snakemake", "--cores", "all", "--config", f"grid={experiment.file}"])
        raise ArtifactError(
            f"no cell of {experiment.file} was run in {results}. Run `{command}` first, or name the grid of these "
            "results by --config."
        )
    verifier = Verifier(experiment)
    faults = verifier.run()
    counts = ", ".join(f"{count} {name}s" for name, count in sorted(verifier.checked.items()) if name != "leak")
    if faults:
        raise ArtifactError("\n".join([*faults, f"{len(faults)} faults in {results} ({counts} checked)."]))
    return f"{results}: everything agrees ({counts} checked)."


def _perplexity(where: str, ppl: schemas.Perplexity) -> Faults:
    """The perplexity and its error from the losses of the windows; see measure/perplexity.py."""
    losses = np.array(ppl.loss_by_window)
    value, count = math.exp(losses.mean()), len(losses)
    yield from equal(f"{where}.n_windows", ppl.n_windows, count)
    yield from equal(f"{where}.n_tokens", ppl.n_tokens, count * (ppl.context - 1))
    yield from equal(f"{where}.value", ppl.value, value)
    stderr = value * float(losses.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    yield from equal(f"{where}.stderr", ppl.stderr, stderr)
    bits = None if ppl.n_bytes is None else float(losses.mean()) * ppl.n_tokens / math.log(2) / ppl.n_bytes
    yield from equal(f"{where}.bits_per_byte", ppl.bits_per_byte, bits)


def _difference(old: bytes, new: bytes) -> str:
    """Returns where two files of text differ first, in a few words; empty for other files."""
    try:
        pairs = itertools.zip_longest(old.decode().splitlines(), new.decode().splitlines(), fillvalue="")
        number, (one, other) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    except (UnicodeDecodeError, StopIteration):
        return ""
    start = max(0, next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0) - 20)
    return f": line {number} has {one[start : start + 60]!r}, expected {other[start : start + 60]!r}"
