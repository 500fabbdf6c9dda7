"""How fast a model reads a prompt and writes tokens, as generation does it: with a cache, one sequence at a time."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Speed:
    """Seconds of one sequence, each the median over rounds.

    Attributes:
        prompt: Tokens of the prompt.
        prefill_s: From the prompt to its last token's logits.
        decode_s: For one more token.
    """

    prompt: int
    prefill_s: float
    decode_s: float


@torch.inference_mode()
def measure_speed(model: Any, prompt: torch.Tensor, *, steps: int = 8, rounds: int = 3) -> Speed:
    """Times a model; a first round warms up and does not count.

    Args:
        model: A causal language model of transformers.
        prompt: Token ids, (1, n) int64.
        steps: Greedy tokens after the prompt.
        rounds: Rounds that count.
    """
    ids = prompt.to(model.device)
    times = [time_round(model, ids, steps)[:2] for _ in range(rounds + 1)][1:]
    prefill, decode = zip(*times, strict=True)
    return Speed(ids.shape[1], statistics.median(prefill), statistics.median(decode))


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
    """Seconds of an action, and its result; waits until a GPU has done it."""
    started = time.perf_counter()
    result = action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result
