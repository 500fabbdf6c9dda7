"""Zero-shot tasks: real lm-eval on a tiny random model."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ffp.config import TasksConfig
from ffp.core.errors import ArtifactError, ConfigError
from ffp.measure import tasks
from ffp.measure.language_model import groups_by_length, language_model
from ffp.measure.task_loading import load_tasks, merged
from ffp.pipeline.verify_tasks import task_faults
from ffp.store.task_scores import TaskScores
from tests.measure.slow import slow_losses

SOURCE = {"kind": "local", "path": "nowhere"}


def test_documents_are_sampled_by_seed_and_task_alone():
    first = tasks.sample_documents("piqa", 1000, documents=32, seed=0)
    assert first == tasks.sample_documents("piqa", 1000, documents=32, seed=0) == sorted(set(first))
    assert len(first) == 32 and first[0] >= 0 and first[-1] < 1000
    assert first != tasks.sample_documents("piqa", 1000, documents=32, seed=1)
    assert first != tasks.sample_documents("boolq", 1000, documents=32, seed=0)
    assert tasks.sample_documents("piqa", 5, documents=0, seed=0) == list(range(5))
    assert tasks.sample_documents("piqa", 5, documents=9, seed=0) == list(range(5))


def test_batches_stay_below_the_token_limit_and_lose_no_request():
    lengths = [1, 7, 8, 9, 100, 101, 4000, 33]
    groups = groups_by_length(lengths, 100)
    assert sorted(i for _, group in groups for i in group) == list(range(len(lengths)))
    for size, group in groups:
        assert all(size * lengths[i] <= 100 < 2 * size * lengths[i] or (size == 1 and lengths[i] > 50) for i in group)


def tasks_config(*names):
    tasks = {name: {"stock": stock, "source": SOURCE, "reader": "jsonl"} for name, stock in names}
    return TasksConfig(title="Tiny", version="1", tasks=tasks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six documents of a test-split task, a validation-split task, and one with functions in its YAML."""
    out = tmp_path_factory.mktemp("tasks")
    arc = [
        {"id": str(i), "question": f"What is {i}?", "answerKey": "AB"[i % 2],
         "choices": {"text": ["yes sir", "no", "maybe so"], "label": ["A", "B", "C"]}} for i in range(6)
    ]  # fmt: skip
    piqa = [{"goal": f"Open door {i}", "sol1": "push", "sol2": "pull it twice", "label": i % 2} for i in range(6)]
    wino = [
        {
            "sentence": f"Ann met Bob {i} because _ was late.",
            "option1": "Ann",
            "option2": "Bob",
            "answer": str(1 + i % 2),
        }
        for i in range(6)
    ]
    for name, rows in (("my_arc", arc), ("piqa", piqa), ("winogrande", wino)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def choice_scores(model, tokenizer, context, choices):
    """Log-likelihood of each continuation given the context, one forward each."""
    scores = []
    for choice in choices:
        ids = tokenizer(f"{context} {choice}", add_special_tokens=False, return_tensors="pt")["input_ids"]
        count = len(choice) + 1
        scores.append(-slow_losses(model, ids)[0, -count:].sum())
    return np.array(scores)


def test_tasks_equal_a_loop_over_documents_and_choices(model, tokenizer, folder):
    cfg = tasks_config(("my_arc", "arc_easy"), ("piqa", "piqa"), ("winogrande", "winogrande"))
    found = tasks.score_tasks(model, tokenizer, cfg, folder, documents=0, seed=0, batch_tokens=100)
    assert list(found) == ["my_arc", "piqa", "winogrande"]
    rows = [json.loads(line) for line in (folder / "my_arc.jsonl").read_text().splitlines()]
    right, right_norm = [], []
    for row in rows:
        choices, gold = row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])
        scores = choice_scores(model, tokenizer, f"Question: {row['question']}\nAnswer:", choices)
        right.append(scores.argmax() == gold)
        right_norm.append((scores / [len(choice) for choice in choices]).argmax() == gold)
    metrics = found["my_arc"]["metrics"]
    assert metrics["acc"]["value"] == pytest.approx(np.mean(right))
    assert metrics["acc_norm"]["value"] == pytest.approx(np.mean(right_norm))
    assert metrics["acc"]["stderr"] == pytest.approx(np.std(right, ddof=1) / 6**0.5)
    assert found["my_arc"]["n"] == found["my_arc"]["n_total"] == 6
    assert set(found["winogrande"]["metrics"]) == {"acc"}
    json.dumps(found, allow_nan=False)


def test_a_sample_of_documents_has_its_own_hash(model, tokenizer, folder):
    cfg = tasks_config(("piqa", "piqa"))

    def score(**options):
        return tasks.score_tasks(model, tokenizer, cfg, folder, batch_tokens=64, **options)["piqa"]

    first = score(documents=3, seed=0)
    assert (first["n"], first["n_total"]) == (3, 6)
    assert first == score(documents=3, seed=0)
    assert first["hash"] != score(documents=3, seed=1)["hash"]
    assert score(documents=1, seed=0)["metrics"]["acc"]["stderr"] is None


def test_right_and_wrong_documents_count_where_their_mean_is_the_score(model, tokenizer, folder, monkeypatch):
    """tinyBenchmarks estimate the accuracy on a whole benchmark from 100 documents that are right or wrong."""
    from lm_eval.api.task import ConfigurableTask

    def estimate(items):
        return 0.9 * sum(items) / len(items) + 0.0137

    aggregation = ConfigurableTask.aggregation
    monkeypatch.setattr(ConfigurableTask, "aggregation", lambda self: aggregation(self) | {"acc_norm": estimate})
    cfg = tasks_config(("piqa", "piqa"))
    found = tasks.score_tasks(model, tokenizer, cfg, folder, documents=0, seed=0, batch_tokens=64)["piqa"]
    metrics = found["metrics"]
    assert metrics["acc"]["counts"] and not metrics["acc_norm"]["counts"]
    assert metrics["acc_norm"]["stderr"] is None
    assert not list(task_faults("piqa", TaskScores.model_validate(found)))


def test_a_model_with_blocks_of_different_sizes_is_scored(model, tokenizer, folder):
    mlp, keep = model.model.layers[0].mlp, 10
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight = torch.nn.Parameter(linear.weight[:keep].clone())
    mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :keep].clone())
    attention = model.model.layers[1].self_attn
    width = attention.head_dim
    attention.k_proj.weight = torch.nn.Parameter(attention.k_proj.weight[:width].clone())
    attention.v_proj.weight = torch.nn.Parameter(attention.v_proj.weight[:width].clone())
    attention.q_proj.weight = torch.nn.Parameter(attention.q_proj.weight[: 2 * width].clone())
    attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, : 2 * width].clone())
    found = tasks.score_tasks(
        model, tokenizer, tasks_config(("piqa", "piqa")), folder, documents=0, seed=0, batch_tokens=64
    )
    assert 0 <= found["piqa"]["metrics"]["acc_norm"]["value"] <= 1


def test_tasks_of_one_name_are_refused(folder, tmp_path):
    """As a group may define one of its own: lm-eval would keep the last one in silence."""
    scratch = [tmp_path / name for name in "ab"]
    for each in scratch:
        each.mkdir()
    loaded = [load_tasks(tasks_config(("piqa", "piqa")), folder, each) for each in scratch]
    with pytest.raises(ConfigError, match="the task 'piqa' is asked twice"):
        merged({"piqa": loaded[0].entries["piqa"], "few": loaded[1].entries["piqa"]})


def test_errors_name_the_task_and_the_remedy(model, tokenizer, folder, tmp_path):
    def score(name, stock, where=folder):
        tasks.score_tasks(model, tokenizer, tasks_config((name, stock)), where, documents=0, seed=0, batch_tokens=64)

    with pytest.raises(ConfigError, match=r"task 'x': lm-eval has no stock task 'arc_esay': did you mean .*arc_easy"):
        score("x", "arc_esay")
    with pytest.raises(ConfigError, match=r"task 'x' is 5-shot, and its source has one split, .* as fewshot, or"):
        score("x", "gsm8k")
    with pytest.raises(ArtifactError, match=r"boolq\.jsonl is missing\. Run the rule"):
        score("boolq", "boolq")
    (tmp_path / "piqa.jsonl").write_text("not json\n")
    with pytest.raises(ArtifactError, match=r"tasks piqa in .* cannot be read by lm-eval"):
        score("piqa", "piqa", tmp_path)


def test_importing_the_tasks_module_does_not_import_lm_eval():
    code = "import sys, ffp.measure.tasks; sys.exit('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_long_prompts_are_shared_and_short_ones_are_not(model, tokenizer, monkeypatch):
    shared = []
    monkeypatch.setattr(
        "ffp.measure.language_model.score_answers",
        lambda model, prompts, answers, batch_tokens, stem: (
            shared.append([*zip(prompts, answers, strict=True)])
            or [[(0.5, True)] * len(of_prompt) for of_prompt in answers]
        ),
    )
    long, short = list(range(3, 15)), [3]
    asked = [(("", ""), long, [5, 6]), (("", ""), short, [7, 8, 9]), (("", ""), long, [8]), (("", ""), short, [4, 5])]
    found = language_model(model, tokenizer, 64, begins=False)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert shared == [[(tuple(long), [[5, 6], [8]])]]
    assert found[0] == found[2] == (0.5, True) and found[1][0] < 0 and found[3][0] < 0
