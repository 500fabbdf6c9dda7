"""GGUF becomes safetensors tensor by tensor, and what comes out is what transformers' own loader makes of it."""

import errno
import json
import logging
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ffp.assets import fetch_model
from ffp.assets import gguf as converting
from ffp.config import ModelConfig
from ffp.core.errors import AssetError
from ffp.models.formats.gguf_tokenizer import read_vocabulary
from ffp.store.identity import asset_settings
from ffp.store.schemas import AssetFile
from tests.helpers.ggufs import FAMILIES, HIDDEN, VOCABULARY, write_gguf

TYPES = ("Q8_0", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F32")
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
MATRIX = np.random.default_rng(1).standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)


def stock(file: Path, into: Path) -> None:
    """The same folder by transformers' loader, which holds the model in memory several times."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    dequantised = GgufConfig(gguf_file=file.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(file.parent, quantization_config=dequantised, **where)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(into)
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(into)


def config(file: Path, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({"title": "m", "source": {"kind": "local", "path": str(file)}, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def fails(file: Path, out: Path, **changes: Any) -> str:
    """The one line of the AssetError; checks that nothing half-written is left."""
    with pytest.raises(AssetError) as fault:
        fetch_model(config(file, **changes), out)
    assert "\n" not in str(fault.value)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return str(fault.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_is_the_one_that_transformers_writes(family: str, tied: bool, file: Path, tmp_path: Path) -> None:
    write_gguf(file, family, tied=tied, types=TYPES)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    converting.convert(file, ours)
    stock(file, theirs)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in ours.iterdir()}
    for path in ours.iterdir():
        assert path.read_bytes() == (theirs / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", TYPES)
def test_pieces_of_a_tensor_are_the_tensor(
    kind: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = write_gguf(file, "qwen2", types=(kind,))[EMBEDDINGS]
    monkeypatch.setattr(converting, "PIECE", 7 * HIDDEN)
    converting.convert(file, tmp_path)
    of_type = gguf.GGMLQuantizationType[kind]
    whole = gguf.dequantize(gguf.quantize(values, of_type), of_type)
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"], whole)


def test_a_model_that_is_tied_takes_the_finer_matrix(file: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM

    for finer, coarser in ((HEAD, EMBEDDINGS), (EMBEDDINGS, HEAD)):
        kinds = {finer: "Q8_0", coarser: "Q4_0"}
        write_gguf(file, "qwen2", tied=False, of_type=kinds, replaced={EMBEDDINGS: MATRIX, HEAD: MATRIX})
        fetch_model(config(file, lm_head="tied"), out)
        weights = load_file(out / "model.safetensors")
        fine = gguf.dequantize(gguf.quantize(MATRIX, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0)
        assert "lm_head.weight" not in weights
        np.testing.assert_array_equal(weights["model.embed_tokens.weight"], fine)
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.tie_word_embeddings


def test_a_model_is_made_again_when_its_head_is_to_be_tied(
    file: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ffp")
    write_gguf(file, "llama", tied=False, replaced={EMBEDDINGS: MATRIX, HEAD: MATRIX})
    for lm_head, kept in (("auto", True), ("apart", True), ("tied", False), ("tied", False)):
        fetch_model(config(file, lm_head=lm_head), out)
        assert ("lm_head.weight" in load_file(out / "model.safetensors")) == kept
    assert caplog.text.count("another source or configuration") == 2
    assert caplog.text.count("complete and unchanged, kept") == 1


def test_assets_of_other_models_are_what_they_were(file: Path, out: Path) -> None:
    write_gguf(file, "llama")
    fetch_model(config(file), out)
    assert set(AssetFile.read(out / "asset.json").source) == {"config", "local", "conversion"}
    assert set(asset_settings(config(file))) == {"step_version", "code", "source"}
    assert asset_settings(config(file, lm_head="tied"))["lm_head"] == "tied"


@pytest.mark.bad_input
def test_heads_that_cannot_be_what_the_yaml_says_are_refused(file: Path, out: Path, tiny_source: Path) -> None:
    write_gguf(file, "llama", tied=False)
    assert "embeddings and head are two matrices; say lm_head: apart" in fails(file, out, lm_head="tied")
    write_gguf(file, "llama", tied=True)
    assert "lm_head is apart, but the file holds no output.weight" in fails(file, out, lm_head="apart")
    assert "source is no GGUF file. Leave lm_head out." in fails(tiny_source / "source", out, lm_head="tied")


@pytest.mark.bad_input
def test_files_that_cannot_be_converted_are_refused_in_a_line(file: Path, out: Path) -> None:
    write_gguf(file, "llama", architecture="clip")
    assert "architecture clip is not supported" in fails(file, out)
    write_gguf(file, "llama", replaced={"blk.1.ffn_up.weight": None})
    assert "it lacks model.layers.1.mlp.up_proj.weight" in fails(file, out)
    write_gguf(file, "llama", replaced={"blk.1.ffn_up.weight": np.ones((95, HIDDEN), np.float32)})
    message = "blk.1.ffn_up.weight has shape [95, 64], but model.layers.1.mlp.up_proj.weight is [96, 64]"
    assert message in fails(file, out)
    file.write_bytes(file.read_bytes()[:-100])
    assert "tiny.gguf cannot be converted to safetensors: " in fails(file, out)


@pytest.mark.bad_input
def test_a_type_that_cannot_be_dequantised_is_named(file: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(file, "llama", of_type={"blk.0.ffn_up.weight": "Q5_1"})
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q5_1)
    assert "tensor blk.0.ffn_up.weight is of type Q5_1, which cannot be dequantised" in fails(file, out)


def test_a_full_disk_is_found_before_or_while_writing(file: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(file, "llama")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))  # type: ignore[attr-defined]
        assert "tiny.gguf in float32 takes 0.3 MB, but the disk of" in fails(file, out)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(converting, "_dequantised", full)
    assert fails(file, out).startswith("disk full while writing")


def test_memory_does_not_grow_with_the_model(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the allocations of numpy are counted: less than half of a model, most of which is its embeddings."""
    from tests.helpers import ggufs

    monkeypatch.setattr(ggufs, "VOCABULARY", 100_000)
    write_gguf(file, "llama", types=("Q8_0",))
    peaks = []
    write = converting._Weights.write

    def measured(self: Any, *args: Any) -> None:
        tracemalloc.start()
        write(self, *args)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    monkeypatch.setattr(converting._Weights, "write", measured)
    converting.convert(file, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 25e6
    assert peaks[0] < 10 * 4 * converting.PIECE, peaks


def test_a_pre_tokenizer_with_a_regular_expression_survives(file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_gguf(file, "qwen2", pre="qwen2")
    converting.convert(file, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert read_vocabulary(tokenizer, VOCABULARY).pre == "qwen2"
    assert [tokenizer.decode([number]) for number in tokenizer("ab12")["input_ids"]] == ["ab", "1", "2"]


def test_a_converted_model_computes(file: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(file, "qwen2", types=("Q8_0",))
    fetch_model(config(file), out)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained(out)(torch.tensor([[3, 4, 5]])).logits).all()
