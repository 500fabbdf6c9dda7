"""The command `ffp` itself, and what its commands share."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

import ffp
from ffp.pipeline.cluster import claim_gpus

FRONT, STEPS, GRIDS, RESULTS = "Prune a model", "Steps of a grid, in this order", "Look at a grid", "Use results"

app = typer.Typer(name="ffp", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ffp {ffp.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    r"""Prunes large language models and benchmarks how to spread the cut over their layers.

    `ffp prune` prunes one model. The workflow (make demo, or snakemake) runs the steps for every cell of a grid;
    each can be run by hand.

    Example:
      ffp prune smollm2-135m --sparsity 0.3 --out small
      ffp list methods
      ffp validate --config config/grids/demo.yaml
      ffp asset model --config config/models/smollm2-135m.yaml \
          --out data/models/smollm2-135m
      ffp status --config config/grids/demo.yaml
      ffp export --config config/grids/demo.yaml --out pruned \
          --cell smollm2-135m/structured/s0.20/fastforward-guided/seed0
    """


def start_torch(device: str, *, gpus: int, threads: int, offline: bool = True) -> None:
    """Fixes the number of threads, on which the last bits of every sum depend, and takes GPUs that nobody else has.

    Args:
        device: Where the model will run: "auto", "cpu", "cuda" or "mps".
        gpus: Number of GPUs that it takes.
        threads: CPU threads.
        offline: Keep libraries off the network.
    """
    if device in ("auto", "cuda"):
        claim_gpus(gpus)
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
