"""Scores equal those of `lm_eval run --model hf` on the saved model, to the digit: examples, generation, templates."""

import json

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ffp
from ffp.assets import fetch_tasks
from ffp.assets.stock import find_stock
from ffp.config import TasksConfig
from ffp.core.errors import ConfigError
from ffp.measure.language_model import language_model
from ffp.measure.task_cost import task_costs
from ffp.measure.tasks import score_tasks
from tests.helpers import tiny
from tests.measure.conftest import character_tokenizer
from tests.measure.slow import WORDS

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
SYSTEM = "Say one word."
MAX_GEN_TOKS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pruned model whose blocks have sizes of their own: in memory, and saved."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3,
    )  # fmt: skip
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    texts = [document["text"] for document in tiny.documents()]
    pruned = ffp.prune(
        LlamaForCausalLM(config).eval(), tokenizer, sparsity=0.4, text=texts, tokens=0, method="owl", evaluate=False,
        calibration={"windows": 4, "context": 64}, min_keep=1,
    )  # fmt: skip
    assert len(set(pruned.allocation.keep.values())) > 2
    folder = tmp_path_factory.mktemp("checkpoint") / "pruned"
    pruned.save(folder)
    return pruned.model, tokenizer, folder


def questions(word, count):
    return [
        {"question": f"{word} {i}{i + 1}?", "choices": [f"a{i}", "b", f"c {i}", "dd"], "answer": i % 4, "subject": "x"}
        for i in range(count)
    ]


def sums(word, count, answers=()):
    found = [{"question": f"{word} {i} and 1{i}", "answer": f"It is\n#### {i}"} for i in range(count)]
    for row, answer in zip(found, answers, strict=False):
        row["answer"] = f"It is\n#### {answer}"
    return found


class Case:
    """A task on local files, as ffp has it and as lm-eval's own YAML."""

    def __init__(self, folder, stock, scored, examples, *, shots, gen_kwargs=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.stock, self.shots, self.gen_kwargs = folder, stock, shots, gen_kwargs
        for name, rows in (("test", scored), ("dev", examples)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ours(self, model, tokenizer, **options):
        fetch_tasks(self.config(), self.folder / "data" / "tasks" / "t")
        options = {"documents": 0, "seed": 0, "batch_tokens": 4096} | options
        return score_tasks(model, tokenizer, self.config(), self.folder / "data" / "tasks" / "t", **options)[self.stock]

    def config(self):
        files = {key: {"kind": "local", "path": str(self.folder / f"{name}.jsonl")}
                 for key, name in (("source", "test"), ("fewshot", "dev"))}  # fmt: skip
        more = {"gen_kwargs": self.gen_kwargs} if self.gen_kwargs else {}
        task = {"stock": self.stock, "reader": "jsonl", "num_fewshot": self.shots, **files, **more}
        return TasksConfig.model_validate({"title": "t", "version": "1", "tasks": {self.stock: task}})

    def theirs(self, checkpoint, **options):
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        files = {"scored": str(self.folder / "test.jsonl"), "solved": str(self.folder / "dev.jsonl")}
        body = {
            "include": str(find_stock(self.stock).path), "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(self.folder / "cache")}, "num_fewshot": self.shots,
            "training_split": None, "validation_split": None, "test_split": "scored", "fewshot_split": "solved",
        }  # fmt: skip
        (self.folder / "yaml").mkdir(exist_ok=True)
        (self.folder / "yaml" / "t.yaml").write_text(yaml.safe_dump(body))
        return simple_evaluate(
            model="hf", model_args={"pretrained": str(checkpoint), "trust_remote_code": True, "dtype": "float32"},
            tasks=[self.stock], batch_size=1, device="cpu", bootstrap_iters=1000, gen_kwargs=self.gen_kwargs,
            task_manager=TaskManager(include_path=str(self.folder / "yaml"), include_defaults=False), **options,
        )  # fmt: skip


def assert_equal(ours, theirs, stock):
    figures = {key: value for key, value in theirs["results"][stock].items() if "," in key and "_stderr," not in key}
    named = {key.removesuffix(",none"): key for key in figures}
    assert ours["metrics"].keys() == named.keys()
    for name, key in named.items():
        metric, _, kept = key.partition(",")
        stderr = theirs["results"][stock][f"{metric}_stderr,{kept}"]
        assert (ours["metrics"][name]["value"], ours["metrics"][name]["stderr"]) == (figures[key], stderr)
    assert ours["num_fewshot"] == theirs["n-shot"][stock]
    assert ours["version"] == theirs["versions"][stock]


@pytest.fixture(scope="module")
def gsm8k(checkpoint, tmp_path_factory):
    """Some answers are what the saved model says, so that scores are neither 0 nor 1."""
    first = Case(tmp_path_factory.mktemp("first"), "gsm8k", sums("Add", 8), sums("Take", 5), shots=3,
                 gen_kwargs={"max_gen_toks": MAX_GEN_TOKS})  # fmt: skip
    samples = [s for s in first.theirs(checkpoint[2])["samples"]["gsm8k"] if s["filter"] == "flexible-extract"]
    said = [sample["filtered_resps"][0] for sample in samples]
    kept = [answer if i % 4 and answer != "[invalid]" else "none" for i, answer in enumerate(said)]
    assert 0 < kept.count("none") < len(kept)
    return Case(tmp_path_factory.mktemp("gsm8k"), "gsm8k", sums("Add", 8, kept), sums("Take", 5), shots=3,
                gen_kwargs={"max_gen_toks": MAX_GEN_TOKS})  # fmt: skip


@pytest.mark.parametrize(("stock", "shots"), [("mmlu_abstract_algebra", 5), ("mmlu_abstract_algebra", 0)])
def test_few_shot_scores_are_those_of_lm_eval(stock, shots, checkpoint, tmp_path, hub_modules):
    model, tokenizer, folder = checkpoint
    case = Case(tmp_path, stock, questions("What", 12), questions("Who", 6), shots=shots)
    ours = case.ours(model, tokenizer)
    assert_equal(ours, case.theirs(folder), stock)
    assert 0 < ours["metrics"]["acc"]["value"] < 1


def test_generated_answers_score_as_in_lm_eval_by_each_filter(checkpoint, gsm8k, hub_modules):
    model, tokenizer, folder = checkpoint
    ours = gsm8k.ours(model, tokenizer)
    assert_equal(ours, gsm8k.theirs(folder), "gsm8k")
    assert list(ours["metrics"]) == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert (
        ours["metrics"]["exact_match,strict-match"]["value"]
        == 0
        < ours["metrics"]["exact_match,flexible-extract"]["value"]
    )
    assert (ours["n"], ours["n_total"]) == (8, 8)
    assert ours == gsm8k.ours(model, tokenizer, batch_tokens=1)  # one document at a time


@pytest.mark.parametrize("multiturn", [True, False])
def test_chats_score_as_in_lm_eval(multiturn, checkpoint, tmp_path, hub_modules):
    model, tokenizer, folder = checkpoint
    case = Case(tmp_path, "mmlu_abstract_algebra", questions("What", 12), questions("Who", 6), shots=2)
    ours = case.ours(model, tokenizer, chat_template=True, system_prompt=SYSTEM, fewshot_as_multiturn=multiturn)
    options = {"apply_chat_template": True, "system_instruction": SYSTEM, "fewshot_as_multiturn": multiturn}
    theirs = case.theirs(folder, **options)
    assert_equal(ours, theirs, "mmlu_abstract_algebra")
    assert ours["hash"] != case.ours(model, tokenizer)["hash"]
    assert "[user]" in theirs["samples"]["mmlu_abstract_algebra"][0]["arguments"][0][0]


def test_a_chat_needs_a_template_and_generation_needs_room(checkpoint, gsm8k):
    model, _, folder = checkpoint
    plain = AutoTokenizer.from_pretrained(folder)
    plain.chat_template = None
    with pytest.raises(ConfigError, match=r"tokenizer has no chat template\. Leave chat_template out"):
        gsm8k.ours(model, plain, chat_template=True)
    tasks = gsm8k.config()
    long = tasks.tasks["gsm8k"].model_copy(update={"gen_kwargs": {"max_gen_toks": 2048}})
    tasks = tasks.model_copy(update={"tasks": {"gsm8k": long}})
    with pytest.raises(
        ConfigError, match=r"'gsm8k' may generate 2048 tokens, and the model takes 2048 with the prompt"
    ):
        score_tasks(model, plain, tasks, gsm8k.folder / "data/tasks/t", documents=0, seed=0, batch_tokens=64)


def test_more_examples_than_there_are_are_refused(checkpoint, tmp_path):
    case = Case(tmp_path, "mmlu_abstract_algebra", questions("What", 4), questions("Who", 2), shots=3)
    with pytest.raises(ConfigError, match=r"has 2 examples to draw 3 from\. Set num_fewshot to 2 or less"):
        case.ours(*checkpoint[:2])


def test_costs_count_documents_requests_and_tokens(checkpoint, gsm8k, tmp_path):
    _, tokenizer, _ = checkpoint
    case = Case(tmp_path, "mmlu_abstract_algebra", questions("What", 12), questions("Who", 6), shots=0)
    fetch_tasks(case.config(), tmp_path / "data" / "tasks" / "t")
    found = task_costs(case.config(), tmp_path / "data/tasks/t", tokenizer, documents=6, seed=0)
    cost = found["mmlu_abstract_algebra"]
    assert (cost.shots, cost.documents, cost.requests) == (0, 6, 24)
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    prompts = [f"{head}{q['question']}\nA. {q['choices'][0]}\nB. b\nC. {q['choices'][2]}\nD. dd\nAnswer: A"
               for q in questions("What", 12)]  # fmt: skip
    least, most = (4 * 6 * pick(map(len, prompts)) for pick in (min, max))
    assert least <= cost.tokens <= most
    gsm8k.ours(*checkpoint[:2])
    found = task_costs(gsm8k.config(), gsm8k.folder / "data/tasks/t", tokenizer, documents=0, seed=0)["gsm8k"]
    assert (found.shots, found.documents, found.requests) == (3, 8, 8) and found.tokens > 8 * MAX_GEN_TOKS


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("begins", [True, False])
def test_prompts_begin_with_a_bos_as_asked_also_where_a_task_generates(begins, adds, checkpoint):
    tokenizer = character_tokenizer()
    tokenizer.bos_token = "</s>"
    if adds:
        tokenizer = tiny.with_bos(tokenizer, "</s>")
    lm = language_model(checkpoint[0], tokenizer, 64, begins=begins)
    ids, _ = lm.tok_batch_encode(["abc", "d"])
    begin = [tokenizer.bos_token_id] * begins
    assert ids[0].tolist() == lm.tok_encode("abc") == begin + tokenizer.convert_tokens_to_ids(list("abc"))
    marked = lm.tok_batch_encode(["</s>abc"])[0][0].tolist()
    assert marked == lm.tok_encode("</s>abc") and marked.count(tokenizer.bos_token_id) == 1
