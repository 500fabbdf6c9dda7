"""Wheels, folders and tokenizers that were made to do harm."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from ffp.assets.fetch import extract
from ffp.assets.folders import files_of
from ffp.assets.model import model_files
from ffp.core.errors import ArtifactError, AssetError, ConfigError
from ffp.measure.tasks import check_chat_template
from ffp.models.checkpoint import load_tokenizer


def archive(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name in members:
            opened.writestr(name, "owned")
    return path


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["p/../../owned.py", "/tmp/owned.py", "../owned.py", "c:owned.py", "a\\..\\owned.py"])
def test_a_member_that_a_pattern_finds_stays_in_the_folder(name, tmp_path):
    wheel, into = archive(tmp_path / "x.whl", "p/good.py", name), tmp_path / "in" / "to"
    pattern = "/".join("*" for _ in name.split("/"))
    with pytest.raises(AssetError, match=r"no member that fits|not a plain relative path"):
        extract(wheel, [pattern.replace("*", "*o*.py") if "/" not in name else f"{pattern[:-1]}o*.py"], into)
    assert not [path for path in tmp_path.rglob("owned*")] and not Path("/tmp/owned.py").exists()


def test_a_link_in_a_wheel_becomes_a_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as opened:
        link = zipfile.ZipInfo("a.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
    (found,) = extract(tmp_path / "x.whl", ["a.json"], tmp_path / "into")
    assert not found.is_symlink() and found.read_text() == "/etc/passwd"


@pytest.fixture
def model(tiny_source, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_source / "source", tmp_path / "model"))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "a.json"])
def test_a_link_that_leaves_the_folder_is_refused(name, model, tmp_path):
    (tmp_path / "key").write_text("secret")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../key")
    with pytest.raises(AssetError, match=f"{name} is a link to .*key, outside of its folder. Put a copy"):
        model_files(model)


def test_links_inside_the_folder_to_weights_and_in_the_cache_of_the_hub_are_followed(model, tmp_path):
    (model / "other.json").symlink_to("config.json")
    (model / "model.safetensors").rename(tmp_path / "shared.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "shared.safetensors")
    assert {"other.json", "model.safetensors"} <= set(model_files(model))
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "x").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/x")
    assert files_of(snapshot) == [snapshot / "config.json"]


@pytest.mark.bad_input
@pytest.mark.parametrize("template", [
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ raise_exception('no\n\x1b[31m') }}",
    "{% if %}",
    "{% include '/etc/passwd' %}",
])  # fmt: skip
def test_a_template_that_reaches_for_python_is_refused_before_any_task(template, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(model)
    assert tokenizer.chat_template == template
    with pytest.raises(ConfigError, match=r"the chat template of the model's tokenizer fails: .*Leave chat") as refused:
        check_chat_template(tokenizer, asked=True)
    assert str(refused.value).isprintable() and not (tmp_path / "owned").exists()


@pytest.mark.bad_input
def test_a_tokenizer_of_its_own_code_is_never_loaded(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "evil.py").write_text("open('owned', 'w')\n")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="contains custom code"):
        load_tokenizer(model)
    assert not (tmp_path / "owned").exists()
    assert "evil.py" not in model_files(model)
