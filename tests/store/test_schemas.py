"""Files on disk: one description each, read back as written, refused with both tags otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffp.core.errors import ArtifactError
from ffp.store import schemas
from ffp.store.files import read_json, write_json
from ffp.store.provenance import provenance

PACKAGE = Path(schemas.__file__).parents[1]
CELL = {"model": "m", "granularity": "structured", "sparsity": 0.2, "method": "owl", "seed": 0}
DECISION = {"name": "block00.ffn", "n_units": 4, "params_per_unit": 10}
REMOVED = {"block_sparsity": 0.25, "model_sparsity": 0.2, "params": {"dense": 50, "kept": 40}}
PPL = {"value": 2.0, "stderr": None, "n_windows": 1, "context": 8, "n_tokens": 7, "loss_by_window": [0.1 + 0.2]}
BODIES: dict[type[schemas.JsonFile], dict[str, Any]] = {
    schemas.AssetFile: {"kind": "model", "source": {"a": 1}, "files": {"x": "0"}, "crc32": {"x": 1}, "digest": "d"},
    schemas.DatasetsFile: {"tasks": {"piqa": [{"path": "a/b", "name": None, "arguments": {}, "commit": "c",
                                               "splits": {"test": "t.arrow"}, "scored": ["test"]}]}},
    schemas.CostFile: {"evaluations": 3, "n_tokens": 10},
    schemas.PreflightFile: {"checks": ["every sparsity can be met"]},
    schemas.AllocationFile: {
        "cell": CELL, "problem": {"granularity": "structured", "target": 0.2, "decisions": [DECISION]},
        "problem_id": "p", "keep": [3], "block_sparsity": 0.25, "settings": {},
    },
    schemas.AnswersFile: {"points": [{"tokens": 8, "share": 0.5, "keep": [3], "loss": 0.25}]},
    schemas.ScoresFile: {"cell": CELL, **REMOVED, "ppl": PPL, "tasks": {}, "cost": {}, "settings": {}},
    schemas.PerplexityFile: PPL,
    schemas.ExportFile: {"cell": CELL, **REMOVED},
    schemas.ProbeFile: {"node": "n1", "cpus": 4, "gpus": ["0"], "cuda": True},
    schemas.CompareFile: {"changed": False, "cells": [], "provenance": {"commit": {"a -> b": 1}}},
}  # fmt: skip
TENSORS = {"tokens": schemas.TOKENS, "stats": schemas.STATS, "policy": schemas.POLICY, "masks": schemas.MASKS,
           "updates": schemas.UPDATES}  # fmt: skip
EXTRA = {schemas.StatsOrigin: {"n_tokens": 4}, schemas.MasksOrigin: {"problem_id": "p"}}


def all_json_files(base: type[schemas.JsonFile] = schemas.JsonFile) -> set[type[schemas.JsonFile]]:
    return {cls for child in base.__subclasses__() for cls in (child, *all_json_files(child))}


def make(cls: type[schemas.JsonFile]) -> schemas.JsonFile:
    field = cls.model_fields.get("provenance")
    own = field is not None and field.annotation is schemas.Provenance
    return cls(**BODIES[cls], **({"provenance": provenance()} if own else {}))


def test_every_json_file_has_an_example_here():
    assert all_json_files() == set(BODIES)


@pytest.mark.parametrize("cls", BODIES, ids=lambda cls: cls.__name__)
class TestJsonFiles:
    def test_a_file_is_read_back_as_written(self, cls, tmp_path):
        make(cls).write(tmp_path / "file.json")
        assert cls.read(tmp_path / "file.json", sealed=True) == make(cls)

    def test_another_tag_is_refused_with_the_tag_found_and_the_tag_expected(self, cls, tmp_path):
        write_json(tmp_path / "file.json", "ffp/something/7", {})
        with pytest.raises(ArtifactError, match=rf"schema 'ffp/something/7', expected '{cls.tag}'"):
            cls.read(tmp_path / "file.json")

    def test_a_missing_and_an_unknown_key_are_named(self, cls, tmp_path):
        tag, body = self.content(cls, tmp_path)
        required = next(name for name, field in cls.model_fields.items() if field.is_required())
        lacking = {name: value for name, value in body.items() if name != required}
        for changed, name in ((lacking, required), ({**body, "odd": 1}, "odd")):
            write_json(tmp_path / "file.json", tag, changed)
            with pytest.raises(ArtifactError, match=f"file.json lacks what its schema promises: {name}"):
                cls.read(tmp_path / "file.json")

    def test_an_edited_value_is_found(self, cls, tmp_path):
        make(cls).write(tmp_path / "file.json")
        body = json.loads((tmp_path / "file.json").read_text())
        (tmp_path / "file.json").write_text(json.dumps({**body, "extra": 1}))
        with pytest.raises(ArtifactError, match="is damaged or was edited"):
            cls.read(tmp_path / "file.json")

    @staticmethod
    def content(cls, folder: Path) -> tuple[str, dict[str, Any]]:
        make(cls).write(folder / "content.json")
        return read_json(folder / "content.json", [cls.tag])


@pytest.mark.parametrize("name", TENSORS)
def test_arrays_and_their_origin_are_read_back_as_written(name, tmp_path):
    file, arrays = TENSORS[name], {"a": np.arange(3, dtype=np.int32)}
    origin = file.origin(provenance=provenance({"model": "digest"}), **EXTRA.get(file.origin, {}))
    file.write(tmp_path / "file.safetensors", arrays, origin)
    found, meta = file.read(tmp_path / "file.safetensors", sealed=True)
    assert found["a"].tolist() == [0, 1, 2] and meta == origin
    assert meta.provenance.get("model") == "digest"


def test_an_allocation_of_the_first_schema_is_still_read(tmp_path):
    body = make(schemas.AllocationFile).model_dump(mode="json")
    body["problem"] = {"granularity": "structured", "target": 0.2, "units": [["block00.ffn", 4, 10, 2, 1, 8]]}
    write_json(tmp_path / "allocation.json", "ffp/allocation/1", body)
    decision = schemas.AllocationFile.read(tmp_path / "allocation.json").pruning_problem.decisions[0]
    assert (decision.fixed_params, decision.min_keep, decision.bundle) == (2, 1, 8)


def test_a_trace_without_a_column_is_refused(tmp_path):
    from ffp.store.files import write_table

    write_table(tmp_path / "trace.parquet", [{"tokens": 1}], ["tokens"])
    with pytest.raises(ArtifactError, match="lacks its column evaluation"):
        schemas.TRACE.read(tmp_path / "trace.parquet")


def test_paths_and_tags_are_decided_in_the_store_alone():
    """Nothing else joins the folders of a grid or names a schema; see layout.py and schemas.py."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text, name = path.read_text(), path.relative_to(PACKAGE).as_posix()
        if name != "store/schemas.py":
            found += [f"{name}: {tag}" for tag in re.findall(r'"(ffp/[a-z-]+/\d+)"', text)]
        if name != "store/layout.py":
            found += [f"{name}: {word}" for word in re.findall(r"grid\.(?:results|data)\b", text)]
    assert not found
