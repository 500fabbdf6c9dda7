"""Pickled weights: refused unless the source allows their conversion, which reads tensors and runs nothing."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ffp.assets import fetch_model
from ffp.config import ModelConfig
from ffp.core.errors import AssetError
from ffp.models.checkpoint import load_model
from tests.helpers import families, tiny
from tests.helpers.hub import Hub

INDEX = "pytorch_model.bin.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An OPT, whose output layer is its embedding, as safetensors."""
    tiny._model(tmp_path / "source", "OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32})
    return tmp_path / "source"


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(families.tokens()).logits
    return found


def pickled(folder: Path, form: str) -> None:
    """Replaces the weights of a folder by pickled ones."""
    state = load(folder).state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.decoder.embed_tokens.weight"].data_ptr()
    (folder / "model.safetensors").unlink()
    if form == "sharded":
        names = sorted(state)
        parts = [names[: len(names) // 2], names[len(names) // 2 :]]
        files = {f"pytorch_model-{i:05d}-of-00002.bin": part for i, part in enumerate(parts, 1)}
        for file, part in files.items():
            torch.save({name: state[name] for name in part}, folder / file)
        weight_map = {name: file for file, part in files.items() for name in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return
    if form == "base":  # names as the model without its head has them, as in facebook/opt-*
        state = {n.removeprefix("model."): tensor for n, tensor in state.items() if n != "lm_head.weight"}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old")


def config(kind: str, folder: Path, hub: Hub, **more: Any) -> ModelConfig:
    source = {"kind": "local", "path": str(folder)}
    if kind == "hub":
        source = {"kind": "hub", "repo": "org/tiny", "revision": hub.push("org/tiny", folder)}
    return ModelConfig.model_validate({"title": "m", "source": source | more})


@pytest.mark.parametrize("form", ["one", "old", "base", "sharded"])
@pytest.mark.parametrize("kind", ["hub", "local"])
def test_pickled_weights_are_converted_to_the_same_model(
    kind: str, form: str, folder: Path, hub: Hub, out: Path
) -> None:
    expected = logits(load(folder))
    pickled(folder, form)
    (folder / "training_args.bin").write_bytes(b"not looked at")
    (folder / "tf_model.h5").write_bytes(b"not looked at")
    wanted = config(kind, folder, hub, allow_pickle=True)
    fetch_model(wanted, out)
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".txt"}
    assert not (out / INDEX).exists()
    assert (out / "model.safetensors.index.json").exists() == (form == "sharded")
    assert len(list(out.glob("*.safetensors"))) == (2 if form == "sharded" else 1)
    torch.testing.assert_close(logits(load_model(out, wanted)), expected, rtol=0, atol=0)
    if kind == "hub":
        assert not {"training_args.bin", "tf_model.h5"} & set(hub.downloads())
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    fetch_model(wanted, out)
    assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}


@pytest.mark.parametrize("kind", ["hub", "local"])
def test_safetensors_are_taken_where_there_are_some(kind: str, folder: Path, hub: Hub, out: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    fetch_model(config(kind, folder, hub, allow_pickle=True), out)
    assert (out / "model.safetensors").read_bytes() == weights
    assert "pytorch_model.bin" not in hub.downloads()


class Bomb:
    """Unpickled, it would create the file `owned`."""

    def __init__(self, folder: Path):
        self.file = str(folder / "owned")

    def __reduce__(self) -> Any:
        return open, (self.file, "w")


@pytest.mark.bad_input
def test_code_and_objects_are_refused(folder: Path, hub: Hub, out: Path, tmp_path: Path) -> None:
    weights = load(folder).state_dict()
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"

    def fails(**more: Any) -> str:
        with pytest.raises(AssetError) as fault:
            fetch_model(config("local", folder, hub, **more), out)
        assert "\n" not in str(fault.value) and not out.exists() and not (tmp_path / "owned").exists()
        return str(fault.value)

    torch.save(weights, file)
    assert "or set allow_pickle: true in the model's source to convert pytorch_model.bin" in fails()
    for bomb in (Bomb(tmp_path), {"lm_head.weight": Bomb(tmp_path)}):
        file.write_bytes(pickle.dumps(bomb))
        assert "cannot be read as tensors alone" in fails(allow_pickle=True)
        torch.save(bomb, file)
        assert "cannot be read as tensors alone" in fails(allow_pickle=True)
    torch.save({"lm_head.weight": 1.0}, file)
    assert "are no tensors by name" in fails(allow_pickle=True)
    torch.save(weights, file)
    file.write_bytes(file.read_bytes()[:-99])
    assert "cannot be read as tensors alone" in fails(allow_pickle=True)
    shutil.move(file, folder / "pytorch_model.pt")
    assert "a format that can run code" in fails(allow_pickle=True)


@pytest.mark.bad_input
def test_a_missing_shard_is_named(folder: Path, hub: Hub, out: Path) -> None:
    pickled(folder, "sharded")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    for kind in ("hub", "local"):
        with pytest.raises(AssetError, match=r"lacks its weights pytorch_model-00002-of-00002\.bin"):
            fetch_model(config(kind, folder, hub, allow_pickle=True), out)


def test_sources_without_the_switch_have_the_identity_that_they_had_before(folder: Path, hub: Hub) -> None:
    for kind in ("hub", "local"):
        assert "allow_pickle" not in config(kind, folder, hub).model_dump_json()
        assert config(kind, folder, hub, allow_pickle=True).model_dump()["source"]["allow_pickle"] is True
