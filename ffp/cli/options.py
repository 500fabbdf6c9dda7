"""The options of `ffp prune`: their types and what `--help` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ffp.config import assets, bos, grid
from ffp.config.pruning import CALIBRATION, CONTEXT, EVALUATION, TOKENS
from ffp.config.recover import RecoverSettings
from ffp.core import problem

WHAT, HOW, MODEL, OUTPUT = "What goes", "How", "The model", "What comes out"


def _option(help: str, panel: str, *names: str, **more: Any) -> Any:
    """An option whose help says its default itself."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


Model = Annotated[
    str,
    typer.Argument(
        help="ORG/NAME or ORG/NAME@REVISION of the hub, a folder, a .gguf file, or a name of `ffp list models`."
    ),
]
Sparsity = Annotated[float, _option("Share of the attention and FFN parameters to remove, in (0, 1).", WHAT)]
Out = Annotated[Path, _option("Folder to make.", OUTPUT)]
Method = Annotated[
    str | None,
    _option(
        "What chooses the share of each module: `ffp list methods`. Default: fastforward-guided; ffn-only with "
        "--tokens 0; uniform on single weights.",
        HOW,
    ),
]
Param = Annotated[
    list[str] | None, _option("Hyper-parameter of the method; repeat it for more.", HOW, metavar="NAME=VALUE")
]
Compensate = Annotated[
    grid.Compensation | None,
    _option(
        "How what stays makes up for removed units: none, bias, ridge (the default) or ridge-dense.",
        HOW,
        metavar="KIND",
    ),
]
Recover = Annotated[
    Literal["none", "lora"],
    _option(
        "Train the pruned model, on text that calibration leaves: lora, or none (the default).", HOW, metavar="KIND"
    ),
]
RecoverTokens = Annotated[
    int | None, _option(f"Tokens of that training. Default: {RecoverSettings().tokens}.", HOW, min=1, metavar="N")
]
RecoverRank = Annotated[
    int | None, _option(f"Rank of LoRA. Default: {RecoverSettings().rank}.", HOW, min=1, metavar="N")
]
RecoverParam = Annotated[
    list[str] | None,
    _option(
        "Another setting of it, e.g. learning_rate=1e-4 or loss=kl; repeat it for more.", HOW, metavar="NAME=VALUE"
    ),
]
Tokens = Annotated[
    int | None,
    _option(f"Tokens that a search may forward; 0 for no search. Default: {TOKENS}.", HOW, min=0, metavar="N"),
]
Text = Annotated[
    list[str] | None,
    _option(
        "A name of `ffp list texts`, or files (.txt, .jsonl, .parquet); repeat it for more files.",
        HOW,
        metavar="NAME|FILE",
    ),
]
TextColumn = Annotated[str, _option("Field of a row that holds the text. Default: text.", HOW)]
CalibrationTokens = Annotated[
    int, _option(f"Tokens of the calibration. Default: {CALIBRATION.windows * CONTEXT}.", HOW, metavar="N")
]
CompensatedSearch = Annotated[
    bool | None,
    _option(
        "Search among candidates that are compensated by ridge, as the result is. Default: yes; no if you name a "
        "method or compensate without ridge.",
        HOW,
        "--compensated-search/--plain-search",
    ),
]
Context = Annotated[
    int, _option(f"Tokens in a window; the test has windows of twice as many. Default: {CONTEXT}.", HOW, metavar="N")
]
Seed = Annotated[int, _option("Seed of the search, up to 2^32 - 1. Default: 0.", HOW, metavar="N")]
Granularity = Annotated[
    problem.Granularity,
    _option(
        "structured: whole heads and channels (the default); unstructured, n-of-4, n-of-8: single weights, as zeros.",
        WHAT,
        metavar="KIND",
    ),
]
Pruner = Annotated[
    grid.Pruner | None,
    _option(
        "How single weights are chosen: wanda, wanda-dense, magnitude or sparsegpt (the default).", WHAT, metavar="NAME"
    ),
]
Score = Annotated[
    grid.UnitScore | None,
    _option(
        "Order in which heads and channels leave: wanda, wifv, ifv, or pairwise and obs, which know how they act "
        "together. Default: obs; pairwise if the search is not compensated; wanda with a named method or --tokens 0.",
        WHAT,
        metavar="NAME",
    ),
]
Align = Annotated[
    int | None, _option("Keep FFN channels in multiples of 8, 16, 32, 64, 128 or 256.", WHAT, metavar="N")
]
MinKeep = Annotated[
    int | None,
    _option("Units that every module keeps at least; 0 lets whole modules go. Default: 1.", WHAT, min=0, metavar="N"),
]
KeepBlocks = Annotated[
    str | None,
    _option("Blocks that stay whole, e.g. 0-3,-2: for the first four and the last two.", WHAT, metavar="BLOCKS"),
]
AttentionUnits = Annotated[
    problem.AttentionUnits | None,
    _option(
        "What leaves an attention: kv-groups (the default), query-heads (one of each) or single-query-heads (any).",
        WHAT,
        metavar="KIND",
    ),
]
Bos = Annotated[
    bos.Bos | None,
    _option(
        "A BOS (beginning-of-sequence token) at the start of each window of text: auto, if the tokenizer itself adds "
        "one; always; never; once, at the start of the whole text. Default: auto.",
        MODEL,
        metavar="WHERE",
    ),
]
Dtype = Annotated[
    assets.Dtype | None,
    _option("float32, bfloat16, float16 or auto. Default: the checkpoint's own.", MODEL, metavar="TYPE"),
]
Device = Annotated[
    assets.Device | None,
    _option("cpu, cuda, mps or auto. Default: a GPU if there is one.", MODEL, metavar="NAME"),
]
Threads = Annotated[int | None, _option("CPU threads. Default: all cores.", MODEL, min=1, metavar="N")]
BatchTokens = Annotated[
    int | None, _option("Tokens in one forward; lower it to save memory.", MODEL, min=1, metavar="N")
]
Offload = Annotated[
    bool, _option("Keep the weights on the host and move one block at a time to the GPU.", MODEL, "--offload")
]
Evaluate = Annotated[bool, typer.Option(help="Measure perplexity and speed before and after.", rich_help_panel=OUTPUT)]
Tasks = Annotated[
    str | None, _option("Score lm-eval tasks too, e.g. arc_easy,gsm8k, or a name of `ffp list tasks`.", OUTPUT)
]
NumFewshot = Annotated[
    int | None, _option("Solved examples in each prompt. Default: each task's own number.", OUTPUT, min=0, metavar="N")
]
ChatTemplate = Annotated[
    bool, _option("Ask tasks as a chat, by the template of the tokenizer.", OUTPUT, "--chat-template")
]
SystemPrompt = Annotated[str, _option("What comes before each prompt of a task.", OUTPUT)]
Documents = Annotated[
    int,
    _option(
        f"Documents of each task; 0 for all (lm-eval: limit). Default: {EVALUATION.documents}.", OUTPUT, metavar="N"
    ),
]
Format = Annotated[
    Literal["transformers", "gguf", "dense-shape"],
    _option(
        "transformers (the default): for transformers and vLLM; gguf: for llama.cpp; dense-shape: zeros in the dense "
        "shapes.",
        OUTPUT,
        metavar="FORMAT",
    ),
]
Quantize = Annotated[
    list[str] | None,
    _option(
        "Type of a GGUF file: F16, BF16, F32, Q8_0, Q4_0 or Q4_K_M; repeat it for more files.", OUTPUT, metavar="TYPE"
    ),
]
Pad = Annotated[
    int | None,
    _option(
        "GGUF: fill widths up with zeros to multiples of this; 256 suits Q4_K_M. Default: 32.", OUTPUT, metavar="N"
    ),
]
Yes = Annotated[bool, _option("Replace a folder that ffp wrote.", OUTPUT, "--yes")]
Data = Annotated[
    Path | None, _option("Folder for what is fetched. Default: data in a checkout, else ~/.cache/ffp.", OUTPUT)
]
DryRun = Annotated[
    bool, _option("Fetch model and text, say what it would do, its memory and time, and stop.", OUTPUT, "--dry-run")
]
AsJson = Annotated[bool, _option("Print the figures as JSON.", OUTPUT, "--json")]
