"""Attentions of single query heads that leave whole: their KV heads go too, and every count says so."""

import numpy as np
import pytest
import yaml

from ffp import cli
from ffp.store import schemas
from tests.helpers import tiny


@pytest.mark.long
@pytest.mark.parametrize("units", ["query-heads", "single-query-heads"])
def test_scores_and_verify_count_the_kv_heads_of_an_empty_attention(units, tmp_path, monkeypatch):
    grid = tiny.build(tmp_path)
    changes = {grid: {"methods": ["shortgpt"], "variants": {}, "sparsities": [0.5]}}
    changes[tmp_path / "config/models/tiny.yaml"] = {"attention_units": units, "min_keep": 0}
    for path, keys in changes.items():
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))
    assert tiny.snakemake(tmp_path).returncode == 0
    monkeypatch.chdir(tmp_path)
    cell = tmp_path / "results/cells/tiny/structured/s0.50/shortgpt/seed0"
    found = schemas.AllocationFile.read(cell / "allocation.json")
    assert any(k == 0 and d.fixed_params for d, k in zip(found.problem.decisions, found.keep, strict=True))
    params, problem = schemas.ScoresFile.read(cell / "scores.json").params, found.pruning_problem
    assert params.dense - params.kept > int(np.dot(problem.n_units - np.array(found.keep), problem.params_per_unit))
    assert cli.main(["verify", "--config", str(grid)]) == 0
    words = ["--cell", "tiny/structured/s0.50/shortgpt/seed0", "--model-dir", "data/models/tiny", "--cut", str(cell)]
    for shape in ("dense-shape", "transformers"):
        assert cli.main(["export", "--config", str(grid), *words, "--format", shape, "--out", shape]) == 0
        assert schemas.ExportFile.read(tmp_path / shape / "ffp.json").params == params
