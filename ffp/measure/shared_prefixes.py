"""Scores several answers to one prompt: the prompt passes the model once, its keys and values serve every answer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

Answer = tuple[float, bool]


@torch.no_grad()
def score_answers(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], *, batch_tokens: int
) -> list[list[Answer]]:
    """Returns what lm-eval calls the loglikelihood of each answer behind its prompt.

    A prompt costs its tokens once, where asking each answer apart costs them once an answer. The sums of attention are
    taken in another order, so that results can differ in the last digits from those of whole sequences.

    Args:
        model: A causal language model of transformers, which keeps keys and values.
        prompts: Token ids, at least one each.
        answers: For each prompt the token ids of its answers, at least one answer of one token.
        batch_tokens: Tokens, with the prompt of every answer, that the cache holds at once; at least one prompt's.

    Returns:
        For each prompt and answer the sum of log probabilities, float32, and whether each token is the likeliest.
    """
    found: list[list[Answer]] = [[] for _ in prompts]
    for batch in _batches(prompts, answers, batch_tokens):
        scores = _score(model, [prompts[i] for i in batch], [answers[i] for i in batch])
        for index, of_prompt in zip(batch, scores, strict=True):
            found[index] = of_prompt
    return found


def _batches(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts that are asked at once, longest answers first: what fills up answers costs the most."""
    longest = [max(map(len, of_prompt)) for of_prompt in answers]
    order = sorted(range(len(prompts)), key=lambda i: (-longest[i], -len(prompts[i])))
    batch: list[int] = []
    for index in order:
        together = [*batch, index]
        length = max(len(prompts[i]) for i in together) + longest[together[0]]
        if batch and length * sum(len(answers[i]) for i in together) > batch_tokens:
            yield batch
            together = [index]
        batch = together
    if batch:
        yield batch


def _score(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
) -> list[list[Answer]]:
    rows = [row for row, of_prompt in enumerate(answers) for _ in of_prompt]
    flat = [answer for of_prompt in answers for answer in of_prompt]
    prompt, mask = _padded(prompts, left=True)
    first, cache = _forward(model, prompt, mask, None)
    logits = first[rows][:, -1:]
    tokens, present = _padded(flat, left=False)
    if tokens.shape[1] > 1:
        cache.batch_select_indices(torch.tensor(rows, device=model.device))
        rest, _ = _forward(model, tokens[:, :-1], torch.cat([mask[rows], present[:, :-1]], 1), cache)
        logits = torch.cat([logits, rest], 1)
    chosen = tokens.to(logits.device)
    likely = torch.log_softmax(logits.float(), -1).gather(2, chosen[:, :, None])[:, :, 0].cpu()
    greedy = (logits.argmax(-1) == chosen).cpu()
    scores = [
        (float(likely[row, : len(answer)].sum()), bool(greedy[row, : len(answer)].all()))
        for row, answer in enumerate(flat)
    ]
    found: list[list[Answer]] = [[] for _ in prompts]
    for row, score in zip(rows, scores, strict=True):
        found[row].append(score)
    return found


def _padded(sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, (n, longest), filled up by zeros on one side, and a mask of what is there, both int64."""
    longest = max(map(len, sequences))
    ids, mask = torch.zeros(2, len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        part = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, part] = torch.tensor(list(sequence))
        mask[row, part] = 1
    return ids, mask


def _forward(model: Any, tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """Logits behind tokens, all of them or the last one of a prompt, and the cache of all tokens so far.

    mask: of the tokens in the cache and these, (n, all).
    """
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
    known = inspect.signature(model.forward).parameters
    options = {"position_ids": positions.to(model.device), "logits_to_keep": 1 if cache is None else 0}
    out = model(
        input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), past_key_values=cache, use_cache=True,
        **{name: value for name, value in options.items() if name in known},
    )  # fmt: skip
    return out.logits, out.past_key_values
