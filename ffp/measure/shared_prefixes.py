"""Scores answers to prompts, and forwards what they have in common once.

- A prompt passes the model once; its keys and values serve every answer.
- So does a *stem*, the first tokens that many prompts have in common, such as solved examples.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Answer = tuple[float, bool]
Tokens = Sequence[int]
Prompt = tuple[int, ...]

SAVED = 3  # tokens are shared where that saves one of so many


@torch.no_grad()
def score_answers(
    model: Any, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], *, batch_tokens: int, stem: int = 0
) -> list[list[Answer]]:
    """Returns what lm-eval calls the loglikelihood of each answer behind its prompt.

    A prompt costs its tokens once, where asking each answer apart costs them once an answer. The sums of attention are
    taken in another order, so that results can differ in the last digits from those of whole sequences.

    Args:
        model: A causal language model of transformers, which keeps keys and values.
        prompts: Token ids, more than `stem` each.
        answers: For each prompt the token ids of its answers, at least one answer of one token.
        batch_tokens: Tokens, with the prompt of every answer, that the cache holds at once; at least one prompt's.
        stem: Number of first tokens that all prompts have in common; these are forwarded once.

    Returns:
        For each prompt and answer the sum of log probabilities, float32, and whether each token is the likeliest.
    """
    found: list[list[Answer]] = [[] for _ in prompts]
    common = _forward(model, *_padded([prompts[0][:stem]], left=True), None)[1] if stem else None
    rests = [prompt[stem:] for prompt in prompts]
    for batch in _batches(rests, answers, batch_tokens, stem):
        scores = _score(model, [rests[i] for i in batch], [answers[i] for i in batch], common, stem)
        for index, of_prompt in zip(batch, scores, strict=True):
            found[index] = of_prompt
    return found


@dataclass(frozen=True)
class Shared:
    """Prompts that are forwarded together.

    Attributes:
        stem: Number of first tokens that all of them have in common, less than those of the shortest; 0 for none.
        prompts: Token ids.
        requests: For each prompt the indices of the requests that have it.
    """

    stem: int
    prompts: list[Prompt]
    requests: list[list[int]]


def find_shared(
    requests: Sequence[tuple[Tokens, Tokens]], *, longest: int, window: int | None, batch_tokens: int
) -> Iterator[Shared]:
    """Finds where to forward common tokens once.

    That is where it saves at least a third of the tokens, and for a stem as many as a batch has, since each stem begins
    batches of its own.

    Args:
        requests: Token ids of a prompt and of an answer. Without a prompt a request is left out.
        longest: Tokens of a request that the model takes; longer ones are left out.
        window: Tokens that attention sees; None for all. Tokens that fill up a batch behind a stem count there.
        batch_tokens: See score_answers.
    """
    of_prompt: dict[Prompt, list[int]] = defaultdict(list)
    for index, (prompt, answer) in enumerate(requests):
        if prompt and len(prompt) + len(answer) <= longest:
            of_prompt[tuple(prompt)].append(index)
    alone = set(of_prompt)
    for stem, prompts in _stems(list(of_prompt)):
        length = max(map(len, prompts)) + max(len(requests[index][1]) for p in prompts for index in of_prompt[p])
        found = Shared(stem, prompts, [of_prompt[prompt] for prompt in prompts])
        many = stem * (len(prompts) - 1) >= batch_tokens
        if many and (window is None or length <= window) and _pays(found, requests):
            alone.difference_update(prompts)
            yield found
    paying = [p for p in of_prompt if p in alone and _pays(Shared(0, [p], [of_prompt[p]]), requests)]
    yield Shared(0, paying, [of_prompt[prompt] for prompt in paying])


def _pays(shared: Shared, requests: Sequence[tuple[Tokens, Tokens]]) -> bool:
    """Whether it saves a third of the tokens of its requests."""
    repeats = [len(indices) for indices in shared.requests]
    saved = shared.stem * (sum(repeats) - 1)
    saved += sum((len(p) - shared.stem) * (n - 1) for p, n in zip(shared.prompts, repeats, strict=True))
    asked = sum(len(requests[index][0]) + len(requests[index][1]) for each in shared.requests for index in each)
    return SAVED * saved >= asked


def _stems(prompts: Sequence[Prompt]) -> list[tuple[int, list[Prompt]]]:
    """Groups of prompts that share half of their tokens or more with the next one, in lexicographic order."""
    groups: list[tuple[int, list[Prompt]]] = []
    for prompt in sorted(prompts):
        length, members = groups[-1] if groups else (0, [prompt])
        pairs = enumerate(zip(members[-1], prompt, strict=False))
        alike = next((place for place, (a, b) in pairs if a != b), min(len(members[-1]), len(prompt)))
        if groups and 2 * alike >= max(len(members[-1]), len(prompt)):
            members.append(prompt)
            groups[-1] = (min(length, alike, len(prompt) - 1), members)
        else:
            groups.append((len(prompt) - 1, [prompt]))
    return [(length, members) for length, members in groups if length > 0 and len(members) > 1]


def _batches(
    prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], batch_tokens: int, stem: int
) -> Iterator[list[int]]:
    """Indices of prompts that are asked at once, longest answers first: what fills up answers costs the most."""
    longest = [max(map(len, of_prompt)) for of_prompt in answers]
    order = sorted(range(len(prompts)), key=lambda i: (-longest[i], -len(prompts[i])))
    batch: list[int] = []
    for index in order:
        together = [*batch, index]
        length = stem + max(len(prompts[i]) for i in together) + longest[together[0]]
        if batch and length * sum(len(answers[i]) for i in together) > batch_tokens:
            yield batch
            together = [index]
        batch = together
    if batch:
        yield batch


def _score(
    model: Any, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], common: Any, stem: int
) -> list[list[Answer]]:
    """Scores the answers to prompts that follow a stem, whose cache is `common`."""
    rows = [row for row, of_prompt in enumerate(answers) for _ in of_prompt]
    flat = [answer for of_prompt in answers for answer in of_prompt]
    prompt, mask = _padded(prompts, left=True)
    mask = torch.cat([mask.new_ones(len(prompts), stem), mask], 1)
    before = copy.deepcopy(common)
    if before is not None:
        before.batch_repeat_interleave(len(prompts))
    first, cache = _forward(model, prompt, mask, before)
    logits = first[rows][:, -1:]
    tokens, present = _padded(flat, left=False)
    if tokens.shape[1] > 1:
        cache.batch_select_indices(torch.tensor(rows, device=model.device))
        rest, _ = _forward(model, tokens[:, :-1], torch.cat([mask[rows], present[:, :-1]], 1), cache, every=True)
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


def _padded(sequences: Sequence[Tokens], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, (n, longest), filled up by zeros on one side, and a mask of what is there, both int64."""
    longest = max(map(len, sequences))
    ids, mask = torch.zeros(2, len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        part = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, part] = torch.tensor(list(sequence))
        mask[row, part] = 1
    return ids, mask


def _forward(
    model: Any, tokens: torch.Tensor, mask: torch.Tensor, cache: Any, *, every: bool = False
) -> tuple[torch.Tensor, Any]:
    """Logits behind every token, or the last one, and the cache of all tokens so far.

    mask: of the tokens in the cache and these, (n, all).
    """
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
    known = inspect.signature(model.forward).parameters
    options = {"position_ids": positions.to(model.device), "logits_to_keep": 0 if every else 1}
    out = model(
        input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), past_key_values=cache, use_cache=True,
        **{name: value for name, value in options.items() if name in known},
    )  # fmt: skip
    return out.logits, out.past_key_values
