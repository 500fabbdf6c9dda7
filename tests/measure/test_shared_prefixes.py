"""Answers to one prompt, which passes the model once, against whole sequences that pass it one by one."""

from __future__ import annotations

import pytest
import torch

from ffp.measure import shared_prefixes
from ffp.measure.shared_prefixes import find_shared, score_answers
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


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("batch_tokens", [1, 100])
def test_a_stem_changes_no_score(family, batch_tokens):
    model, stem = pruned(family).model.float(), [91, 92, 93, 94, 95]
    prompts = [[*stem, *prompt] for prompt in PROMPTS[:4]]
    found = score_answers(model, prompts, ANSWERS[:4], batch_tokens=batch_tokens, stem=len(stem))
    for prompt, answers, scores in zip(prompts, ANSWERS, found, strict=False):
        for answer, (likely, greedy) in zip(answers, scores, strict=True):
            expected = apart(model, prompt, answer)
            assert likely == pytest.approx(expected[0], rel=1e-4) and greedy == expected[1]


def test_a_stem_passes_the_model_once():
    model, passed = tiny("llama"), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: passed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompts = [[*range(3, 30), last] for last in range(40, 50)]
    score_answers(model, prompts, [[[1], [2]]] * 10, batch_tokens=100, stem=27)
    assert sum(passed) == 27 + 10


def found(requests, **limits):
    parts = find_shared(requests, **{"longest": 100, "window": None, "batch_tokens": 40, **limits})
    return [(part.stem, part.prompts, part.requests) for part in parts if part.prompts]


def test_a_prompt_is_shared_where_it_saves_a_third():
    long, short = tuple(range(3, 15)), (3,)
    requests = [(long, (5, 6)), (short, (7, 8, 9)), (long, (8,)), (short, (4, 5))]
    assert found(requests) == [(0, [long], [[0, 2]])]
    assert found(requests, longest=13) == []


def test_prompts_with_the_same_beginning_share_it():
    def examples(subject):
        return tuple(range(subject, subject + 20))

    prompts = [(1, 2, *examples(subject), question, 99) for subject in (30, 60) for question in (7, 8, 9)]
    lonely = (1, 2, 55)
    asked = [(prompt, (5,)) for prompt in [*prompts, lonely] for _ in range(2)]
    assert found(asked) == [
        (22, prompts[:3], [[0, 1], [2, 3], [4, 5]]),
        (22, prompts[3:], [[6, 7], [8, 9], [10, 11]]),
        (0, [lonely], [[12, 13]]),
    ]
    apart = [(0, [*prompts, lonely], [[2 * i, 2 * i + 1] for i in range(7)])]
    assert found(asked, window=24) == apart and found(asked, window=25) != apart
    assert found(asked, batch_tokens=45) == apart  # each stem saves 44


def test_a_prompt_that_another_one_begins_with_keeps_a_token_behind_the_stem():
    prompts = [tuple(range(3, 13)), tuple(range(3, 14))]
    assert found([(prompt, (5,)) for prompt in prompts], batch_tokens=8) == [(9, prompts, [[0], [1]])]


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

    def noted(model, prompts, answers, *stem):
        longest = max(map(len, prompts)) + max(len(answer) for of_prompt in answers for answer in of_prompt)
        sizes.append((len(prompts), longest * sum(map(len, answers))))
        return score(model, prompts, answers, *stem)

    monkeypatch.setattr(shared_prefixes, "_score", noted)
    model = tiny("llama")
    found = score_answers(model, PROMPTS, ANSWERS, batch_tokens=batch_tokens)
    alone = [score_answers(model, [p], [a], batch_tokens=1)[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    for scores, expected in zip(found, alone, strict=True):
        assert [likely for likely, _ in scores] == pytest.approx([likely for likely, _ in expected], rel=1e-6)
    assert all(count == 1 or size <= batch_tokens for count, size in sizes)


def test_a_block_without_attention_scores_alike():
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
