"""The commands for one model: prune it, and see what there is to prune with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ffp.cli import options
from ffp.cli.app import FRONT, app, start_torch
from ffp.config.assets import Resources
from ffp.config.catalog import entries, find_entry
from ffp.config.pruning import CALIBRATION, CONTEXT, EVALUATION, prune_settings
from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean
from ffp.pipeline.host import host_cpus
from ffp.store.layout import default_data


@app.command(rich_help_panel=FRONT)
def prune(
    line: typer.Context, model: options.Model, sparsity: options.Sparsity, out: options.Out,
    method: options.Method = None, param: options.Param = None, compensate: options.Compensate = None,
    recover: options.Recover = "none", recover_tokens: options.RecoverTokens = None,
    recover_rank: options.RecoverRank = None, recover_param: options.RecoverParam = None, tokens: options.Tokens = None,
    text: options.Text = None, calibration_tokens: options.CalibrationTokens = CALIBRATION.windows * CONTEXT,
    compensated_search: options.CompensatedSearch = None, text_column: options.TextColumn = "text",
    context: options.Context = CONTEXT, seed: options.Seed = 0, granularity: options.Granularity = "structured",
    pruner: options.Pruner = None, score: options.Score = None, align: options.Align = None,
    min_keep: options.MinKeep = None, keep_blocks: options.KeepBlocks = None,
    attention_units: options.AttentionUnits = None, dtype: options.Dtype = None, bos: options.Bos = None,
    device: options.Device = None, threads: options.Threads = None, batch_tokens: options.BatchTokens = None,
    offload: options.Offload = False, evaluate: options.Evaluate = True, tasks: options.Tasks = None,
    num_fewshot: options.NumFewshot = None, chat_template: options.ChatTemplate = False,
    system_prompt: options.SystemPrompt = "", documents: options.Documents = EVALUATION.documents,
    format: options.Format = "transformers", quantize: options.Quantize = None, pad: options.Pad = None,
    yes: options.Yes = False, data: options.Data = None, dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Prune a model and save it as a checkpoint; interrupted, the same command goes on where it was.

    Example:
      ffp prune smollm2-135m --sparsity 0.3 --out small
      ffp prune Qwen/Qwen2.5-0.5B --sparsity 0.3 --out qwen-30
      ffp prune smollm2-135m --sparsity 0.3 --out small-gguf --format gguf --quantize Q8_0
      ffp prune ./mine --sparsity 0.3 --text notes.jsonl --keep-blocks 0-1 --out mine-30
    """
    settings = prune_settings(
        sparsity, method=method, params=_params(param or []), tokens=tokens, granularity=granularity,
        compensate=compensate, seed=seed, units=_given(align=align, attention_units=attention_units), spell=_option,
        **_sizes(context, calibration_tokens, _given(score=score), _given(compensated=compensated_search)),
        evaluation=_evaluation(context, documents, chat_template, system_prompt), **_given(pruner=pruner),
        recover=_recovery(recover, _given(tokens=recover_tokens, rank=recover_rank), recover_param or []),
    )  # fmt: skip
    _check_effects(_text(text), line)
    resources = Resources(threads=threads or host_cpus(), gpu=1)
    changes = _given(
        align=align, min_keep=min_keep, keep_blocks=keep_blocks, attention_units=attention_units, dtype=dtype, bos=bos,
        device=device, batch_tokens=batch_tokens, offload=offload or None, resources=resources,
    )  # fmt: skip
    start_torch(device or "auto", gpus=0 if dry_run else 1, threads=resources.threads, offline=False)
    from ffp.models import formats  # torch reads when it is imported what was set
    from ffp.pipeline import command

    request = command.PruneRequest(
        model=model, out=out, settings=settings, changes=changes, text=_text(text), column=text_column, tasks=tasks,
        num_fewshot=num_fewshot, evaluate=evaluate, overwrite=yes, data=data or default_data(),
        format=formats.create(format, quantize=quantize and [kind.upper() for kind in quantize], pad=pad),
    )  # fmt: skip
    print(command.dry_run(request) if dry_run else command.ending(command.prune(request), out, as_json=as_json))


@app.command("list", rich_help_panel=FRONT)
def list_(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="methods, parameters (of methods), models, texts, tasks or granularities."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List what there is to prune with. Entries of config/ in this folder come before those of the package.

    Example:
      ffp list methods
      ffp list parameters | grep owl
      ffp list models --json
    """
    from ffp.config import listing

    found = listing.rows(kind)
    print(json.dumps(found, indent=1) if as_json else "\n".join(listing.lines(found)))


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _option(name: str) -> str:
    """How the command line writes an argument."""
    return f"--{name.replace('_', '-')}"


def _check_effects(text: str | list[Path] | None, line: typer.Context) -> None:
    """Refuses options of this command alone that stand on the command line and change nothing."""
    given = {name for name in line.params if getattr(line.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    tasks = "tasks" not in given and "without tasks. Add --tasks"
    idle = {
        "text_column": (text is None or isinstance(text, str)) and "without a file of rows. Add --text FILE",
        "offload": line.params["device"] == "cpu" and "on a CPU. Take another --device",
        **dict.fromkeys(("num_fewshot", "documents", "system_prompt", "chat_template"), tasks),
    }
    for name in line.params:
        if name in given and idle.get(name):
            raise ConfigError(f"{_option(name)} has no effect {idle[name]}, or leave it out.")
    if {"dry_run", "as_json"} <= given:
        raise ConfigError("--dry-run prints no JSON. Leave out --json, or run it.")


def _recovery(method: str, given: dict[str, Any], pairs: list[str]) -> dict[str, Any]:
    """The settings of recovery."""
    if method == "none" and (given or pairs):
        option = f"--recover-{next(iter(given), 'param')}"
        raise ConfigError(f"{option} has no effect without recovery. Add --recover lora, or leave it out.")
    return {**_params(pairs, "--recover-param"), **given, "method": method}


def _params(pairs: list[str], option: str = "--param") -> dict[str, Any]:
    """Hyper-parameters from NAME=VALUE; a value is read as YAML reads it."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"{option} {pair!r} is not NAME=VALUE, such as max_deviation=0.16.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{option} {pair!r} has a value that is no YAML. Write a number, a word or a list."
            ) from error
    return found


def _evaluation(context: int, documents: int, chat_template: bool, system_prompt: str) -> dict[str, Any]:
    """What is measured before and after."""
    if documents < 0:
        raise ConfigError(f"--documents {documents} is below 0. Give a number of documents, or 0 for all.")
    asked = {"documents": documents, "chat_template": chat_template, "system_prompt": system_prompt}
    return {"context": 2 * context, **asked}


def _sizes(context: int, calibration_tokens: int, order: dict[str, Any], compensated: dict[str, Any]) -> dict[str, Any]:
    """The windows of the texts; the order of units and whether a search is compensated, where they are given."""
    if not 2 <= context <= calibration_tokens:
        raise ConfigError(
            f"--context {context} is not from 2 to --calibration-tokens {calibration_tokens}. Correct one of them."
        )
    calibration = {"context": context, "windows": calibration_tokens // context, **order}
    return {"calibration": calibration, "search": {"context": context, **compensated}}


def _text(given: list[str] | None) -> str | list[Path] | None:
    """A name of the catalog, or files."""
    if not given:
        return None
    if len(given) == 1 and find_entry("texts", given[0]):
        return given[0]
    for each in given:
        if find_entry("texts", each):
            raise ConfigError(f"--text {each} is a text of `ffp list texts`, which stands alone. Give it or files.")
        if not Path(each).exists():
            known = did_you_mean(each, entries("texts"))
            raise ConfigError(f"--text {each} is no file, and no text of `ffp list texts`: {known}")
    return [Path(each) for each in given]
