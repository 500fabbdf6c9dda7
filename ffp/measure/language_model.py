"""A model in memory as lm-eval asks one: its own HFLM, with batches bounded by tokens instead of by requests."""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ffp.measure.bos import adds_bos
from ffp.measure.shared_prefixes import find_shared, score_answers

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM as Base
else:
    Base = object  # importing lm-eval takes seconds

log = logging.getLogger(__name__)


def language_model(model: Any, tokenizer: Any, batch_tokens: int, *, begins: bool) -> Any:
    """Wraps a model for lm-eval.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        batch_tokens: Tokens forwarded at once; of a task that generates, prompts and what they may generate.
        begins: Whether each request begins with a BOS.
    """
    from lm_eval.models.huggingface import HFLM

    class TokenBatches(_TokenBatches, HFLM):  # type: ignore[misc, unused-ignore]
        """HFLM as _TokenBatches asks it."""

    found = TokenBatches(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")
    found.batch_tokens, found.begins = batch_tokens, begins
    found.unlike = begins != adds_bos(tokenizer)
    return found


class _TokenBatches(Base):  # type: ignore[misc, unused-ignore]
    """Asks HFLM in groups of similar length, each with the largest batch that batch_tokens allows.

    Attributes:
        batch_tokens: Tokens forwarded at once.
        begins: Whether each request begins with a BOS.
        unlike: Whether that is not what lm-eval does by default.
    """

    batch_tokens: int
    begins: bool
    unlike = False
    add_bos_token: bool | None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        if add_special_tokens is not None or not self.unlike:
            return list(super().tok_encode(string, add_special_tokens, **others))
        begin = [self.tokenizer.bos_token_id] * self.begins
        ids = list(super().tok_encode(string, False, **others))
        return ids if ids[:1] == begin else begin + ids

    def tok_batch_encode(self, strings: Sequence[str], *positional: Any, **others: Any) -> Any:
        if not self.unlike:
            return super().tok_batch_encode(strings, *positional, **others)
        bos = str(self.tokenizer.bos_token or "")
        before, self.add_bos_token = self.add_bos_token, False  # the text itself has the BOS, or none
        marked = [text if not self.begins or text.startswith(bos) else bos + text for text in strings]
        try:
            return super().tok_batch_encode(marked, *positional, **others)
        finally:
            self.add_bos_token = before

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty()))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        longest, limit = max(lengths), self.max_length
        if longest > limit + 1:
            log.warning("requests of up to %d tokens lose their beginning: the model takes %d", longest, limit)
        shared = self._share_prompts(requests)
        apart = [index for index in range(len(requests)) if index not in shared]
        ask = super()._loglikelihood_tokens
        answers = self._in_batches(
            [requests[index] for index in apart], [lengths[index] for index in apart],
            lambda part: ask(part, disable_tqdm=disable_tqdm),
        )  # fmt: skip
        shared.update(zip(apart, answers, strict=True))
        return [shared[index] for index in range(len(requests))]

    def _share_prompts(self, requests: Sequence[Any]) -> dict[int, tuple[float, bool]]:
        """Answers, by index, to requests whose prompt, or its beginning, others have too, see `find_shared`."""
        pairs = [(tuple(prompt), answer) for _, prompt, answer in requests]
        window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        found: dict[int, tuple[float, bool]] = {}
        batch = self.batch_tokens
        for shared in find_shared(pairs, longest=self.max_length, window=window, batch_tokens=batch):
            answers = [[pairs[index][1] for index in indices] for indices in shared.requests]
            scores = score_answers(self.model, shared.prompts, answers, batch_tokens=batch, stem=shared.stem)
            for indices, of_prompt in zip(shared.requests, scores, strict=True):
                found.update(zip(indices, of_prompt, strict=True))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        from lm_eval.models.utils import normalize_gen_kwargs

        ask, quiet = super().generate_until, disable_tqdm or not sys.stderr.isatty()
        room = [int(normalize_gen_kwargs(each.args[1], self.max_gen_toks)["max_gen_toks"]) for each in requests]
        lengths = [len(self.tok_encode(each.args[0])) + more for each, more in zip(requests, room, strict=True)]
        if cut := sum(length > self.max_length for length in lengths):
            log.warning("%d prompts lose their beginning: the model takes %d tokens", cut, self.max_length)
        return self._in_batches(requests, lengths, lambda part: ask(part, disable_tqdm=quiet))

    def _in_batches(
        self, requests: Sequence[Any], lengths: Sequence[int], ask: Callable[[list[Any]], list[Any]]
    ) -> list[Any]:
        answers: dict[int, Any] = {}
        for size, group in sorted(groups_by_length(lengths, self.batch_tokens)):
            self.batch_size_per_gpu = size
            answers.update(zip(group, ask([requests[index] for index in group]), strict=True))
        return [answers[index] for index in range(len(requests))]


def groups_by_length(lengths: Sequence[int], batch_tokens: int) -> list[tuple[int, list[int]]]:
    """Groups indices of requests by batch size: a power of two with size * length <= batch_tokens, or 1."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[1 << (max(1, batch_tokens // max(1, length)).bit_length() - 1)].append(index)
    return list(groups.items())
