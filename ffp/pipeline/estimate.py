"""What `ffp prune` will take: memory, disk and time, from the sizes of the model alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ffp.allocators.base import Search
from ffp.config import ModelConfig
from ffp.config.pruning import PruneSettings
from ffp.core import projection
from ffp.models.checkpoint import dtype_of, load_skeleton
from ffp.models.placement import choose_device
from ffp.models.prunable import PrunableModel
from ffp.pipeline.memory_plan import gram_bytes, holds_gradients, step_memory, takes_gradients
from ffp.pipeline.sizes import forward_flops
from ffp.pipeline.training_plan import training_memory

PRODUCT = 1024  # rows and columns of the matrices that time a CPU
GPU_PRODUCT, QUEUED = 4096, 16  # the same of a GPU, and products that wait there at once: starting each takes time
SHARE = 0.5  # of that speed, which a whole model reaches


@dataclass(frozen=True)
class Estimate:
    """What a pruning takes.

    Attributes:
        prunable: The model's modules, without weights.
        config: How it runs.
        settings: What is asked.
        memory: Peak bytes on the device.
        disk: Bytes of the checkpoint, and of the Gram matrices that are kept until it is there, at most.
    """

    prunable: PrunableModel
    config: ModelConfig
    settings: PruneSettings
    memory: int
    disk: int

    def describe(self, name: str, text: str, out: Path, tokens: float) -> str:
        """Returns the plan in words.

        Args:
            name: Of the model.
            text: Title of the text.
            out: Folder of the checkpoint.
            tokens: What all parts forward.
        """
        problem = self.prunable.problem(self.settings.sparsity, self.settings.granularity)
        method, device = self.settings.method, choose_device(self.config.device)
        precision = dtype_of(self.prunable.model, self.config)
        minutes = tokens * forward_flops(self.prunable) / (flops_per_second(device, precision) * SHARE) / 60
        params = self.prunable.model_params()
        budget = self.settings.search.budget().tokens(self.settings.search.context)
        structured = self.settings.granularity == "structured"
        searched = f"searches with {budget:,} tokens" if isinstance(method, Search) else "searches nothing"
        dtype = str(precision).removeprefix("torch.")
        return "\n".join([
            f"model       {name}: {len(self.prunable.blocks)} blocks, {params / 1e6:,.1f} M parameters, {dtype}",
            f"pruning     {problem.target:.0%} of {problem.total_params / 1e6:,.1f} M prunable parameters "
            f"({self.settings.granularity}, {len(problem.decisions)} decisions, at most "
            f"{projection.max_sparsity(problem):.1%})",
            *([f"units       {self.prunable.describe_units()} a block"] if structured else []),
            f"method      {method.name}, which {searched}; compensation: {self.settings.compensate}",
            *([f"recovery    {self.settings.recover.describe()}"] if self.settings.recover.wanted else []),
            f"text        {text}",
            f"memory      about {self.memory / 1e9:.1f} GB on {device}",
            f"disk        at most {self.disk / 1e6:,.0f} MB in {out}",
            f"time        {tokens:,.0f} tokens, about {max(1, round(minutes))} min at the speed of this machine now",
        ])  # fmt: skip


def estimate(folder: Path, config: ModelConfig, settings: PruneSettings) -> Estimate:
    """Returns what a pruning of the model in `folder` takes."""
    prunable = PrunableModel(load_skeleton(folder), **config.units)
    memory = step_memory(
        prunable, settings, config, gradients=takes_gradients(settings.method),
        held=holds_gradients(settings.method), grams=settings.needs_grams, compensated=settings.compensated_search,
    )  # fmt: skip
    if settings.recover.wanted:
        memory["recover"] = training_memory(prunable, config, settings.recover, settings.calibration.context)
    steps = ["grams" if settings.needs_grams else "calibrate", "evaluate", "apply"]
    steps += ["allocate"] if isinstance(settings.method, Search) else []
    steps += ["recover"] if settings.recover.wanted else []
    size = prunable.model_params() * dtype_of(prunable.model, config).itemsize
    size += gram_bytes(prunable) if settings.needs_grams else 0
    return Estimate(prunable, config, settings, max(memory[step] for step in steps), size)


def flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Returns how many multiplications and additions a second products of two matrices reach on a device.

    Args:
        device: Where they are taken.
        dtype: Precision of the model. A CPU multiplies float32, since it can be slow at other precisions.
    """
    size, queued = (GPU_PRODUCT, QUEUED) if device.type == "cuda" else (PRODUCT, 1)
    precision = {"cpu": torch.float32, "cuda": dtype}.get(device.type, torch.bfloat16)
    left = torch.ones(size, size, dtype=precision, device=device)
    float(torch.mm(left, left)[0, 0])
    started, rounds = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < 0.2:
        for _ in range(queued):
            product = torch.mm(left, left)
        float(product[0, 0])  # waits for all of them
        rounds += queued
    return 2 * size**3 * rounds / spent
