"""`ffp prune`: opens model and text, checks what can be checked, prunes, saves, and says what came out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ffp.allocators import Search
from ffp.allocators.shortage import shortage
from ffp.api import BATCH_TOKENS
from ffp.assets.stock import check_tasks, stock_index
from ffp.assets.tasks import fetch_tasks
from ffp.config import LocalSource, TasksConfig, read_part
from ffp.config.assets import StockTask
from ffp.config.bos import IN_WORDS
from ffp.config.catalog import entries, find_entry
from ffp.config.experiment import name_of_list
from ffp.config.faults import first_fault
from ffp.config.pruning import PruneSettings
from ffp.config.recover import RecoverSettings
from ffp.core.errors import ConfigError
from ffp.core.plain import shell_line
from ffp.core.suggest import did_you_mean
from ffp.measure.bos import place_bos
from ffp.measure.tasks import score_tasks
from ffp.models.checkpoint import load_model, load_tokenizer
from ffp.models.formats import Format
from ffp.models.placement import choose_device
from ffp.models.prunable import PrunableModel
from ffp.pipeline.estimate import Estimate, estimate
from ffp.pipeline.models import OpenedModel, open_model
from ffp.pipeline.phases import phase_tokens
from ffp.pipeline.preflight import Check, Planned, preflight
from ffp.pipeline.prune import CutText, cut_text, run
from ffp.pipeline.result import Pruned
from ffp.pipeline.texts import DEFAULT_TEXT, SplitText, open_text
from ffp.pipeline.work import Work
from ffp.store.files import check_new_folder, digest, folder_behind
from ffp.store.identity import code_of, named_files
from ffp.store.layout import Layout, expanded

log = logging.getLogger("ffp")


@dataclass(frozen=True)
class PruneRequest:
    """What the command line asks for.

    Attributes:
        model: See open_model.
        out: Folder to make.
        settings: What is pruned, and how.
        changes: Fields of ModelConfig that differ from the model's own.
        format: How the checkpoint is written.
        text: See open_text.
        column: Field of a row that holds the text.
        tasks: Name of a set of tasks, or tasks of lm-eval with commas between them; None for none.
        num_fewshot: Solved examples in the prompts of all tasks; None for each task's own.
        evaluate: Measure perplexity and speed before and after.
        overwrite: Replace a folder that ffp wrote.
        data: Folder for what is fetched.
    """

    model: str
    out: Path
    settings: PruneSettings
    changes: Mapping[str, Any]
    format: Format
    text: str | Sequence[Path] | None = None
    column: str = "text"
    tasks: str | None = None
    num_fewshot: int | None = None
    evaluate: bool = True
    overwrite: bool = False
    data: Path = Path("data")


def prune(request: PruneRequest) -> Pruned:
    """Prunes a model and saves it; a killed run goes on where it was.

    Raises:
        FfpError: Something that was asked for cannot be done; what can be known is checked before the search.
    """
    ready = _make_ready(request)
    request, opened, text, config = ready.request, ready.opened, ready.text, ready.opened.config
    model = load_model(opened.folder, config)
    prunable = PrunableModel(model, **config.units)
    out = folder_behind(request.out)
    work = Work(out.with_name(f".{out.name}.work"), _identity(request, opened, text))
    work.name_others()
    pruned = run(
        prunable, ready.tokenizer, ready.cut(), request.settings, batch_tokens=config.batch_tokens,
        dense_shape=request.format.zeros, work=work,
        score=ready.tasks and _scorer(ready.tokenizer, *ready.tasks, request.settings, config.batch_tokens),
    )  # fmt: skip
    pruned.source, pruned.folder, pruned.commands = config, opened.folder, [command(request, opened, prunable)]
    pruned.inputs = {"model": opened.digest, "text": digest(dict(text.documents))}
    pruned.save(request.out, format=request.format, overwrite=request.overwrite)
    work.remove()
    work.name_others()
    if request.evaluate and not config.offload:
        log.info("timing both models")
        pruned.time_against(lambda: load_model(opened.folder, config))
    return pruned


def dry_run(request: PruneRequest) -> str:
    """Returns what `prune` would do and take, and makes nothing but the folder of what is fetched.

    Raises:
        FfpError: As `prune`, as far as it can be known before the model runs.
    """
    ready = _make_ready(request)
    request, settings, cut = ready.request, ready.request.settings, ready.cut()
    parts = phase_tokens(cut.fitted, cut.test, settings, tasks=request.tasks is not None)
    title = f"{cut.title}, {IN_WORDS[place_bos(ready.tokenizer, settings.bos)]}"
    plan = ready.found.describe(ready.opened.name, title, request.out, sum(parts.values()))
    return "\n".join([plan, *(f"warning: {sentence}" for sentence in _shortages(settings, ready.found.prunable))])


def _shortages(settings: PruneSettings, prunable: PrunableModel) -> list[str]:
    """A sentence, where the search has too few tokens to search."""
    if not isinstance(settings.method, Search):
        return []
    search, problem = settings.search, prunable.problem(settings.sparsity, settings.granularity)
    found = shortage(settings.method, problem, search.budget(), search.windows, search.context)
    return [found] if found else []


@dataclass(frozen=True)
class _Ready:
    """A request whose model, text and tasks are fetched and checked."""

    request: PruneRequest
    opened: OpenedModel
    text: SplitText
    tokenizer: Any
    tasks: tuple[TasksConfig, Path] | None
    found: Estimate
    cut: Callable[[], CutText]


def _make_ready(request: PruneRequest) -> _Ready:
    """Fetches what a request names, and checks all that can be known before the model runs."""
    check_new_folder(request.out, overwrite=request.overwrite)
    tasks = _open_tasks(request)
    opened = open_model(request.model, data=request.data, changes=request.changes)
    check_new_folder(request.out, overwrite=request.overwrite, inputs=_inputs(request, opened))
    text = open_text(request.text, data=request.data, column=request.column)
    request, tokenizer = _on(request, opened), load_tokenizer(opened.folder)
    settings, found = request.settings, estimate(opened.folder, opened.config, request.settings)

    @cache
    def cut() -> CutText:
        _check_context(request, found.prunable)
        return cut_text(found.prunable, tokenizer, text, settings, evaluate=request.evaluate)

    planned = Planned(
        name=opened.name, config=opened.config, settings=settings, prunables=[found.prunable],
        problems=[(settings.method, found.prunable.problem(settings.sparsity, settings.granularity))],
        searches=isinstance(settings.method, Search),
        trains=settings.recover.wanted, chats=settings.evaluation.chat_template,
        tokenizer=tokenizer, windows=lambda: cut().windows(),
        tasks=tasks and tasks[0], tasks_dir=tasks and tasks[1],
        memory=(found.memory, [choose_device(opened.config.device)]), disk=(request.out, found.disk),
    )  # fmt: skip
    preflight(planned, Check("the format can hold the model", (), "evaluate", partial(_check_format, request)))
    return _Ready(request, opened, text, tokenizer, tasks, found, cut)


def _check_context(request: PruneRequest, prunable: PrunableModel) -> None:
    """Raises ConfigError where the model lacks positions for --context, of which test windows have twice as many."""
    context, positions = request.settings.calibration.context, prunable.config.max_position_embeddings
    limit = f"the model knows {positions} positions (max_position_embeddings in its config.json)"
    if context > positions:
        most = positions // 2 if request.evaluate else positions
        raise ConfigError(f"--context {context} is too long: {limit}. Lower it to {most} or less.")
    if request.evaluate and (tested := request.settings.evaluation.context) > positions:
        raise ConfigError(
            f"--context {context} is too long, since test windows have {tested} tokens: {limit}. Lower it to "
            f"{positions // 2} or less, or add --no-evaluate."
        )


def _inputs(request: PruneRequest, opened: OpenedModel) -> list[Path]:
    """The files and folders that a run reads."""
    source, text = opened.config.source, request.text
    given = [expanded(source.path)] if isinstance(source, LocalSource) else []
    return [opened.folder, request.data, *given, *(() if text is None or isinstance(text, str) else text)]


def _on(request: PruneRequest, opened: OpenedModel) -> PruneRequest:
    """The request with what the model's configuration says of a BOS."""
    return replace(request, settings=request.settings.model_copy(update={"bos": opened.config.bos}))


def ending(pruned: Pruned, out: Path, *, as_json: bool) -> str:
    """Returns what the command prints at its end: the table, where the model lies, how to run it and make it again.

    Args:
        pruned: The saved model.
        out: Where it was saved.
        as_json: Return all figures as JSON instead.
    """
    if as_json:
        return json.dumps(pruned.as_dict(), indent=1)
    saved = pruned.saved
    assert saved is not None
    path = repr(str(out)) if saved.language == "python" else shell_line([out])
    run = "\n".join(f"  {line}".replace("PATH", path) for line in saved.run if line)
    notes = "".join(f"\n{note}" for note in saved.notes)
    return f"""
{pruned.summary()}

Saved in {shell_line([out])}.{notes} To run it:

{run}

To make it again:

  {pruned.commands[0]}"""


def command(request: PruneRequest, opened: OpenedModel, prunable: PrunableModel) -> str:
    """Returns the command that makes the checkpoint again with this version."""
    settings, model = request.settings, opened.config
    structured = settings.granularity == "structured"
    options: dict[str, Any] = {
        "sparsity": repr(settings.sparsity),
        "method": settings.method.name,
        "granularity": None if structured else settings.granularity,
        "pruner": None if structured else settings.pruner,
        "score": settings.calibration.score if structured and settings.calibration.score != "wanda" else None,
        "compensate": settings.compensate,
        "compensated-search": settings.search.compensated or None,
        "tokens": settings.search.budget().tokens(settings.search.context)
        if isinstance(settings.method, Search)
        else None,
        **_recover_options(settings.recover),
        "calibration-tokens": settings.calibration.windows * settings.calibration.context,
        "context": settings.calibration.context,
        "seed": settings.seed,
        "align": model.align if structured and model.align > 1 else None,
        "min-keep": model.min_keep if model.min_keep != 1 else None,
        "keep-blocks": model.keep_blocks or None,
        "attention-units": prunable.attention_units if structured and prunable.kv_heads < prunable.heads else None,
        "bos": model.bos,
        "dtype": model.dtype,
        "device": model.device,
        "threads": model.resources.threads,
        "batch-tokens": model.batch_tokens if model.batch_tokens != BATCH_TOKENS else None,
        "offload": model.offload or None,
        "tasks": request.tasks,
        "num-fewshot": request.num_fewshot,
        "documents": settings.evaluation.documents if request.tasks else None,
        "chat-template": settings.evaluation.chat_template or None,
        "system-prompt": settings.evaluation.system_prompt or None,
        "text-column": request.column if request.column != "text" else None,
    }
    texts: Sequence[str | Path] = [DEFAULT_TEXT]
    if request.text is not None:
        texts = [request.text] if isinstance(request.text, str) else request.text
    given = settings.method.model_dump(mode="json", exclude_defaults=True)
    words = ["ffp", "prune", f"./{opened.name}" if opened.name.startswith("-") else opened.name]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}"] if value is True else [f"--{name}", str(value)]
    for text in texts:
        words += ["--text", str(text)]
    for name, value in given.items():
        words += ["--param", f"{name}={json.dumps(value)}"]
    for param in _recover_params(settings.recover):
        words += ["--recover-param", param]
    return shell_line([*words, *request.format.words(), "--out", str(request.out)])


def _recover_options(recover: RecoverSettings) -> dict[str, Any]:
    if not recover.wanted:
        return {}
    return {"recover": recover.method, "recover-tokens": recover.tokens, "recover-rank": recover.rank}


def _recover_params(recover: RecoverSettings) -> list[str]:
    """The settings of recovery that have no option of their own, where they are not the defaults."""
    others = recover.model_dump(exclude={"method", "tokens", "rank"}, exclude_defaults=True) if recover.wanted else {}
    return [f"{name}={json.dumps(value)}" for name, value in others.items()]


def _check_format(request: PruneRequest, planned: Planned) -> None:
    """Raises ConfigError for a model that the format cannot hold as it will be."""
    prunable = planned.prunables[0]
    request.format.check(prunable, planned.tokenizer)
    if request.settings.compensate == "bias" and not request.format.takes_biases(prunable):
        raise ConfigError(
            f"--compensate bias adds biases, which {request.format.name} has no place for in a "
            f"{prunable.config.model_type} model. Compensate by ridge, or take another --format."
        )


def _identity(request: PruneRequest, opened: OpenedModel, text: SplitText) -> dict[str, Any]:
    """Everything on which the numbers depend; a run that was killed goes on only where all of it is the same."""
    settings, model = request.settings, opened.config
    off = {"recover": not settings.recover.wanted, "bos": settings.bos == "never"}
    unasked = {name for name, left_out in off.items() if left_out}  # what was begun before there were these goes on
    training = [code_of("recover")] if settings.recover.wanted else []
    arithmetic = ("dtype", "device", "offload", "batch_tokens")
    return {
        "settings": settings.model_dump(mode="json", exclude=unasked),
        "model": {"digest": opened.digest, **{name: getattr(model, name) for name in arithmetic}, **model.units},
        "threads": model.resources.threads,
        "text": {name: digest(list(documents)) for name, documents in text.documents.items()},
        "code": [code_of("calibrate"), code_of("allocate", type(settings.method)), code_of("apply"), *training],
        **named_files(type(settings.method), settings.method.model_dump()),
    }


def _open_tasks(request: PruneRequest) -> tuple[TasksConfig, Path] | None:
    """The set of tasks and the folder of its documents, fetched."""
    if request.tasks is None:
        return None
    config, name = _named_tasks(request.tasks, request.num_fewshot)
    check_tasks(config)
    folder = Layout(request.data, request.data).tasks(name).folder
    fetch_tasks(config, folder)
    return config, folder


def _named_tasks(names: str, num_fewshot: int | None) -> tuple[TasksConfig, str]:
    """The set of tasks behind --tasks, and the name of its folder."""
    given = {} if num_fewshot is None else {"num_fewshot": num_fewshot}
    if entry := find_entry("tasks", names):
        config = read_part(TasksConfig, entry)
        if given:
            tasks = {name: task.model_copy(update=given) for name, task in config.tasks.items()}
            config = config.model_copy(update={"tasks": tasks})
        return config, entry.stem if not given else f"{entry.stem}-{num_fewshot}-shot"
    if "," not in names and names not in stock_index():
        known = did_you_mean(names, [*entries("tasks"), *stock_index()])
        raise ConfigError(f"no set of tasks and no task of lm-eval is called {names!r}: {known}")
    try:
        listed = [StockTask(task=name.strip(), **given) for name in names.split(",")]
    except ValidationError as error:
        raise ConfigError(f"--tasks {names}: {first_fault(error, StockTask)}") from error
    return TasksConfig.of(listed), name_of_list(listed)


def _scorer(
    tokenizer: Any, tasks: TasksConfig, folder: Path, settings: PruneSettings, batch_tokens: int
) -> Callable[[Any], dict[str, Any]]:
    """What scores a model on the tasks."""
    evaluation = settings.evaluation
    return partial(
        score_tasks, tokenizer=tokenizer, tasks=tasks, folder=folder, batch_tokens=batch_tokens, bos=settings.bos,
        **evaluation.of_tasks(),
    )  # fmt: skip
