"""The model card of an exported checkpoint: what was removed and how, its scores, its licence, how to make it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ffp.config import Cell, HubSource, ModelConfig
from ffp.config.bos import IN_WORDS
from ffp.core.plain import markdown, shell_line
from ffp.models.formats import Saved
from ffp.store.task_scores import scored_tasks

if TYPE_CHECKING:
    from ffp.allocators.base import Method


def model_card(
    model: ModelConfig, cell: Cell, *, method: type[Method], units: str, ranking: str, compensation: str,
    calibration: str, removed: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any] | None],
    commands: Sequence[str], version: str, saved: Saved, recovery: str = "none",
    before: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Returns the card as Markdown with the hub's metadata in front.

    Args:
        model: The parent.
        cell: The exported cell.
        method: The method behind its allocation.
        units: What the units of a block are.
        ranking: What decided which units go: the unit score, or the pruner of single weights.
        compensation: "none", "bias", "ridge" or "ridge-dense".
        calibration: The calibration text in words.
        removed: block_sparsity, model_sparsity, params {dense, kept}.
        scores: Contents of scores.json under "dense" and "pruned"; None where that cell is not scored.
        commands: Lines of shell that make the checkpoint again.
        version: Version of ffp.
        saved: What was written.
        recovery: How the pruned model was trained, in a few words; "none" where it was not.
        before: Perplexity before that training.
    """
    params = removed["params"]
    licence = markdown(model.license or "not stated here; see the parent")
    whole = f" Blocks that lose nothing: {model.keep_blocks}." if model.keep_blocks else ""
    done = f"""- Parent: {_source(model.source)}.
- Removed: {removed["block_sparsity"]:.2%} of the parameters of attention and FFN, \
{removed["model_sparsity"]:.2%} of all ({params["dense"]:,} -> {params["kept"]:,}).{whole}
- Allocation: `{method.name}` version {method.version}, {method.summary} ({method.citation}); seed {cell.seed}.
- Units: {_units(cell.granularity, units, ranking)}. Compensation: {compensation}.{_recovered(recovery, before)}
- Calibration: {markdown(calibration)}.
- Licence of the parent, which holds for this checkpoint too: {licence}."""
    sections = [
        f"---\n{yaml.safe_dump(_metadata(model, saved), sort_keys=False)}---",
        f"# {markdown(model.title)}, pruned by {100 * float(cell.sparsity):g}% ({cell.method})",
        saved.text,
        _fenced(saved.language, saved.run),
        "## What was done",
        done,
        "## Scores",
        _score_table(scores),
        "## Make it again",
        f"With ffp {version}:",
        _fenced("", commands),
    ]
    return "\n\n".join(sections) + "\n"


def _units(granularity: str, units: str, ranking: str) -> str:
    if granularity == "structured":
        return f"{units} a block, ranked by `{ranking}`"
    return f"single weights ({granularity}), pruned by `{ranking}`"


def _fenced(language: str, lines: Sequence[str]) -> str:
    """Lines of code as Markdown; the fence is longer than any row of backquotes in them, which would end it."""
    body = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{fence}{language}\n{body}\n{fence}"


def run_command(grid_file: str, file: str) -> str:
    """Returns a line of shell that runs a grid as far as one of its files."""
    return shell_line(["snakemake", "--cores", "all", "--config", f"grid={grid_file}", "--", file])


def remake_commands(
    *, grid_file: str, cell_path: str, scores_file: str, format: Sequence[str], commit: str | None, dirty: bool
) -> list[str]:
    """Returns lines of shell that make a checkpoint again: the code's commit, the cell's last file, the export."""
    export = ["ffp", "export", "--config", grid_file, "--cell", cell_path, "--out", "OUT"]
    lines = [run_command(grid_file, scores_file), shell_line([*export, *format])]
    if commit:
        lines.insert(0, f"git checkout {commit}" + ("  # and its local changes" if dirty else ""))
    return lines


def _recovered(recovery: str, before: Mapping[str, Any] | None) -> str:
    if recovery == "none":
        return ""
    known = f" Perplexity before it: {_figure({'ppl': before}, 'ppl')}." if before else ""
    return f"\n- Recovery: {recovery}, from the calibration text behind what calibration used.{known}"


def _metadata(model: ModelConfig, saved: Saved) -> dict[str, Any]:
    """What the hub reads of a card."""
    head: dict[str, Any] = {
        "library_name": saved.library,
        "pipeline_tag": "text-generation",
        "license": model.license or "other",
        "tags": ["ffp", "pruned", *saved.tags],
    }
    if isinstance(model.source, HubSource):
        head["base_model"] = model.source.repo
    return head


def _source(source: Any) -> str:
    if source.kind == "hub":
        return f"{source.repo} at revision {markdown(source.revision)}"
    if source.kind == "wheel":
        return f"{source.package} {source.version} from the package index"
    if source.kind == "wheel-parts":
        names = ", ".join(f"{part.package} {part.version}" for part in source.parts)
        return f"{source.file} (sha256 {source.sha256}), in parts from the package index: {names}"
    return f"local folder {markdown(Path(source.path).name)}"


def _score_table(scores: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Perplexity and the main metric of every task with standard errors, of the parent and of this model."""
    if not (pruned := scores["pruned"]):
        return "Not scored."
    rows = ["| | parent | this model |", "|---|---|---|"]
    bodies = [scores["dense"], pruned]
    rows.append(
        f"| perplexity, {pruned['ppl']['n_tokens']:,} tokens, {IN_WORDS[pruned['ppl']['bos']]} "
        f"| {' | '.join(_figure(b, 'ppl') for b in bodies)} |"
    )
    tasks = [scored_tasks((body or {}).get("tasks", {})) for body in bodies]
    for task, result in tasks[1].items():
        for metric in result.shown_metrics:
            found = [each[task].metrics.get(metric) if task in each else None for each in tasks]
            figures = " | ".join(_figure(one.model_dump() if one else None) for one in found)
            shots = f", {result.num_fewshot}-shot" if result.num_fewshot else ""
            rows.append(f"| {task}, {metric}{shots}, {result.n} of {result.n_total} documents | {figures} |")
    return "\n".join(rows)


def _figure(body: Mapping[str, Any] | None, *path: str) -> str:
    found: Any = body
    for key in path:
        found = (found or {}).get(key)
    if not found:
        return "-"
    return f"{found['value']:.4g}" + (f" ± {found['stderr']:.2g}" if found["stderr"] is not None else "")
