"""How fast a model reads a prompt and writes tokens, as generation does it: with a cache, one sequence at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Speed:
    """Seconds of one sequence.

    Attributes:
        prompt: Tokens of the prompt.
        prefill_s: From the prompt to its last token's logits; the median over rounds.
        decode_s: For one more token; the median over rounds.
        rounds: Seconds of the two in each round.
    """

    prompt: int
    prefill_s: float
    decode_s: float
    rounds: tuple[tuple[float, float], ...]


@torch.inference_mode()
def measure_speed(
    models: Mapping[str, Any], prompt: torch.Tensor, *, steps: int = 8, rounds: int = 3
) -> dict[str, Speed]:
    """Times models that take turns, so that what slows the machine for a while slows all of them.

    Args:
        models: Causal language models of transformers by name. Each runs once more at first, which does not count.
        prompt: Token ids, (1, n) int64.
        steps: Greedy tokens after the prompt.
        rounds: Rounds that count.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            prefill_s, decode_s, _ = time_round(model, prompt.to(model.device), steps)
            times[name] += [(prefill_s, decode_s)] if number else []
    return {name: _speed(prompt.shape[1], found) for name, found in times.items()}


def _speed(prompt: int, rounds: list[tuple[float, float]]) -> Speed:
    prefill_s, decode_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    return Speed(prompt, prefill_s, decode_s, tuple(rounds))


def time_round(model: Any, ids: torch.Tensor, steps: int) -> tuple[float, float, Any]:
    """Returns the seconds of a prefill, those of a decoded token, and what the prefill gave."""
    prefill_s, first = _timed(lambda: model(ids, use_cache=True, logits_to_keep=1))
    decode_s, _ = _timed(lambda: _decode(model, first, steps))
    return prefill_s, decode_s / steps, first


def _decode(model: Any, output: Any, steps: int) -> None:
    """Greedy tokens, one forward each, on the cache of the prompt."""
    for _ in range(steps):
        token = output.logits[:, -1:].argmax(-1)
        output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)


def _timed(action: Any) -> tuple[float, Any]:
    """Seconds of an action, and its result; waits until an accelerator (CUDA, MPS, XPU) has done it."""
    started = time.perf_counter()
    result = action()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started, result
