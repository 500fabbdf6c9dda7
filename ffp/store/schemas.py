"""What is in every file that ffp writes: the one description of the contract on disk.

JSON files are the pydantic models below, safetensors files hold arrays and a model as metadata. Each has its schema's
tag and a checksum. Other tags are refused; `ffp/allocation/1` is still read, for `ffp compare` with older results.
"""

from __future__ import annotations

import operator
from typing import Any

from pydantic import ConfigDict, Field

from ffp.allocators.tracker import TRACE_COLUMNS
from ffp.config.bos import PlacedBos
from ffp.config.reading import is_none
from ffp.core.problem import Allocation, Decision, PruningProblem
from ffp.store.kinds import JsonFile, Part, TableFile, TensorFile
from ffp.store.task_scores import TaskScores

CHECKPOINT = "ffp/checkpoint/2"  # config.json of a checkpoint whose blocks have sizes of their own: pruned.schema
PRUNED_NAME = "pruned by ffp"  # how general.name of a GGUF file ends whose model ffp pruned
DENSE_LOSS = ".dense_loss"  # tokens.safetensors: "search.dense_loss" beside "search"
CURVE_COLUMNS = ("step", "tokens", "learning_rate", "loss")  # of recover.parquet


class Provenance(Part):
    """What stood behind a file; digests of its inputs and its settings are further keys. See store/provenance.py."""

    model_config = ConfigDict(extra="allow", frozen=True)

    ffp: str
    commit: str
    dirty: bool
    python: str
    packages: dict[str, str]
    machine: str
    device: str
    seed: int | None = None

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a further key, such as the digest of an input."""
        return getattr(self, key, default)


class CellIdentity(Part):
    """The cell that a file belongs to."""

    model: str
    granularity: str
    sparsity: float
    method: str
    seed: int


class AssetFile(JsonFile):
    """asset.json: what a fetched folder was made from, and the digests of its files."""

    tag = "ffp/asset/1"

    kind: str
    source: dict[str, Any]
    files: dict[str, str] = Field(description="sha256 by file name")
    crc32: dict[str, int] = Field(description="checksums that every job compares, ten times as fast as sha256")
    digest: str = Field(description="of `files`; results name their inputs by it")


class StoredDataset(Part):
    """A data set as a task of lm-eval asks for it, and the files that answer."""

    path: str
    name: str | None
    arguments: dict[str, Any] = Field(description="further arguments of datasets.load_dataset")
    commit: str | None = Field(description="of the hub's repository; null for files")
    splits: dict[str, str] = Field(description="Arrow file by split: those that the task looks at")
    scored: list[str] = Field(description="the splits whose documents are scored")


class DatasetsFile(JsonFile):
    """datasets.json: the data sets behind the tasks that are not read from a user's files."""

    tag = "ffp/datasets/1"

    tasks: dict[str, list[StoredDataset]]


class Cost(Part):
    """What a step cost; see measure/cost.py for what is included."""

    evaluations: int = 0
    n_tokens: int = Field(0, description="tokens forwarded, those of the selection text included")
    selection_tokens: int = 0
    earlier_s: float = Field(0.0, description="seconds of earlier attempts that a resumed search did not repeat")
    wall_s: float = 0.0
    peak_mem_bytes: int = 0


class CostFile(JsonFile, Cost):
    """calibrate.cost.json, grams.cost.json, search.cost.json and recover.cost.json."""

    tag = "ffp/cost/1"

    provenance: Provenance


class PreflightFile(JsonFile):
    """preflight.json: what was checked before the model's first job, and on which inputs."""

    tag = "ffp/preflight/1"

    checks: tuple[str, ...]
    provenance: Provenance


class Problem(Part):
    """The allocation problem that a cell's method was asked."""

    granularity: str
    target: float
    decisions: tuple[Decision, ...]


class AllocationFile(JsonFile):
    """allocation.json: the units that a method keeps of each decision."""

    tag = "ffp/allocation/2"
    older_tags = ("ffp/allocation/1",)

    status: str = "done"
    reason: str | None = None
    cell: CellIdentity
    problem: Problem
    problem_id: str
    keep: tuple[int, ...] = Field(description="kept units, in the order of problem.decisions")
    block_sparsity: float = Field(description="removed share of the decisions' parameters")
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of the search's other files, by name")
    settings: dict[str, Any]
    provenance: Provenance

    @classmethod
    def upgrade(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Names the fields of /1, whose decisions were lists."""
        names = ("name", "n_units", "params_per_unit", "fixed_params", "min_keep", "bundle")
        problem = dict(body["problem"])
        problem["decisions"] = [dict(zip(names, unit, strict=False)) for unit in problem.pop("units")]
        return {**body, "problem": problem}

    @property
    def pruning_problem(self) -> PruningProblem:
        """The problem as methods see it."""
        return PruningProblem(self.problem.decisions, self.problem.target, self.problem.granularity)

    @property
    def allocation(self) -> Allocation:
        """The answer as methods give it, unchecked."""
        return Allocation(self.problem_id, self.keep)


class Answer(Part):
    """The search's answer if it had stopped after `tokens` tokens."""

    tokens: int = Field(description="tokens of the search text forwarded by then")
    share: float = Field(description="the same as a share of the budget")
    keep: tuple[int, ...]
    loss: float = Field(description="excess loss over the dense model on the selection text, nats per token")


class AnswersFile(JsonFile):
    """answers.json: the search's answers at the grid's `search.checkpoints`; empty without a search.

    All are scored on the selection text.
    """

    tag = "ffp/answers/1"

    points: tuple[Answer, ...]
    provenance: Provenance


class Parameters(Part):
    """Parameters of the whole model, before and after pruning."""

    dense: int
    kept: int


class Perplexity(Part):
    """Perplexity on a test text; see measure/perplexity.py."""

    value: float
    stderr: float | None
    n_windows: int
    context: int
    n_tokens: int = Field(description="tokens of the text that were predicted; a BOS is none of them")
    bos: PlacedBos = Field("never", description="where a BOS stood in the windows; older files, without it, had none")
    loss_by_window: tuple[float, ...] = Field((), description="mean nats per token of each window")
    text: str | None = Field(None, exclude_if=is_none, description="name of the test text; older files do not say it")
    n_bytes: int | None = Field(
        None, exclude_if=is_none, description="UTF-8 bytes of the text that the predicted tokens spell"
    )
    bits_per_byte: float | None = Field(
        None, exclude_if=is_none, description="loss of all predicted tokens in bits / n_bytes"
    )


class PerplexityFile(JsonFile, Perplexity):
    """A perplexity that a pruning under way keeps."""

    tag = "ffp/perplexity/1"


class ScoresFile(JsonFile):
    """scores.json: what a cell's model is worth on texts and tasks that no earlier step has seen."""

    tag = "ffp/scores/1"

    status: str = "done"
    reason: str | None = None
    cell: CellIdentity
    block_sparsity: float
    model_sparsity: float
    params: Parameters
    ppl: Perplexity = Field(description="on the first test text")
    ppl_further: dict[str, Perplexity] = Field(
        default_factory=dict, exclude_if=operator.not_, description="on further test texts, by name"
    )
    ppl_before: Perplexity | None = Field(
        None, exclude_if=is_none, description="before recovery; absent where nothing was trained"
    )
    tasks: dict[str, TaskScores]
    cost: Cost
    settings: dict[str, Any]
    provenance: Provenance

    @property
    def perplexities(self) -> dict[str, Perplexity]:
        """Every perplexity by its column, with that of the file's own first text as "ppl"; see by_column."""
        return self.by_column(None)

    def by_column(self, first: str | None) -> dict[str, Perplexity]:
        """Returns every perplexity by its column in tables: "ppl", "ppl_before", and "ppl_on_NAME" of further texts.

        Args:
            first: Name of the text whose perplexity is "ppl", as the grid has it now. If the file has none on it, "ppl"
                is absent, and so is "ppl_before" unless it is of this text. None, or an older file that does not name
                its text: `ppl` is "ppl".
        """
        own = self.ppl.text or first
        texts = sorted([(own, self.ppl), *self.ppl_further.items()], key=lambda pair: pair[0] != (first or own))
        found = {"ppl" if name == (first or own) else f"ppl_on_{name}": ppl for name, ppl in texts}
        return {**found, **({"ppl_before": self.ppl_before} if self.ppl_before and own == (first or own) else {})}

    def windows_of(self, column: str, first: str | None = None) -> tuple[Any, ...] | None:
        """Returns what perplexities of the same windows share, to be compared: digests of text and model, sizes, BOS.

        Args:
            column: As by_column has it; None is returned for another one.
            first: As by_column takes it.
        """
        if (ppl := self.by_column(first).get(column)) is None:
            return None
        further = next((f"text {name}" for name, each in self.ppl_further.items() if each is ppl), "text")
        digests = tuple(self.provenance.get(name) for name in (further, "model"))
        return (*digests, ppl.n_windows, ppl.context, ppl.bos)


class ExportFile(JsonFile):
    """ffp.json of an exported checkpoint."""

    tag = "ffp/export/1"

    cell: CellIdentity
    block_sparsity: float
    model_sparsity: float
    params: Parameters
    provenance: Provenance


class ProbeFile(JsonFile):
    """What a tiny job of `ffp site` finds where it runs."""

    tag = "ffp/probe/1"

    node: str
    cpus: int
    gpus: list[str]
    cuda: bool = Field(description="whether torch can use a GPU there")


class CompareFile(JsonFile):
    """What `ffp compare --json` writes."""

    tag = "ffp/compare/1"

    changed: bool
    cells: list[dict[str, Any]]
    provenance: dict[str, dict[str, int]]
    winners: tuple[dict[str, Any], ...] = ()


class Origin(Part):
    """Metadata of a safetensors file."""

    provenance: Provenance


class StatsOrigin(Origin):
    """Metadata of stats.safetensors."""

    n_tokens: int


class MasksOrigin(Origin):
    """Metadata of masks.safetensors."""

    problem_id: str


class TrainingOrigin(Part):
    """Metadata of recover.state.safetensors: a digest of what the training belongs to."""

    identity: str


TOKENS = TensorFile("ffp/tokens/2", Origin)  # windows by text name, int32; dense losses of search and selection
STATS = TensorFile("ffp/stats/2", StatsOrigin)  # "<linear>.mean", "<linear>.sq_mean", "block_influence"
GRAMS = TensorFile("ffp/grams/1", Origin)  # E[x x^T] of an output projection's inputs by its path, float32
POLICY = TensorFile("ffp/policy/2", Origin)
UNITS = TensorFile("ffp/units/1", Origin)  # factors on KV groups, heads or channels by decision, 0 for those that go
MASKS = TensorFile("ffp/masks/1", MasksOrigin)  # kept indices by decision, or packed keep bits by parameter name
UPDATES = TensorFile("ffp/updates/1", Origin)  # new values by parameter name
TRAINING = TensorFile("ffp/training/1", TrainingOrigin)  # adapters, their moments in AdamW, and the curve so far
TRACE = TableFile(TRACE_COLUMNS)  # trace.parquet: a row for each evaluation of a search
CURVE = TableFile(CURVE_COLUMNS)  # recover.parquet: a row for each step of a training
