"""JSON schemas of the YAML files, for editors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffp.cli import main
from ffp.config.reading import PATTERNS
from ffp.config.schema import PARTS, schemas
from tests.helpers import tiny

CONFIG = tiny.ROOT / "config"
FILES = sorted(CONFIG.rglob("*.yaml"))
jsonschema = pytest.importorskip("jsonschema")


def faults(kind: str, body: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schemas()[kind]).iter_errors(body)]


def test_the_schemas_in_the_repository_are_those_of_the_models(tmp_path: Path) -> None:
    assert main(["schema", "--out", str(tmp_path)]) == 0
    written = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    kept = {path.name: json.loads(path.read_text()) for path in (CONFIG / "schemas").iterdir()}
    assert kept == written, "run: ffp schema --out config/schemas"


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(CONFIG)) for file in FILES])
def test_every_file_names_its_schema_and_fulfils_it(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    schema = (file.parent / first.split("=")[1]).resolve()
    assert schema.parent == CONFIG / "schemas" and schema.is_file()
    assert faults(schema.stem, yaml.safe_load(file.read_text())) == []


def patterns(schema: Any) -> set[str]:
    """All patterns in a part of a schema."""
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    own = {schema["pattern"]} if isinstance(schema, dict) and isinstance(schema.get("pattern"), str) else set()
    return own.union(*map(patterns, parts))


def test_an_error_says_in_words_what_each_pattern_asks_for() -> None:
    found = patterns(schemas())
    assert len(found) > 5 and found == set(PATTERNS)


def test_a_schema_knows_the_hyper_parameters_of_every_method() -> None:
    grid = yaml.safe_load((CONFIG / "grids/demo.yaml").read_text())
    for variants in (
        {"mine": {"use": "owl", "params": {"outlier_treshold": 5}}},
        {"owl": {"params": {"outlier_treshold": 5}}},
        {"owl": {"params": {"max_deviation": -1}}},
        {"owl": {"max_deviation": 0.1}},
    ):
        assert faults("grid", {**copy.deepcopy(grid), "variants": variants}), variants
    assert faults("grid", {**grid, "variants": {"owl": {"use": "evolutionary", "params": {"start": "ffn-only"}}}}) == []


def test_every_field_is_described() -> None:
    for name, schema in schemas().items():
        for section in (schema, *schema.get("$defs", {}).values()):
            for key, field in section.get("properties", {}).items():
                described = {"description", "$ref", "const"} & set(field) or name == key
                assert described, f"{name}: {section.get('title')}.{key}"
    assert set(schemas()) == set(PARTS)
