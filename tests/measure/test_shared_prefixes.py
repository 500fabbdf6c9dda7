"""Answers to one prompt, which passes the model once, against whole sequences that pass it one by one."""

from __future__ import annotations

import pytest
import torch

from ffp.measure import shared_prefixes
from ffp.measure.shared_prefixes import score_answers
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from tests.helpers.families import CONFIGS, pruned, tiny

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17, 18, 19], list(range(3, 30))]
ANSWERS = [
    [[20, 21], [22], [23, 24, 25, 26]],
    [[30], [31]],
    [[40, 41, 42], [43, 44, 45]],
    [[50, 51], [52, 53]],
    [[60], [61, 62]],
]


def apart(model, prompt, answer):
    """The score of one whole sequence, without a mask, a cache or a batch."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    likely = torch.log_softmax(logits.float(), -1)
    wanted = torch.tensor(answer)
    return float(likely.gather(1, wanted[:, None]).sum()), bool((likely.argmax(-1) == wanted).all())


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_scores_answers_as_whole_sequences(family):
    for model in (tiny(family).float(), pruned(family).model.float()):
        found = score_answers(model, PROMPTS, ANSWERS, batch_tokens=200)
        for prompt, answers, scores in zip(PROMPTS, ANSWERS, found, strict=True):
            for answer, (likely, greedy) in zip(answers, scores, strict=True):
                expected = apart(model, prompt, answer)
                assert likely == pytest.approx(expected[0], rel=1e-4) and greedy == expected[1]


def test_a_likeliest_answer_is_recognised():
    model, prompt = tiny("llama"), PROMPTS[0]
    with torch.no_grad():
        best = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
        after = int(model(torch.tensor([[*prompt, best]])).logits[0, -1].argmax())
    scores = score_answers(model, [prompt], [[[best, after], [best], [best, (after + 1) % 97]]], batch_tokens=64)
    assert [greedy for _, greedy in scores[0]] == [True, True, False]


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_scores_do_not_depend_on_the_batches_and_each_stays_within_its_tokens(batch_tokens, monkeypatch):
    sizes, score = [], shared_prefixes._score

    def noted(model, prompts, answers):
        longest = max(map(len, prompts)) + max(len(answer) for of_prompt in answers for answer in of_prompt)
        sizes.append((len(prompts), longest * sum(map(len, answers))))
        return score(model, prompts, answers)

    monkeypatch.setattr(shared_prefixes, "_score", noted)
    model = tiny("llama")
    found = score_answers(model, PROMPTS, ANSWERS, batch_tokens=batch_tokens)
    alone = [score_answers(model, [p], [a], batch_tokens=1)[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    for scores, expected in zip(found, alone, strict=True):
        assert [likely for likely, _ in scores] == pytest.approx([likely for likely, _ in expected], rel=1e-6)
    assert all(count == 1 or size <= batch_tokens for count, size in sizes)


def test_a_block_without_attention_keeps_nothing_and_scores_alike():
    prunable = PrunableModel(tiny("llama").float(), min_keep=0)
    gone = {
        m.decision.name: range(0 if m.kind == "attention" and m.block == 1 else m.n_indices) for m in prunable.modules
    }
    cut(prunable, gone)
    (scores,) = score_answers(prunable.model, PROMPTS[:1], ANSWERS[:1], batch_tokens=64)
    assert [likely for likely, _ in scores] == pytest.approx(
        [apart(prunable.model, PROMPTS[0], answer)[0] for answer in ANSWERS[0]], rel=1e-4
    )


def test_nothing_asked_is_nothing_answered():
    assert score_answers(tiny("llama"), [], [], batch_tokens=8) == []
