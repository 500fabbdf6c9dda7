"""What `ffp prune` and `ffp.prune` give: the pruned model with its figures, as a checkpoint, a table and JSON."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ffp
from ffp import api
from ffp.allocators import Search
from ffp.config import Cell, LocalSource, ModelConfig
from ffp.config.bos import IN_WORDS, PlacedBos
from ffp.config.pruning import PruneSettings
from ffp.core.errors import ConfigError, is_out_of_memory
from ffp.measure.bos import place_bos
from ffp.measure.recovery import Recovery
from ffp.measure.speed import Speed, measure_speed
from ffp.models import formats
from ffp.models.card import model_card
from ffp.models.formats import Format, Saved
from ffp.models.prunable import PrunableModel
from ffp.pipeline.export import fitting, write_export
from ffp.store import schemas
from ffp.store.layout import expanded
from ffp.store.provenance import provenance
from ffp.store.task_scores import Metric, scored_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("ffp")
PPL_KEYS = ("value", "stderr", "n_tokens", "context", "bos")
SPEED_PROMPT = 512  # tokens of the prompt that is timed, at most
Row = tuple[str, str, str, str]


@dataclass
class Measures:
    """What was measured of a model.

    Attributes:
        bytes: Bytes of its weights.
        ppl: Perplexity on the test text, see ffp.measure.perplexity; None where it was not asked for.
        speed: How fast it is; None where it was not asked for.
        tasks: Scores of lm-eval tasks by name.
    """

    bytes: int
    ppl: Mapping[str, Any] | None = None
    speed: Speed | None = None
    tasks: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as plain data."""
        ppl = self.ppl and {key: self.ppl[key] for key in PPL_KEYS}
        speed = self.speed and asdict(self.speed)
        return {"bytes": self.bytes, "perplexity": ppl, "speed": speed, "tasks": dict(self.tasks)}


@dataclass
class Pruned:
    """A pruned model and what is known of it.

    Attributes:
        prunable: The model's modules as they are now.
        tokenizer: The model's tokenizer.
        settings: What was asked.
        allocation: The method's answer; `.keep` has the kept units by decision.
        removed: How many parameters left.
        text: Title of the text.
        calibration_windows: Windows that calibration had; fewer than asked where the text is short.
        dense: What was measured before.
        pruned: What was measured afterwards, and after recovery where there was any.
        seconds: What each part of the work took.
        recovery: What training the pruned model gave; None where it was not asked for.
        before: Perplexity of the pruned model before recovery.
        dense_shape: Whether removed weights are zeros in tensors of the dense shapes.
        source: Where the model came from; None for a model in memory.
        folder: Folder of the dense model, whose tokenizer files are kept; None for a model in memory.
        commands: Lines of shell that make the checkpoint again; empty where Python made it.
        inputs: Digests of what was read.
        saved: What `save` wrote last.
    """

    prunable: PrunableModel
    tokenizer: Any
    settings: PruneSettings
    allocation: api.AllocationResult
    removed: api.PruningSummary
    text: str
    calibration_windows: int
    dense: Measures
    pruned: Measures
    seconds: dict[str, float]
    recovery: Recovery | None = None
    before: Mapping[str, Any] | None = None
    dense_shape: bool = False
    source: ModelConfig | None = None
    folder: Path | None = None
    commands: Sequence[str] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    saved: Saved | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The pruned model, an ordinary model of transformers."""
        return self.prunable.model

    @property
    def bos(self) -> PlacedBos:
        """Where the windows of all texts had a BOS."""
        return place_bos(self.tokenizer, self.settings.bos)

    @property
    def name(self) -> str:
        """Name of the dense model."""
        return self.origin.title

    @property
    def origin(self) -> ModelConfig:
        """Where the model came from; of one that was given in memory, what its configuration and the call say."""
        if self.source is not None:
            return self.source
        path = str(getattr(self.model.config, "_name_or_path", "")) or str(self.model.config.model_type)
        source, kept = LocalSource(kind="local", path=path), self.prunable.keep_blocks
        return ModelConfig(source=source, title=Path(path).name, keep_blocks=kept)

    def save(
        self, folder: str | Path, *, format: str | Format = "transformers", overwrite: bool = False, **options: Any
    ) -> Path:
        """Writes the model with its tokenizer, a model card and ffp.json, whole or not at all.

        Args:
            folder: Folder to make.
            format: A name of ffp.models.formats.FORMATS, or a format with its options.
            overwrite: Replace a folder that this method, `ffp prune` or `ffp export` wrote.
            options: Of a format that is given by name: `quantize=["Q8_0"]` and `pad` of "gguf".

        Returns:
            The folder, with ~ replaced; `saved` then says how to run what is in it.

        Raises:
            FfpError: The folder exists or cannot be written, or the format cannot hold the model.
        """
        folder = expanded(folder)
        if isinstance(format, str):
            format = formats.create(format, **options)
        elif options:
            raise ConfigError(f"{min(options)} goes with the name of a format. Give it to {format.name} itself.")
        format = fitting(format, zeros=self.dense_shape)
        if format.zeros and not self.dense_shape:
            raise ConfigError(f"units were cut out, which {format.name} needs as zeros. Prune with dense_shape=True.")
        format.check(self.prunable, self.tokenizer)
        seed, asked = self.settings.seed, self.settings.model_dump(mode="json") | {"bos": self.bos}
        origin = provenance(self.inputs, seed=seed, device=str(self.model.device), settings=asked)
        manifest = schemas.ExportFile(cell=self._cell().as_dict(), **self.removed.as_dict(), provenance=origin)
        self.saved = write_export(
            self.prunable, self.tokenizer, format, folder, card=self._card, manifest=manifest,
            parent=self.folder, overwrite=overwrite,
        )  # fmt: skip
        return folder

    def time_against(self, load: Callable[[], Any]) -> None:
        """Times a prompt and generation beside the dense model; logs a warning where there is no memory for both.

        Args:
            load: Returns the dense model, on the same device.
        """
        started = time.perf_counter()
        try:
            dense = load()
            length = min(SPEED_PROMPT, int(dense.config.max_position_embeddings) // 2)
            prompt = torch.arange(length)[None] % int(dense.config.vocab_size)
            speeds = measure_speed({"dense": dense, "pruned": self.model}, prompt)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("the models were not timed: there is no memory for both")
            return
        self.dense.speed, self.pruned.speed = speeds["dense"], speeds["pruned"]
        self.seconds["time both models"] = time.perf_counter() - started

    def as_dict(self) -> dict[str, Any]:
        """Returns all figures as plain data."""
        settings, cost = self.settings, self.allocation.cost
        return {
            "model": self.name,
            "settings": settings.model_dump(mode="json"),
            "text": self.text,
            "bos": self.bos,
            **self.removed.as_dict(),
            "dense": self.dense.as_dict(),
            "pruned": self.pruned.as_dict(),
            "search": {"tokens": cost.n_tokens, "evaluations": cost.evaluations},
            "recovery": self._recovered(),
            "seconds": dict(self.seconds),
            "keep": self.allocation.keep,
            "commands": list(self.commands),
        }

    def summary(self) -> str:
        """Returns a table of the model before and after, and what the pruning cost."""
        rows: list[Row] = [("", "dense", "pruned", "")]
        dense, pruned = self.dense, self.pruned
        if dense.ppl and pruned.ppl:
            note = f"{dense.ppl['n_tokens']:,} test tokens, {IN_WORDS[self.bos]}"
            rows.append(("perplexity", _plus_minus(dense.ppl), _plus_minus(pruned.ppl), note))
            if self.before:
                rows.append(("before recovery", "", _plus_minus(self.before), self.settings.recover.describe()))
        rows += _task_rows(dense.tasks, pruned.tasks)
        before, after = self.removed.dense_params, self.removed.kept_params
        rows.append(("parameters", _millions(before), _millions(after), f"{after / before - 1:+.1%}"))
        rows.append(("weights", _megabytes(dense), _megabytes(pruned), f"{pruned.bytes / dense.bytes - 1:+.1%}"))
        if dense.speed and pruned.speed:
            rows += _speed_rows(dense.speed, pruned.speed)
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
        return "\n".join([*lines, "", self._story()])

    def _story(self) -> str:
        """One paragraph: what was removed, by which method, at what cost."""
        settings, cost = self.settings, self.allocation.cost
        made_up = "" if settings.compensate == "none" else f" and {settings.compensate} compensation"
        made_up += "" if self.recovery is None else f", then {settings.recover.describe()}"
        searched = f"{cost.n_tokens:,} search tokens, " if cost.n_tokens else ""
        minutes, seconds = divmod(round(sum(self.seconds.values())), 60)
        return (
            f"{self.removed.block_sparsity:.1%} of the attention and FFN parameters removed by {settings.method.name}"
            f"{made_up}; {searched}{minutes} min {seconds} s. Text: {self.text}."
        )

    def _recovered(self) -> dict[str, Any] | None:
        """What recovery did, as plain data; the perplexity after it is that of the pruned model."""
        if self.recovery is None:
            return None
        before, cost = self.before, self.recovery.cost
        ppl = before and {key: before[key] for key in PPL_KEYS}
        return {
            "perplexity_before": ppl,
            "tokens": cost.n_tokens,
            "seconds": cost.wall_s,
            "curve": list(self.recovery.curve),
        }

    def _cell(self) -> Cell:
        """The cell of a grid that this would be; more than two decimals of a sparsity, which no grid has, stay."""
        settings, sparsity = self.settings, f"{self.settings.sparsity:.2f}"
        if float(sparsity) != settings.sparsity:
            sparsity = repr(settings.sparsity)
        return Cell(self.name, settings.granularity, sparsity, settings.method.name, settings.seed)

    def _card(self, saved: Saved) -> str:
        settings = self.settings
        structured, calibration = settings.granularity == "structured", settings.calibration
        measures = {"dense": self.dense, "pruned": self.pruned}
        scores = {name: each.ppl and {"ppl": each.ppl, "tasks": each.tasks} for name, each in measures.items()}
        return model_card(
            self.origin, self._cell(), method=type(settings.method), units=self.prunable.describe_units(),
            ranking=calibration.score if structured else settings.pruner, compensation=settings.compensate,
            calibration=f"{self.calibration_windows} windows of {calibration.context} tokens of {self.text}, "
            f"{IN_WORDS[self.bos]}",
            removed=self.removed.as_dict(), scores=scores,
            recovery=settings.recover.describe() if self.recovery else "none", before=self.before,
            commands=self.commands or [self._call()], version=ffp.__version__, saved=saved,
        )  # fmt: skip

    def _call(self) -> str:
        """The call of ffp.prune, for a model that was given in memory."""
        asked, units = self.settings, self.prunable
        structured = asked.granularity == "structured"
        method = asked.method.model_dump(mode="json", exclude_defaults=True)
        given: dict[str, Any] = {
            "sparsity": asked.sparsity,
            "method": asked.method.name,
            **({"params": method} if method else {}),
            "granularity": asked.granularity,
            "compensate": asked.compensate,
            **({} if structured else {"pruner": asked.pruner}),
            "seed": asked.seed,
            "bos": self.bos,
            **({"align": units.align, "attention_units": units.attention_units} if structured else {}),
            "min_keep": units.min_keep,
            "keep_blocks": units.keep_blocks,
            "dense_shape": self.dense_shape and structured,
            "calibration": asked.calibration.model_dump(mode="json"),
            **({"search": asked.search.model_dump(mode="json")} if isinstance(asked.method, Search) else {}),
            **({"recover": asked.recover.model_dump(mode="json")} if asked.recover.wanted else {}),
        }
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"ffp.prune(model, tokenizer, {options}, text=...)"


def _plus_minus(ppl: Mapping[str, Any]) -> str:
    stderr = "" if ppl["stderr"] is None else f" ± {ppl['stderr']:.2f}"
    return f"{ppl['value']:,.2f}{stderr}"


def _millions(params: int) -> str:
    return f"{params / 1e6:,.1f} M"


def _megabytes(measures: Measures) -> str:
    return f"{measures.bytes / 1e6:,.0f} MB"


def _speed_rows(dense: Speed, pruned: Speed) -> Iterator[Row]:
    """Yields the times of a prompt and of a token, how many times as fast the medians are, and each round's range."""
    names = (f"prompt of {dense.prompt} tokens", "one token more")
    medians = ((dense.prefill_s, pruned.prefill_s), (dense.decode_s, pruned.decode_s))
    for place, (name, (before, after)) in enumerate(zip(names, medians, strict=True)):
        ratios = [first[place] / second[place] for first, second in zip(dense.rounds, pruned.rounds, strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
        yield name, f"{before * 1e3:,.1f} ms", f"{after * 1e3:,.1f} ms", f"{before / after:.2f} x as fast {spread}"


def _task_rows(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Iterator[Row]:
    """Yields a row for the main metric of each task, by each of its filters."""
    before = scored_tasks(dense)
    for task, scores in scored_tasks(pruned).items():
        shots = f"{scores.num_fewshot}-shot, " if scores.num_fewshot else ""
        for metric in scores.shown_metrics:
            first, second = (_metric(found.metrics[metric]) for found in (before[task], scores))
            yield task, first, second, f"{metric}, {shots}{scores.n} documents"


def _metric(found: Metric) -> str:
    return f"{found.value:.3f}" + ("" if found.stderr is None else f" ± {found.stderr:.3f}")


def weight_bytes(model: Any) -> int:
    """Returns the bytes of all parameters, tied ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in set(model.parameters()))
