"""`ffp prune` on the command line: every kind of model, the end that it prints, kills, and inputs that are refused."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from ffp.cli import main
from ffp.store.files import sha256
from tests.helpers import arc, tiny
from tests.helpers import hub as hubs

SIZES = ("--context", "64", "--calibration-tokens", "512", "--threads", "1")


def prune(model: str, *words: str, text: str = "docs.jsonl") -> int:
    return main(["prune", model, "--sparsity", "0.3", "--text", text, "--tokens", "0", *SIZES, *words])


def test_the_end_says_what_came_out_and_how_to_go_on(folder, capsys, hub_modules):
    assert prune("tiny", "--out", "small", text="docs") == 0
    printed = capsys.readouterr().out
    for row in ("perplexity", "parameters", "weights", "prompt of", "one token more", "Saved in small"):
        assert row in printed
    lines = [line.strip() for line in printed.splitlines()]
    start = lines.index("from transformers import AutoModelForCausalLM, AutoTokenizer")
    found: dict[str, object] = {}
    exec("\n".join(lines[start : start + 3]), found)
    assert found["model"].num_parameters() < 40_000
    again = next(line for line in lines if line.startswith("ffp prune tiny --sparsity 0.3"))
    assert main([*shlex.split(again)[1:-1], "again"]) == 0
    assert sha256(folder / "again/model.safetensors") == sha256(folder / "small/model.safetensors")
    assert again in (folder / "small/README.md").read_text()
    assert not list(folder.glob(".small*"))


def test_units_in_another_order_and_a_compensated_search_are_printed_and_repeat(folder, capsys):
    words = ("--method", "fisher-table", "--score", "pairwise", "--compensated-search", "--tokens", "1024")
    assert prune("tiny", *words, "--no-evaluate", "--out", "small", text="docs") == 0
    again = next(line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ffp prune tiny"))
    assert "--score pairwise" in again and "--compensated-search" in again
    assert main([*shlex.split(again)[1:-1], "again"]) == 0
    assert sha256(folder / "again/model.safetensors") == sha256(folder / "small/model.safetensors")


def test_the_command_for_single_weights_is_accepted_again(folder, capsys):
    tiny_yaml = folder / "config/models/tiny.yaml"
    tiny_yaml.write_text(f"{tiny_yaml.read_text()}align: 8\n")
    words = ("--granularity", "unstructured", "--pruner", "wanda", "--no-evaluate", "--out", "small")
    assert prune("tiny", *words, text="docs") == 0
    again = next(line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ffp prune tiny"))
    assert main([*shlex.split(again)[1:-1], "again"]) == 0, capsys.readouterr().err
    assert sha256(folder / "again/model.safetensors") == sha256(folder / "small/model.safetensors")


def test_tasks_of_lm_eval_are_scored_before_and_after(folder, hub, tmp_path, monkeypatch, capsys):
    arc.push(hub, tmp_path / "arc-data", "Which", monkeypatch)
    words = ("--tasks", "ai2_arc", "--num-fewshot", "1", "--documents", "2", "--out", "small")
    assert prune("tiny", *words) == 0
    printed = capsys.readouterr().out
    for name in ("arc_easy", "arc_challenge"):
        row = next(line for line in printed.splitlines() if line.startswith(name))
        assert row.endswith("acc_norm, 1-shot, 2 documents") and row.count("±") == 2
    again = next(line.strip() for line in printed.splitlines() if line.startswith("  ffp prune tiny"))
    assert "--tasks ai2_arc --num-fewshot 1 --documents 2" in again
    assert "| arc_easy, acc_norm, 1-shot, 2 of 3 documents |" in (folder / "small/README.md").read_text()


def test_json_has_every_figure(folder, capsys):
    assert prune("source", "--out", "small", "--json", "--no-evaluate") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["settings"]["method"]["use"] == "ffn-only"
    assert figures["dense"]["perplexity"] is None
    assert figures["params"]["kept"] < figures["params"]["dense"]


@pytest.mark.fault
@pytest.mark.parametrize("short", ["load_model", "measure_speed"])
def test_where_both_models_have_no_memory_all_other_figures_are_kept(short, folder, capsys, caplog, monkeypatch):
    """What torch really raises where a petabyte cannot be had, as the dense model is loaded again or both run."""
    import torch

    from ffp.models.checkpoint import load_model

    def petabyte(*_):
        return torch.empty(1 << 50)

    loads = iter([load_model, petabyte])
    if short == "load_model":
        monkeypatch.setattr("ffp.pipeline.command.load_model", lambda *given: next(loads)(*given))
    else:
        monkeypatch.setattr("ffp.pipeline.result.measure_speed", petabyte)
    assert prune("tiny", "--out", "small", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["dense"]["speed"] is None and figures["pruned"]["perplexity"]["value"] > 1
    assert "the models were not timed: there is no memory for both" in caplog.text


@pytest.mark.fault
def test_a_sound_model_that_memory_is_too_small_for_is_not_called_damaged(folder, capsys, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: torch.empty(1 << 50))
    assert prune("source", "--out", "small") == 2
    assert capsys.readouterr().err.startswith("ffp prune: out of memory. Lower batch_tokens")


def test_a_repository_of_the_hub_is_pruned_at_the_commit_that_was_found(folder, tmp_path_factory, monkeypatch, caplog):
    with hubs.serve() as served:
        hubs.use(served.url, tmp_path_factory.mktemp("home"), monkeypatch)
        commit = served.push("org/tiny", folder / "source")
        caplog.set_level("INFO")
        assert prune("org/tiny", "--out", "small") == 0
        assert f"org/tiny is at commit {commit}" in caplog.text
        card = (folder / "small/README.md").read_text()
        assert f"org/tiny at revision {commit}" in card
        assert f"ffp prune org/tiny@{commit} " in card
        assert prune(f"org/tiny@{commit[:0]}main", "--out", "small-2") == 0
        assert sha256(folder / "small/model.safetensors") == sha256(folder / "small-2/model.safetensors")


def test_a_local_folder_and_a_name_give_the_same_weights(folder):
    batch = ("--batch-tokens", "256")  # the sums of other batches differ in their last bits
    (folder / "b").symlink_to("another-disk")
    assert prune("source", "--out", "a", *batch) == prune("tiny", "--out", "b", *batch) == 0
    assert (folder / "b").is_symlink() and (folder / "another-disk/ffp.json").is_file()
    assert sha256(folder / "a/model.safetensors") == sha256(folder / "b/model.safetensors")
    assert not (folder / "data/models/source").exists()  # a folder is pruned where it lies


def test_a_bfloat16_checkpoint_stays_one(folder):
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained("source", dtype=torch.bfloat16).save_pretrained("bf16")
    for file in (folder / "source").glob("tokenizer*"):
        shutil.copy(file, "bf16")
    assert prune("bf16", "--out", "small") == 0
    with safe_open("small/model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in list(file.keys())} == {torch.bfloat16}
    assert Path("small/model.safetensors").stat().st_size < Path("bf16/model.safetensors").stat().st_size


def test_a_killed_search_goes_on_and_ends_as_an_undisturbed_one(folder):
    def searching() -> bool:
        return any(len(path.read_bytes().splitlines()) > 20 for path in folder.glob(".small.work-*/journal.txt"))

    words = ["ffp.cli", "prune", "tiny", "--sparsity", "0.3", "--text", "docs", "--tokens", "19200", *SIZES]
    assert "resuming: " in tiny.kill_and_run_again(folder, words, searching)


@pytest.mark.fault
def test_a_killed_run_begins_anew_where_a_file_of_the_method_was_edited(folder, capsys, monkeypatch):
    """Nothing that was measured of the old file's model stands beside the new one's."""
    words = ("--method", "import", "--param", "file=ratios.txt", "--json")

    def figures(ratios: str) -> tuple[list[int], float]:
        (folder / "ratios.txt").write_text(ratios)
        capsys.readouterr()
        assert prune("tiny", *words, "--out", "small", "--yes") == 0
        found = json.loads(capsys.readouterr().out)
        return found["keep"], found["pruned"]["perplexity"]["value"]

    undisturbed = figures("0.5 0.3 0.1")
    (folder / "ratios.txt").write_text("0.1 0.3 0.5")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("ffp.pipeline.result.Pruned.save", lambda *_, **__: 1 / 0)
        prune("tiny", *words, "--out", "small", "--yes")
    assert list(folder.glob(".small.work-*/pruned.json"))
    assert figures("0.5 0.3 0.1") == undisturbed


def test_what_runs_with_other_options_left_is_named_and_kept(folder, caplog):
    left = [folder / f".small[1].work-{name}" for name in ("a", "b")]
    for each in left:
        each.mkdir()
        (each / "grams.safetensors").write_bytes(bytes(2_500_000))
    (folder / ".small[1].work-c").write_text("no folder")
    (folder / ".small1.work-d").mkdir()  # of another --out
    assert prune("tiny", "--method", "owl", "--out", "small[1]", "--no-evaluate") == 0
    lines = [record.getMessage() for record in caplog.records if "other options" in record.getMessage()]
    named = ", ".join(f"{each} (2.5 MB)" for each in left)
    assert (
        lines
        == [f"runs with other options that did not end left {named}: delete them if you don't go on with them"] * 2
    )  # when it begins and when it ends
    assert all(each.is_dir() for each in left) and not list(folder.glob(".small[[]1].work-*/stats*"))


@pytest.fixture
def no_search(monkeypatch):
    """Fails the test when a search begins."""
    monkeypatch.setattr("ffp.api.allocate", lambda *_, **__: pytest.fail("the search began"))


def refused(capsys, *words: str, code: int = 2) -> str:
    """The one line by which `ffp prune` refuses."""
    assert prune(*words, "--out", "refused") == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert not Path("refused").exists()
    return lines[0]


@pytest.mark.bad_input
def test_a_checkpoint_that_ffp_pruned_is_refused(folder, capsys):
    assert prune("tiny", "--method", "owl", "--out", "small", "--no-evaluate") == 0
    capsys.readouterr()
    assert "pruned" in refused(capsys, "small")


@pytest.mark.bad_input
def test_a_quantised_model_is_refused(folder, capsys):
    file = folder / "source/config.json"
    packed = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": packed}))
    assert refused(capsys, "tiny").endswith(
        "is quantised (gptq). Prune the model that it was made from, and quantise the result."
    )


def test_an_ordinary_checkpoint_is_pruned_again(folder):
    words = ("--method", "uniform", "--param", "equal=true", "--no-evaluate")
    assert prune("tiny", *words, "--out", "once") == 0
    assert not (folder / "once" / "modeling_pruned.py").exists()
    assert prune("once", *words, "--out", "twice") == 0
    sizes = [json.loads((folder / name / "config.json").read_text())["intermediate_size"] for name in ("once", "twice")]
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize("quantize", ["F32", "Q8_0"])
def test_a_gguf_is_written_with_the_models_tokenizer(folder, capsys, quantize):
    words = ("--no-evaluate", "--format", "gguf", "--quantize", quantize)
    assert prune("tiny", "--method", "owl", "--out", "small", *words) == 0
    printed = capsys.readouterr().out
    assert f"llama-cli -m small/model-{quantize}.gguf" in printed
    assert f"--format gguf --quantize {quantize}" in printed
    assert (folder / "small" / f"model-{quantize}.gguf").is_file()
    assert "is a model that ffp pruned, and is not pruned again" in refused(capsys, f"small/model-{quantize}.gguf")
    assert prune("tiny", "--out", "other", "--format", "transformers", "--quantize", quantize) == 2
    assert "the format transformers has no option 'quantize'" in capsys.readouterr().err


@pytest.mark.bad_input
def test_biases_that_a_format_cannot_hold_are_refused_before_the_search(folder, capsys, no_search):
    line = refused(capsys, "tiny", "--compensate", "bias", "--format", "dense-shape")
    assert "dense-shape has no place for in a llama model. Compensate by ridge" in line


def test_whole_blocks_go_and_the_checkpoint_is_shorter(folder, hub_modules):
    words = ("--method", "shortgpt", "--min-keep", "0", "--no-evaluate", "--out", "small")
    assert main(["prune", "tiny", "--sparsity", "0.5", "--text", "docs.jsonl", "--tokens", "0", *SIZES, *words]) == 0
    before, after = (json.loads((folder / name / "config.json").read_text()) for name in ("source", "small"))
    assert after["num_hidden_layers"] < before["num_hidden_layers"]


@pytest.mark.bad_input
def test_a_gated_repository_is_refused_with_the_login(folder, capsys, tmp_path_factory, monkeypatch):
    with hubs.serve() as served:
        hubs.use(served.url, tmp_path_factory.mktemp("home"), monkeypatch)
        served.push("org/tiny", folder / "source")
        served.gated.add("org/tiny")
        assert "hf auth login" in refused(capsys, "org/tiny")
        assert "no repository org/nothing" in refused(capsys, "org/nothing")


@pytest.mark.bad_input
def test_numbers_that_overflow_are_refused_before_the_search(folder, capsys, no_search):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("source")
    model.model.layers[1].mlp.down_proj.weight.data *= 3e5
    model.to(torch.float16).save_pretrained("half")
    for file in (folder / "source").glob("tokenizer*"):
        shutil.copy(file, "half")
    assert "overflow in float16" in refused(capsys, "half")


@pytest.mark.bad_input
def test_a_token_that_the_model_lacks_is_refused_before_the_search(folder, capsys, no_search):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("source")
    tokenizer.add_tokens(["Return"])
    tokenizer.save_pretrained("source")
    assert "its tokenizer has tokens that the model lacks" in refused(capsys, "source")


@pytest.mark.bad_input
def test_an_encoder_is_refused_before_its_tokenizer_is_read(folder, capsys, no_search):
    (folder / "source/config.json").write_text('{"model_type": "t5"}')
    (folder / "source/tokenizer.json").write_text("{}")
    assert "model family 't5' is no causal language model" in refused(capsys, "source")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b'{"model": 3}'), ("tokenizer_config.json", b'{"tokenizer_class": 7}')]
    + [
        (name, each) for name in ("tokenizer.json", "tokenizer_config.json") for each in (b"{", b"[]", b"null", b"\xff")
    ],
)
def test_a_damaged_tokenizer_is_one_line(name, content, folder, capsys, no_search):
    (folder / "source" / name).write_bytes(content)
    assert "tokenizer in source cannot be loaded: " in refused(capsys, "source", code=3)


@pytest.mark.bad_input
def test_a_short_test_text_is_refused_before_the_search(folder, capsys, no_search):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("source")
    ids = [tokenizer(document["text"])["input_ids"][:90] for document in tiny.documents()[:4]]
    short = [json.dumps({"text": tokenizer.decode(each)}) for each in ids]  # a window of 64 each, and none of 128
    (folder / "short.jsonl").write_text("\n".join(short) + "\n")
    assert (
        main(["prune", "tiny", "--sparsity", "0.3", "--text", "short.jsonl", "--tokens", "0", *SIZES, "--out", "s"])
        == 2
    )
    assert "the test text (short.jsonl) has " in (line := capsys.readouterr().err) and "0 windows of 128" in line


def test_a_folder_is_replaced_only_where_asked_and_where_ffp_wrote_it(folder, capsys):
    assert prune("tiny", "--out", "small", "--no-evaluate") == 0
    assert prune("tiny", "--out", "small", "--no-evaluate") == 2
    assert "small exists and is not overwritten. Give another --out" in capsys.readouterr().err
    assert prune("tiny", "--out", "small", "--no-evaluate", "--yes", "--format", "dense-shape") == 0
    assert not (folder / "small/modeling_pruned.py").exists()
    (folder / "mine").mkdir()
    assert prune("tiny", "--out", "mine", "--yes") == 2
    assert "was not written by ffp" in capsys.readouterr().err


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("out", "held"),
    [(".", "/"), ("", "/"), ("..", "/"), ("/", "/"), ("new/..", "/"), ("mine", "mine/model"), ("mine/model", "mine/m"),
     ("texts", "texts/docs.jsonl"), ("data", "data")],
)  # fmt: skip
def test_a_folder_that_the_run_reads_is_not_replaced(out, held, folder, capsys, no_search, monkeypatch):
    """Each of these folders looks as if ffp had written it."""
    shutil.copytree("source", "mine/model")
    for name in ("texts", "data"):
        (folder / name).mkdir()
    shutil.copy("docs.jsonl", "texts")
    for name in (".", "mine", "mine/model", "texts", "data"):
        (folder / name / "ffp.json").write_text("{}")
    before = sorted(folder.rglob("*"))
    assert prune("mine/model", "--out", out, "--yes", "--data", "data", text="texts/docs.jsonl") == 2
    lines = capsys.readouterr().err.splitlines()
    shown = out or "."
    assert len(lines) == 1 and f"{shown} would be replaced as a whole, but {held}" in lines[0], lines
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_says_what_it_would_do_and_makes_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert prune("source", "--out", "new/folder/small", "--dry-run") == 0
    printed = capsys.readouterr().out
    for part in ("ffn-only", "3 blocks", "memory", "disk", "tokens"):
        assert part in printed, printed
    assert "warning" not in printed
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_warns_of_a_budget_that_pays_for_no_step(folder, capsys):
    assert prune("source", "--out", "small", "--dry-run", "--method", "fisher-table", "--tokens", "64") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "warning: 64 tokens are too few for fisher-table to search: it answers with what it starts from, or as a "
        "simpler method does. Give it at least 192 tokens (3 evaluations)."
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "words", [("--align", "7"), ("--format", "gguf", "--quantize", "Q3_X"), ("--format", "gguf", "--pad", "0")]
)
def test_options_that_no_model_can_have_are_refused_before_it_is_fetched(words, folder, capsys, monkeypatch):
    monkeypatch.setattr("ffp.pipeline.models.fetch_model", lambda *_, **__: pytest.fail("a model was fetched"))
    assert prune("tiny", "--out", "small", *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_longest_context_that_an_error_names_works(folder, capsys):
    for words in (("64",), ("128", "--no-evaluate")):
        assert prune("tiny", "--out", "small", "--dry-run", "--context", *words) == 0, capsys.readouterr().err


NOWHERE = ("./nothere", "../nothere", "./nothere.gguf", "mine/nothere.gguf", "/abs/nothere", "~/nothere", "")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing/here/at/all",), "is no folder, no ORG/NAME of the hub, and no known model: known: "),
        *(((path,), f"model {path!r} is no folder and no file. Give") for path in NOWHERE),
        (("./docs.jsonl",), "model './docs.jsonl' is a file that is no .gguf. Give a folder"),
        (("tyni",), "and no known model: did you mean tiny"),
        (("tiny", "--text", "nothing.jsonl"), "--text docs is a text of `ffp list texts`, which stands alone"),
        (("tiny", "--text", "nothing"), "--text docs is a text"),
        (("tiny", "--param", "strength"), "--param 'strength' is not NAME=VALUE"),
        (("tiny", "--param", "strength=["), "has a value that is no YAML"),
        (("tiny", "--tasks", "dmeo"), "no set of tasks and no task of lm-eval is called 'dmeo': did you mean demo"),
        (("tiny", "--context", "66"), "--context 66 is too long, since test windows have 132 tokens: the model knows"),
        (("tiny", "--context", "128"), "in its config.json). Lower it to 64 or less, or add --no-evaluate."),
        (("tiny", "--context", "129"), "--context 129 is too long: the model knows 128 positions (max_position_embed"),
        (("tiny", "--context", "129", "--no-evaluate"), "in its config.json). Lower it to 128 or less."),
        (("tiny", "--align", "7"), "align"),
        (("tiny", "--keep-blocks", "9"), "9"),
        (("tiny", "--method", "2ssp"), "has to keep 1 of 2 units. Set min_keep: 0 for the model, or take another"),
        (("tiny", "--out", "/proc/small"), "/proc"),
        (("tiny", "--compensated-search", "--compensate", "bias"), "a compensated search needs a method that searches"),
        (
            ("tiny", "--method", "grasprune", "--compensated-search"),
            "a compensated search has no effect with grasprune, which scores gates on units alone",
        ),
        (("tiny", "--granularity", "unstructured", "--score", "obs"), "serves structured pruning only"),
        (("tiny", "--calibration-tokens", "10"), "--context 64 is not from 2 to --calibration-tokens 10"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_the_search(words, message, folder, capsys, monkeypatch):
    monkeypatch.setattr("ffp.api.calibrate", lambda *_, **__: pytest.fail("a token was spent"))
    assert main(["prune", "--sparsity", "0.3", "--text", "docs", *SIZES, "--out", "small", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert not (folder / "small").exists()
