"""`ffp.prune` and `ffp.allocate` in memory: the same result as a grid's cell, any text, a copy or the model itself."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ffp
from ffp import api
from ffp.allocators import create
from ffp.allocators.base import Heuristic, SearchBudget
from ffp.config import Experiment
from ffp.core import projection
from ffp.core.errors import AssetError, BudgetError, ConfigError
from ffp.models.checkpoint import load_model, load_tokenizer
from ffp.models.formats import Transformers
from ffp.models.prunable import PrunableModel
from ffp.pipeline.export import export
from ffp.pruning.cuts import StructuredCut
from ffp.store import schemas
from ffp.store.documents import read_documents
from ffp.store.layout import SPLITS, ExportFiles, Layout
from tests.helpers.families import tiny

SMALL = {"calibration": {"windows": 4, "context": 64}, "evaluation": {"windows": 4, "context": 64},
         "search": {"context": 64, "windows": 8, "selection_windows": 4, "evaluations": 12,
                    "windows_per_evaluation": 2, "finalists": 2, "checkpoints": [1.0]}}  # fmt: skip


ON_META = tiny("llama").to("meta")


@pytest.mark.parametrize("method", ["owl", "fastforward-guided"])
def test_a_grids_cell_with_the_same_settings_has_equal_allocations_and_weights(
    method, tiny_grid, tmp_path, monkeypatch
):
    monkeypatch.chdir(tiny_grid)
    experiment = Experiment(Path("config/grid.yaml"))
    layout, grid = Layout.from_grid(experiment.grid), experiment.grid
    cell = next(cell for cell in experiment.cells(dense=False) if cell.method == method)
    config = experiment.models[cell.model]
    torch.set_num_threads(config.resources.threads)
    folder, documents = layout.model(cell.model).folder, layout.text(grid.text).documents
    model, tokenizer = load_model(folder, config), load_tokenizer(folder)
    pruned = ffp.prune(
        model, tokenizer, sparsity=float(cell.sparsity), method=method, seed=cell.seed,
        compensate=experiment.compensation(method), params=experiment.parameters(method),
        text={name: read_documents(documents(name)) for name in SPLITS}, batch_tokens=config.batch_tokens,
        calibration=grid.calibration, search=grid.search, evaluation=grid.evaluation,
    )  # fmt: skip
    files = layout.cell(cell)
    assert schemas.AllocationFile.read(files.allocation).keep == pruned.allocation.allocation.keep
    scores = schemas.ScoresFile.read(files.scores)
    assert scores.ppl.value == pruned.pruned.ppl["value"]
    assert (scores.params.dense, scores.params.kept) == (pruned.removed.dense_params, pruned.removed.kept_params)
    export(experiment, cell, folder, files.folder, tmp_path / "exported", format=Transformers())
    exported, ours = ffp.load_pruned(tmp_path / "exported").state_dict(), pruned.model.state_dict()
    assert exported.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in exported.items())


@pytest.mark.parametrize(
    "asked",
    [
        {"keep_blocks": "0", "align": 2, "params": {"start": "ffn-only"}},
        {"method": "ffn-only", "min_keep": 2, "dense_shape": True},
        {"method": "uniform", "granularity": "unstructured"},
    ],
    ids=["by default", "heuristic", "single weights"],
)
def test_the_call_in_the_model_card_makes_the_same_model_again(asked, loaded, texts, tmp_path, hub_modules):
    model, tokenizer = loaded
    first = ffp.prune(model, tokenizer, sparsity=0.3125, text=texts, in_place=False, **asked, **SMALL)
    card = ExportFiles(first.save(tmp_path / "small")).card.read_text()
    assert ("Blocks that lose nothing: 0." in card) == ("keep_blocks" in asked)
    call = next(line for line in card.splitlines() if line.startswith("ffp.prune("))
    call = call.replace("text=...", "text=texts, in_place=False, evaluate=False")
    again = eval(call, {"ffp": ffp, "model": model, "tokenizer": tokenizer, "texts": texts})
    ours, theirs = first.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_refused_search_leaves_the_model_as_it_was(loaded, texts):
    model, tokenizer = loaded
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BudgetError):
        ffp.allocate(model, tokenizer, sparsity=0.999, text=texts, method="fastforward-guided", **SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("granularity", ["structured", "unstructured", "n-of-4"])
def test_what_is_saved_loads_in_transformers_and_answers_alike(granularity, loaded, texts, tmp_path, hub_modules):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = loaded
    pruned = ffp.prune(model, tokenizer, sparsity=0.3, text=texts, tokens=0, granularity=granularity, **SMALL)
    folder = pruned.save(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = AutoTokenizer.from_pretrained(folder)("Return a new list.", return_tensors="pt").input_ids
    assert torch.equal(again(ids).logits, pruned.model(ids).logits)
    written = schemas.ExportFile.read(ExportFiles(folder).manifest)
    assert 0.3 <= written.block_sparsity < 0.34
    assert written.provenance.get("settings")["sparsity"] == 0.3
    card = ExportFiles(folder).card.read_text()
    assert f"ffp.prune(model, tokenizer, sparsity=0.3, method={pruned.settings.method.name!r}" in card
    with pytest.raises(ffp.core.errors.FfpError, match="exists and is not overwritten"):
        pruned.save(folder)
    pruned.save(folder, overwrite=True)


def test_a_folder_below_the_home_directory_is_made_there(loaded, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    pruned = ffp.prune(*loaded, sparsity=0.3, text=texts, method="uniform", evaluate=False, **SMALL)
    assert pruned.save("~/small") == tmp_path / "home" / "small"
    assert ffp.load_pruned("~/small", device="cpu").num_parameters() == pruned.removed.kept_params
    assert not (tmp_path / "~").exists()


def test_a_format_takes_its_options_by_name(loaded, texts, tmp_path):
    pruned = ffp.prune(*loaded, sparsity=0.3, text=texts, method="uniform", evaluate=False, **SMALL)
    folder = pruned.save(tmp_path / "small", format="gguf", quantize=["F16", "Q8_0"])
    assert sorted(file.name for file in folder.glob("*.gguf")) == ["model-F16.gguf", "model-Q8_0.gguf"]
    with pytest.raises(ConfigError, match="the format transformers has no option 'quantize'"):
        pruned.save(tmp_path / "other", quantize=["Q8_0"])


@pytest.mark.parametrize("method, tags", [("uniform", False), ("owl", True)])
def test_the_models_own_save_pretrained_writes_what_loads_again(method, tags, loaded, texts, tmp_path, hub_modules):
    from transformers import AutoModelForCausalLM

    params = {"equal": True} if method == "uniform" else {}
    pruned = ffp.prune(*loaded, sparsity=0.3, text=texts, method=method, params=params, evaluate=False, **SMALL)
    ids = torch.arange(3, 40)[None]
    expected = pruned.model(ids).logits
    for model, folder in ((pruned.model, "a"), (copy.deepcopy(pruned.model), "b")):
        model.save_pretrained(tmp_path / folder)
        assert (tmp_path / folder / "modeling_pruned.py").exists() is tags
        again = AutoModelForCausalLM.from_pretrained(tmp_path / folder, trust_remote_code=True)
        for found in (again, ffp.load_pruned(tmp_path / folder, device="cpu")):
            assert torch.equal(found(ids).logits, expected)


def test_a_copy_is_cut_where_asked_and_the_model_keeps_its_state(loaded, texts):
    model, tokenizer = loaded
    model.train().requires_grad_(True)
    model.model.embed_tokens.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    pruned = ffp.prune(model, tokenizer, sparsity=0.3, text=texts, tokens=0, in_place=False, **SMALL)
    assert pruned.model is not model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    own = ffp.prune(model, tokenizer, sparsity=0.3, text=texts, tokens=0, **SMALL)
    assert own.model is model
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert model.training and frozen == ["model.embed_tokens.weight"]
    assert sum(p.numel() for p in model.parameters()) == own.removed.kept_params < own.removed.dense_params


def test_the_card_says_how_many_windows_a_short_text_has(loaded, texts, tmp_path):
    more = {**SMALL, "calibration": {"windows": 100_000, "context": 32}}
    pruned = ffp.prune(*loaded, sparsity=0.3, text=texts, method="uniform", evaluate=False, **more)
    assert 0 < pruned.calibration_windows < 100_000
    card = ExportFiles(pruned.save(tmp_path / "small")).card.read_text()
    assert f"- Calibration: {pruned.calibration_windows} windows of 32 tokens of given text" in card


def test_a_sparsity_of_three_decimals_stays_whole(loaded, texts, tmp_path):
    pruned = ffp.prune(*loaded, sparsity=0.125, text=texts, method="uniform", evaluate=False, **SMALL)
    files = ExportFiles(pruned.save(tmp_path / "small"))
    assert schemas.ExportFile.read(files.manifest).cell.sparsity == 0.125
    assert "pruned by 12.5% (uniform)" in files.card.read_text()


def test_a_pruned_model_is_not_pruned_again(loaded, texts, tmp_path):
    pruned = ffp.prune(*loaded, sparsity=0.2, text=texts, tokens=0, evaluate=False, **SMALL)
    again = ffp.load_pruned(pruned.save(tmp_path / "small"))
    with pytest.raises(ConfigError, match="this model was pruned by ffp before"):
        ffp.prune(again, loaded[1], sparsity=0.2, text=texts, tokens=0, **SMALL)
    with pytest.raises(ConfigError, match="this model was pruned by ffp before"):
        ffp.allocate(again, loaded[1], sparsity=0.2, text=texts, tokens=0, **SMALL)


def test_summary_and_figures_tell_the_same(loaded, texts):
    pruned = ffp.prune(*loaded, sparsity=0.3, text=texts, speed=True, **SMALL)
    summary, figures = pruned.summary(), pruned.as_dict()
    json.dumps(figures, allow_nan=False)
    assert figures["search"]["tokens"] > 0
    assert f"{figures['search']['tokens']:,} search tokens" in summary
    for name in ("dense", "pruned"):
        assert f"{figures[name]['perplexity']['value']:,.2f} ± " in summary
        assert f"{figures[name]['speed']['decode_s'] * 1e3:,.1f} ms" in summary
        assert (
            figures[name]["speed"]["prefill_s"] == sorted(prefill for prefill, _ in figures[name]["speed"]["rounds"])[1]
        )
    assert len(re.findall(r"x as fast \([\d.]+ to [\d.]+ in 3 rounds\)", summary)) == 2
    assert "by fastforward-guided and ridge compensation" in summary
    assert figures["pruned"]["bytes"] < figures["dense"]["bytes"]
    assert sum(figures["seconds"].values()) > 0


class Halves(Heuristic):
    """Keeps half of everything, as far as the budget goes."""

    name: ClassVar[str] = "halves"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "half of everything"
    citation: ClassVar[str] = "-"

    def allocate(self, problem, stats):
        return projection.project_shares(problem, np.full(len(problem.decisions), 0.5))


def test_a_method_of_ones_own_is_handed_over_as_an_object(loaded, texts):
    model, tokenizer = loaded
    before = copy.deepcopy(model.state_dict())
    found = ffp.allocate(model, tokenizer, sparsity=0.5, method=Halves(), text=texts, **SMALL)
    assert all(0.3 < keep / d.n_units < 0.7 for d, keep in found.allocation.items(found.problem))
    assert found.keep["block00.ffn"] == found.allocation.keep[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert ffp.prune(model, tokenizer, sparsity=0.5, method=Halves(), text=texts, **SMALL).removed.block_sparsity >= 0.5


@pytest.mark.parametrize(("method", "granularity"), [("owl", "unstructured"), ("flap", "structured")])
def test_allocate_serves_every_granularity(method, granularity, loaded, texts):
    found = ffp.allocate(*loaded, sparsity=0.4, method=method, granularity=granularity, text=texts, **SMALL)
    assert found.problem.granularity == granularity
    assert found.problem.sparsity_of(found.allocation.keep) >= 0.4


def _write(folder: Path, kind: str, texts: list[str], column: str) -> Path:
    import pandas as pd

    path = folder / f"notes.{kind}"
    if kind == "parquet":
        pd.DataFrame({column: texts}).to_parquet(path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    else:
        path.write_text("\n\n".join(texts))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_give_what_their_documents_give(kind, loaded, texts, tmp_path):
    from ffp.assets.documents import read_text_files, split_documents

    path = _write(tmp_path, kind, texts, "body")
    parts = split_documents(read_text_files([path], "body"))
    assert parts == split_documents(texts) == split_documents(texts[::-1])
    assert sorted(text for part in parts.values() for text in part) == sorted(set(texts))
    with pytest.raises(AssetError, match=r"has no column 'text' \(--text-column\): (known: |did you mean )body"):
        read_text_files([path])
    for nothing in (None, ""):
        again = _write(tmp_path, kind, [*texts, nothing], "body")
        assert split_documents(read_text_files([again], "body")) == parts
    with pytest.raises(AssetError, match=r"column 'body' of .* has a \w+, \"\['a'\]\", and no text"):
        read_text_files([_write(tmp_path, kind, [["a"], ["b"]], "body")], "body")
    found = ffp.allocate(*loaded, sparsity=0.3, method="uniform", text=[_write(tmp_path, kind, texts, "text")], **SMALL)
    assert found.keep == ffp.allocate(*loaded, sparsity=0.3, method="uniform", text=texts, **SMALL).keep


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=4, max_size=40), st.randoms())
def test_every_part_gets_documents_by_length_and_none_is_lost(lengths, random):
    from ffp.assets.documents import SHARES, split_documents

    texts = [" ".join(f"w{number}x{word}" for word in range(length)) for number, length in enumerate(lengths)]
    parts = split_documents(texts)
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    assert all(parts.values())
    random.shuffle(texts)
    assert split_documents(texts) == parts
    longest, total = max(map(len, texts)), sum(map(len, texts))
    assert all(sum(map(len, parts[name])) <= share * total + 4 * longest for name, share in SHARES.items())


def test_a_plain_file_is_cut_into_sections_that_make_up_the_whole(texts, tmp_path):
    from ffp.assets.documents import SECTION, read_text_files

    path = _write(tmp_path, "txt", texts, "text")
    found = read_text_files([path])
    assert " ".join(found).split() == path.read_text().split()
    assert all(len(section) >= SECTION for section in found[:-1])


def test_only_contexts_that_are_used_have_to_fit_the_model(loaded, texts):
    long = {**SMALL, "evaluation": {"windows": 1, "context": 512}}  # the model has 128 positions
    ffp.allocate(*loaded, sparsity=0.3, method="uniform", text=texts, **long)
    with pytest.raises(ConfigError, match="the context of the test text = 512 exceeds the 128 positions"):
        ffp.prune(*loaded, sparsity=0.3, method="uniform", text={"calibration": texts, "test": texts}, **long)


def test_a_heuristic_needs_no_search_text(loaded, texts):
    text = {"calibration": texts[:8], "test": texts[8:16]}
    ffp.prune(*loaded, sparsity=0.3, method="owl", text=text, **SMALL)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.2}, ConfigError, r"sparsity = '1.2': a share is in \(0, 1\)"),
        ({"sparsity": 0.999}, BudgetError, r"sparsity 0.999 cannot be met"),
        ({"method": "olw"}, ConfigError, r"unknown method 'olw': did you mean owl"),
        ({"method": "owl", "params": {"strenght": 1}}, ConfigError, "strenght"),
        (
            {"method": "evolutionary", "params": {"start": "fisher-table"}, "granularity": "n-of-4"},
            ConfigError,
            "evolutionary serves structured, unstructured pruning only",
        ),
        ({"method": "flap", "granularity": "unstructured"}, ConfigError, "flap serves structured pruning only"),
        ({"granularity": "unstructured", "compensate": "ridge"}, ConfigError, "compensation serves structured"),
        (
            {"compensate": "bias", "dense_shape": True},
            ConfigError,
            r"^compensate = 'bias' adds biases, which the dense shapes of a llama model have no place for\. Compensate",
        ),
        ({"compensate": "rigde"}, ConfigError, "compensate = 'rigde'"),
        ({"tokens": 3}, ConfigError, r"tokens = 3 pays for no evaluation of 128 tokens by fastforward-guided"),
        ({"tokens": -1}, ConfigError, r"tokens = -1 is below 0"),
        ({"text": "embeded"}, ConfigError, r"text 'embeded' is no file, and no known text: did you mean embedded"),
        ({"text": ["short", "texts"]}, AssetError, "has 2 documents that share no run of 13 words .*split into 4"),
        (
            {"text": ["a b", "c d", "e f", "g h"]},
            ConfigError,
            r"the calibration text \(given text\) has \d tokens, 0 windows",
        ),
        ({"text": [1, 2]}, AssetError, "a document of the text is a int"),
        ({"text": {"calibration": ["a"], "train": ["b"]}}, ConfigError, "text has a part 'train'"),
        ({"keep_blocks": "7"}, ConfigError, "7"),
        ({"calibration": {"windows": 4, "context": 256}}, ConfigError, "max_position_embeddings|128"),
    ],
)
def test_bad_input_is_refused_before_a_token_is_spent(options, error, message, loaded, texts, monkeypatch):
    spent = []
    monkeypatch.setattr(type(loaded[0]), "forward", lambda *_, **__: spent.append(1))
    monkeypatch.setattr(type(loaded[0].base_model), "forward", lambda *_, **__: spent.append(1))
    with pytest.raises(error, match=message) as refusal:
        ffp.prune(*loaded, **{"sparsity": 0.3, "text": texts, **SMALL, **options})
    assert len(str(refusal.value).splitlines()) == 1
    assert not spent


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "count"), [("one two " * 9000, "1 document that shares"), ("\n \n", "0 documents")]
)
def test_a_txt_file_without_blank_lines_is_told_how_documents_are_told_apart(content, count, loaded, tmp_path, caplog):
    (tmp_path / "one.txt").write_text(content)
    with caplog.at_level("INFO", "ffp"), pytest.raises(AssetError, match=f"the text has {count} .*blank lines") as said:
        ffp.prune(*loaded, sparsity=0.3, text=tmp_path / "one.txt")
    assert f"text: {count[:10].strip()}" in caplog.text
    assert "a row of .jsonl" in str(said.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "smollm2-135m"}, r"the model is a str, not a causal language model\. Load one by"),
        ({"model": ON_META}, r"^the model has weights on torch's meta device, which are not in memory\. Load it by"),
        ({"tokenizer": None}, "the tokenizer is a NoneType"),
        ({"compensate": False}, "compensate"),
        ({"method": create("owl", {}), "params": {"strength": 0.1}}, "params have no effect"),
        ({"method": "owl", "tokens": 100_000}, r"^tokens has no effect with owl, which searches nothing\. Take a meth"),
        ({"granularity": "unstructured", "tokens": 9}, "tokens has no effect with uniform, which searches nothing"),
        (
            {"pruner": "wanda"},
            r"^pruner has no effect with structured pruning\. Add granularity unstructured, or leave",
        ),
        (
            {"granularity": "n-of-4", "align": 8},
            r"^align has no effect on single weights\. Take granularity structured",
        ),
        ({"granularity": "unstructured", "attention_units": "query-heads"}, "^attention_units has no effect on single"),
        (
            {"recover": {"method": "none", "rank": 4}},
            r"^recover has no effect with the method none\. Take lora, or lea",
        ),
        ({"min_keep": -5}, "min_keep = -5 is below 0"),
        *(({"min_keep": value}, f"^min_keep = {value!r} is no whole") for value in (None, "2", 1.5, True)),
        *(({"align": value}, f"^align = {value!r} is no whole") for value in (None, "8", 8.0)),
        *(({"align": value}, f"^align = {value} is below 1") for value in (0, -8)),
        *(({"batch_tokens": value}, f"^batch_tokens = {value!r} is no whole") for value in (None, "4096", 4096.0)),
        *(({"batch_tokens": value}, f"^batch_tokens = {value} is below 1") for value in (0, -5)),
        ({"attention_units": "query_heads"}, "^unknown attention_units 'query_heads': did you mean query-heads"),
        ({"attention_units": None}, "^unknown attention_units None: known: kv-groups, query-heads, single-query-heads"),
        ({"keep_blocks": [0, 1]}, r"keep_blocks = \[0, 1\] is no text"),
        ({"keep_blocks": 0}, "keep_blocks = 0 is no text"),
        *(({"tokens": value}, f"^tokens = {value!r} is no whole number") for value in ("4096", True, 640.0)),
        *(
            ({"method": method, "params": params}, f"^params = {re.escape(repr(params))} are not hyper-parameters by n")
            for method in (None, "owl")
            for params in ([1], "a", 5, {1: 2}, [("start", "uniform")])
        ),
        ({"text": 5}, "text is a int"),
        ({"text": "word " * 1000}, "Documents are given as a list of strings"),
    ],
)
def test_arguments_of_another_kind_are_refused_with_the_remedy(asked, said, loaded, texts):
    model, tokenizer = loaded
    given = {"model": model, "tokenizer": tokenizer, "sparsity": 0.3, "text": texts, **SMALL, **asked}
    model, tokenizer = given.pop("model"), given.pop("tokenizer")
    for function in (ffp.prune, ffp.allocate):
        with pytest.raises(ConfigError, match=said):
            function(model, tokenizer, **given)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint16])
def test_numbers_of_numpy_are_as_good_as_pythons(kind, loaded, texts):
    """torch splits by no numpy.int64, and JSON has none."""

    def found(number: type) -> tuple[list[int], dict[str, object]]:
        pruned = ffp.prune(
            *loaded, sparsity=0.3, text=texts, in_place=False, method="fastforward-guided", recover="none",
            params={"start": "fisher-table", "step_windows": number(2)}, tokens=number(1024), seed=number(3),
            min_keep=number(1), align=number(2), batch_tokens=number(128),
            **SMALL | {"calibration": {"windows": number(4), "context": number(64)},
                       "search": {name: value for name, value in SMALL["search"].items() if name != "evaluations"}},
        )  # fmt: skip
        figures = json.loads(json.dumps(pruned.as_dict()))
        return figures["keep"], figures["pruned"]["perplexity"]

    assert found(kind) == found(int)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "asked", [{}, {"method": "evolutionary", "params": {"start": "fisher-table"}}, {"method": "owl", "recover": "lora"}]
)
def test_where_torch_records_no_gradients_a_method_that_needs_them_is_refused(asked, loaded, texts):
    for function in (ffp.prune, ffp.allocate):
        line = r"needs gradients, which .*inference_mode\(\) does not record\. Prune outside it"
        with torch.inference_mode(), pytest.raises(ConfigError, match=line):
            function(*loaded, sparsity=0.3, text=texts, **SMALL, **asked)
    with torch.inference_mode():
        ffp.allocate(*loaded, sparsity=0.3, text=texts, method="evolutionary", **SMALL)
    with torch.no_grad():
        ffp.allocate(*loaded, sparsity=0.3, text=texts, **SMALL)


@pytest.mark.parametrize("function", [ffp.prune, ffp.allocate])
def test_an_unknown_argument_is_refused_with_those_that_are_near_or_all(function, loaded):
    named = rf"unknown argument '{{}}' of {function.__name__}: "
    with pytest.raises(ConfigError, match=named.format("keep_block") + r"did you mean keep_blocks"):
        function(*loaded, sparsity=0.3, keep_block="0")
    with pytest.raises(
        ConfigError, match=named.format("zzz") + "known: align, .*bos, .*keep_blocks, .*min_keep, .*text"
    ):
        function(*loaded, sparsity=0.3, zzz=1)


def test_a_search_by_the_api_takes_a_model_whose_parameters_need_gradients(loaded, texts):
    model, _ = loaded
    model.train().requires_grad_(True)
    ids = torch.arange(16 * 64).reshape(16, 64) % 100
    prunable = PrunableModel(model)
    calibration = api.calibrate(prunable, api.Windows(ids[:4], ids[4:12], ids[12:]))
    found = api.allocate(
        prunable, calibration, create("fastforward-guided", {}), sparsity=0.3,
        cut=StructuredCut("wanda", "none"), budget=SearchBudget(6, 1),
    )  # fmt: skip
    assert found.allocation.keep and model.training and all(each.requires_grad for each in model.parameters())
