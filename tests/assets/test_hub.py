"""Models of a hub, by the real client: what is asked for, and what is said when it cannot be had."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffp.assets import fetch_model
from ffp.assets.fetch import resolve_revision
from ffp.config import ModelConfig
from ffp.core.errors import AssetError, ConfigError
from ffp.models.families import family_of
from ffp.store.schemas import AssetFile
from tests.helpers import tiny
from tests.helpers.hub import TOKEN, Hub, use

TINY = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def repo(tiny_source: Path, tmp_path: Path) -> Path:
    """The files of a repository: a model by transformers."""
    return Path(shutil.copytree(tiny_source / "source", tmp_path / "repo"))


def config(revision: str = "main", **source: Any) -> ModelConfig:
    hub = {"kind": "hub", "repo": "org/tiny", "revision": revision, **source}
    return ModelConfig.model_validate({"title": "m", "source": hub})


def fails(wanted: ModelConfig, out: Path) -> str:
    with pytest.raises(AssetError) as fault:
        fetch_model(wanted, out)
    assert "\n" not in str(fault.value) and not out.exists()
    return str(fault.value)


def test_a_model_comes_at_a_commit_without_code_and_pickles(
    hub: Hub, repo: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (repo / "modeling_evil.py").write_text("raise SystemExit")
    (repo / "original").mkdir()
    (repo / "original" / "consolidated.00.pth").write_bytes(b"x")
    commit = hub.push("org/tiny", repo)
    fetch_model(config(commit), out)
    assert "is not a commit" not in caplog.text
    assert {p.name for p in out.iterdir()} == TINY | {"asset.json"}
    assert (out / "model.safetensors").read_bytes() == (repo / "model.safetensors").read_bytes()
    assert set(hub.downloads()) == TINY


def test_the_command_asks_the_hub_that_the_environment_names(hub: Hub, repo: Path, tmp_path: Path) -> None:
    hub.push("org/tiny", repo)
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(config().model_dump(mode="json")))
    done = tiny.run(tmp_path, "ffp.cli", "asset", "model", "--config", "m.yaml", "--out", "data/models/m", fork=False)
    assert done.returncode == 0, done.output  # type: ignore[attr-defined]
    assert (tmp_path / "data/models/m/asset.json").is_file() and set(hub.downloads()) == TINY


def test_a_branch_is_resolved_to_its_commit_and_fetched_from_it(
    hub: Hub, repo: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = hub.push("org/tiny", repo)
    assert resolve_revision("org/tiny", None) == resolve_revision("org/tiny", "main") == first
    fetch_model(config("main"), out)
    assert "hub revision 'main' of org/tiny is not a commit hash" in caplog.text
    asked = {path.split("/")[4] for method, path, _ in hub.requests if "/resolve/" in path}
    assert asked == {first}
    (repo / "generation_config.json").write_text("{}")
    second = hub.push("org/tiny", repo)
    assert resolve_revision("org/tiny", "main") == second != first
    fetch_model(config("main"), out.with_name("again"))
    assert (out.with_name("again") / "generation_config.json").read_text() == "{}"
    hub.requests.clear()
    assert resolve_revision("org/tiny", first) == first and not hub.requests


def test_a_download_that_breaks_off_goes_on_where_it_was(
    hub: Hub, repo: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # it goes on behind whole chunks
    commit = hub.push("org/tiny", repo)
    hub.cut.add("model.safetensors")
    fetch_model(config(commit), out)
    half = (repo / "model.safetensors").stat().st_size // 2 // 1024 * 1024
    assert ("GET", f"/org/tiny/resolve/{commit}/model.safetensors", f"bytes={half}-") in hub.requests
    assert (out / "model.safetensors").read_bytes() == (repo / "model.safetensors").read_bytes()


def test_files_that_came_before_a_fault_are_not_asked_for_again(hub: Hub, repo: Path, out: Path) -> None:
    commit = hub.push("org/tiny", repo)
    hub.refused.add("model.safetensors")
    assert f"org/tiny at {commit} cannot be fetched: " in fails(config(commit), out)
    came = {p.name for p in (out.parents[1] / "downloads/hub" / f"org--tiny@{commit}").glob("*.json")}
    assert came
    hub.refused.clear()
    hub.requests.clear()
    fetch_model(config(commit), out)
    assert set(hub.downloads()) == TINY - came


def test_a_gated_repository_needs_a_login(hub: Hub, repo: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("org/tiny", repo)
    hub.gated.add("org/tiny")
    remedy = "org/tiny is gated. Log in with `hf auth login` and accept its licence on its page."
    assert fails(config(), out) == f"hub repository {remedy}"
    assert "model.safetensors" not in hub.downloads()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch_model(config(), out)
    assert AssetFile.read(out / "asset.json")


@pytest.mark.bad_input
def test_what_the_hub_does_not_have_is_named(hub: Hub, repo: Path, out: Path) -> None:
    hub.push("org/tiny", repo)
    for revision in ("main", "0" * 40):
        message = fails(config(revision, repo="org/tony"), out)
        assert message.startswith("the hub has no repository org/tony. Check the name; if it is private, log in with")
        assert revision == "main" or fails(config(revision), out).startswith(
            f"hub repository org/tiny has no revision {revision}. Give one of"
        )
    with pytest.raises(AssetError, match="org/tiny has no revision v9"):
        resolve_revision("org/tiny", "v9")
    assert "no file 'model.safetensor': did you mean" in fails(config(files=["model.safetensor"]), out)
    assert not hub.downloads()


@pytest.mark.bad_input
def test_pickled_weights_are_refused_unasked(hub: Hub, repo: Path, out: Path) -> None:
    (repo / "model.safetensors").rename(repo / "pytorch_model.bin")
    hub.push("org/tiny", repo)
    assert "pytorch_model.bin, a format that can run code" in fails(config(), out)
    assert "pytorch_model.bin, a format that can run code" in fails(config(files=["pytorch_model.bin"]), out)
    assert not hub.downloads()


@pytest.mark.fault
def test_a_missing_connection_is_named(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:9", tmp_path / "hf", monkeypatch)
    assert fails(config(), out).startswith("no connection to the hub for org/tiny: ")
    with pytest.raises(AssetError, match=r"no connection to the hub .* Connect, or use a source of kind local\."):
        resolve_revision("org/tiny", None)


@pytest.mark.bad_input
def test_a_family_that_cannot_be_pruned_is_refused_before_its_weights_come(hub: Hub, repo: Path, out: Path) -> None:
    body = json.loads((repo / "config.json").read_text())
    (repo / "config.json").write_text(json.dumps(body | {"model_type": "mixtral"}))
    commit = hub.push("org/tiny", repo)
    with pytest.raises(ConfigError, match="'mixtral' is a mixture of experts"):
        fetch_model(config(commit), out, check_family=family_of)
    assert hub.downloads() == ["config.json"] and not out.exists()
