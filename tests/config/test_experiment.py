"""Grids, what they name, and their cells."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ffp.config import Cell, Experiment, ModelConfig, read_part
from ffp.config.catalog import PACKAGED
from ffp.core.errors import ConfigError
from ffp.store.identity import step_settings
from tests.bad_input.refusal import edit
from tests.helpers import tiny

GRIDS = sorted((tiny.ROOT / "config/grids").glob("*.yaml"))


@pytest.mark.parametrize("file", GRIDS, ids=[file.stem for file in GRIDS])
def test_every_grid_of_the_repository_is_sound(file: Path) -> None:
    experiment = Experiment(file)
    paths = [cell.path for cell in experiment.cells()]
    assert len(paths) == len(set(paths)) > 1
    assert [Cell.parse(path).path for path in paths] == paths
    assert all(experiment.init_cell(cell) is None or experiment.init_cell(cell) != cell for cell in experiment.cells())


def test_the_sizes_of_every_model_are_known_before_it_is_fetched() -> None:
    found = {file.stem: read_part(ModelConfig, file) for file in (tiny.ROOT / "config/models").glob("*.yaml")}
    assert [name for name, model in found.items() if not model.architecture] == []
    small = [model.architecture for name, model in found.items() if name.startswith("smollm2-135m")]
    assert len(small) == 2 and small[0] == small[1]
    assert small[0] and small[0]["max_position_embeddings"] == 8192


def test_a_cell_is_its_path_and_its_identity() -> None:
    cell = Cell("tiny", "n-of-4", "0.50", "owl-m10", 3)
    assert cell.path == "tiny/n-of-4/s0.50/owl-m10/seed3" and Cell.parse(cell.path) == cell
    identity = {"model": "tiny", "granularity": "n-of-4", "sparsity": 0.5, "method": "owl-m10", "seed": 3}
    assert cell.as_dict() == identity


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "path", ["", "a/b/s0.20/owl", "a/b/0.20/owl/seed0", "a/b/s0.20/owl/seed", "a/b/s0.20/owl/seed01"]
)
def test_what_is_no_cell_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"is no cell\. Name it MODEL/GRANULARITY/sSPARSITY/METHOD/seedN"):
        Cell.parse(path)


def test_a_grid_lies_in_the_configuration_folder_or_in_its_grids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny.configure(tmp_path)
    inner = tmp_path / "config/grids/grid.yaml"
    inner.parent.mkdir()
    shutil.copy(file, inner)
    assert Experiment(file).root == Experiment(inner).root == tmp_path / "config"
    monkeypatch.chdir(inner.parent)
    assert list(Experiment(Path("grid.yaml")).cells()) == list(Experiment(file).cells())


def test_what_a_grids_folder_lacks_comes_from_the_current_folder_and_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.configure(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    grid = Path("mine/grid.yaml")
    grid.write_text("title: Mine\nmodels: [tiny, opt-125m]\ntext: docs\nsparsities: [0.2]\nmethods: [owl]\n")
    experiment = Experiment(grid)
    assert experiment.entry("models", "tiny") == Path("config/models/tiny.yaml")
    assert experiment.entry("models", "opt-125m") == PACKAGED / "models/opt-125m.yaml"
    grid.write_text(grid.read_text().replace("tiny", "tyni"))
    with pytest.raises(ConfigError, match=r"mine/grid.yaml: models/tyni.yaml does not exist: did you mean tiny"):
        Experiment(grid)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["structured", "unstructured"])
@pytest.mark.parametrize("setting", [{"keep_blocks": "0,-1:"}, {"attention_units": "query-heads"}])
@pytest.mark.parametrize("where", ["model", "variant"])
def test_what_the_units_are_is_a_setting_of_what_it_can_change(
    tmp_path: Path, granularity: str, setting: dict[str, str], where: str
) -> None:
    file = tiny.configure(tmp_path)
    steps = ("calibrate", "allocate", "apply", "evaluate")
    cell = Cell("tiny", granularity, "0.30", "owl", 0)
    before = {step: step_settings(Experiment(file), step, cell) for step in steps}
    assert all(setting.keys().isdisjoint(settings) for settings in before.values())
    if where == "model":
        edit("config/models/tiny.yaml", **setting)(tmp_path)
    else:
        edit("config/grid.yaml", variants={"owl": {"compensate": "ridge", **setting}})(tmp_path)
        if "keep_blocks" in setting:
            edit("config/models/tiny.yaml", keep_blocks="1")(tmp_path)  # which the variant's come before
    after = {step: step_settings(Experiment(file), step, cell) for step in steps}
    for step in steps:
        structured = granularity == "structured" or "keep_blocks" in setting
        changed = setting if step in ("allocate", "apply") and structured else {}
        assert after[step] == before[step] | changed


@pytest.mark.parametrize("compensate", ["none", "bias", "ridge"])
@pytest.mark.parametrize(
    ("method", "params"), [("grasprune", {}), ("grasprune", {"scale_share": 0}), ("policy-gradient", {}), ("owl", {})]
)
def test_what_becomes_of_scales_is_a_setting_where_a_method_learns_some_and_something_is_compensated(
    tmp_path: Path, method: str, params: dict[str, int], compensate: str
) -> None:
    file = tiny.configure(tmp_path)
    variants = {method: {"compensate": compensate, "params": params}}
    edit("config/grid.yaml", methods=[method], variants=variants)(tmp_path)
    cell, learned = Cell("tiny", "structured", "0.30", method, 0), method == "grasprune" and not params
    allocate, apply = (step_settings(Experiment(file), step, cell) for step in ("allocate", "apply"))
    assert apply["compensate"] == compensate and "compensate" not in allocate
    assert apply.get("scales") == ("kept" if learned and compensate == "bias" else None)
    assert allocate.get("scales") == ("not learned" if learned and compensate == "ridge" else None)


def test_a_grid_of_compensated_searches_leaves_those_plain_that_score_gates_alone(tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    variants = {name: {"compensate": "ridge"} for name in ("owl", "grasprune", "policy-gradient", "evolutionary")}
    variants["table"] = {"use": "policy-gradient", "params": {"start": "fisher-table"}, "compensate": "ridge"}
    edit("config/grid.yaml", methods=[*variants], variants=variants, search={"compensated": True})(tmp_path)
    experiment = Experiment(file)
    assert [name for name in variants if experiment.compensated_search(name)] == ["evolutionary", "table"]


def test_where_a_bos_stands_is_a_setting_of_the_steps_that_read_texts(tmp_path: Path) -> None:
    file, steps = tiny.configure(tmp_path), ("calibrate", "allocate", "apply", "recover", "evaluate")
    cell, found = Cell("tiny", "structured", "0.30", "owl", 0), {}
    for bos in ("never", "auto", "always", "once"):
        edit("config/models/tiny.yaml", bos=bos)(tmp_path)
        found[bos] = {step: step_settings(Experiment(file), step, cell) for step in steps}
    for step in steps:  # without one, settings are as they were before there was a choice
        reads, without = step in ("calibrate", "recover", "evaluate"), found["never"][step]
        assert all(found[bos][step] == without | ({"bos": bos} if reads else {}) for bos in ("auto", "always", "once"))
    edit("config/models/tiny.yaml", bos=None)(tmp_path)
    assert step_settings(Experiment(file), "evaluate", cell) == found["auto"]["evaluate"]


def test_one_text_in_two_forms_is_the_same_and_another_test_text_is_a_setting_of_the_evaluation(tmp_path: Path) -> None:
    file, steps = tiny.configure(tmp_path), ("calibrate", "allocate", "apply", "recover", "evaluate")
    shutil.copy(tmp_path / "config/texts/docs.yaml", tmp_path / "config/texts/more.yaml")
    cell, found = Cell("tiny", "structured", "0.30", "owl", 0), {}
    forms = {"short": None, "long": ["docs"], "two": ["docs", "more"], "turned": ["more", "docs"], "other": ["more"]}
    for name, test in forms.items():
        if test:
            edit("config/grid.yaml", text=None, texts={"calibrate": "docs", "test": test})(tmp_path)
        experiment = Experiment(file)
        assert experiment.grid.calibration_text == "docs" and experiment.grid.test_texts == tuple(test or ["docs"])
        found[name] = {step: step_settings(experiment, step, cell) for step in steps}
    assert found["short"] == found["long"] and "texts" not in found["short"]["evaluate"]
    for name in ("two", "turned", "other"):
        changed = {step for step in steps if found[name][step] != found["short"][step]}
        assert changed == {"evaluate"} and found[name]["evaluate"]["texts"] == forms[name]


def test_a_search_has_every_seed_and_a_heuristic_one(tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    edit("config/grid.yaml", seeds=[4, 5], methods=["owl", "fastforward"])(tmp_path)
    cells = [(cell.method, cell.seed) for cell in Experiment(file).cells()]
    assert cells == [("dense", 0), ("owl", 4), ("fastforward", 4), ("fastforward", 5)]


def test_settings_of_a_variant_come_before_those_of_the_grid(tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    variants = {
        "owl": {"pruner": "magnitude", "params": {"max_deviation": 0.1}},
        "fastforward": {"score": "wifv", "fitness": "kl", "compensate": "bias"},
    }
    granularities = ["structured", "unstructured"]
    edit("config/grid.yaml", variants=variants, methods=["owl", "fastforward", "uniform"], granularities=granularities)(
        tmp_path
    )
    experiment = Experiment(file)
    names = ("owl", "fastforward", "uniform")
    assert [experiment.pruner(name) for name in names] == ["magnitude", "wanda", "wanda"]
    assert [experiment.score(name) for name in names] == ["wanda", "wifv", "wanda"]
    assert [experiment.fitness(name) for name in names] == ["ppl", "kl", "ppl"]
    assert [experiment.compensation(name) for name in names] == ["none", "bias", "none"]
    assert experiment.create("owl").model_dump()["max_deviation"] == 0.1
    assert experiment.refusal("owl", "structured") and experiment.refusal("fastforward", "unstructured")


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "wanted"), [("fastforward", "s0.45"), ("owl", "s0.20")])
def test_a_policy_that_no_cell_makes_is_refused(name: str, wanted: str, tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    edit("config/grid.yaml", sparsities=[0.2, 0.3], variants={name: {"init": {"from": wanted}}})(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"variants\.{name}\.init asks for the policy of .*which the grid does not make"
    ):
        Experiment(file)


def test_a_search_starts_from_the_policy_of_another_cell(tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    variants = {"fastforward": {"init": {"from": "s0.20"}}}
    edit("config/grid.yaml", sparsities=[0.2, 0.3], methods=["fastforward"], variants=variants)(tmp_path)
    experiment = Experiment(file)
    first, second = experiment.cells(dense=False)
    assert experiment.init_cell(second) == first and experiment.init_cell(first) is None


def test_the_checkpoints_of_a_search_ascend(tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    assert Experiment(file).grid.search.checkpoints[-1] == 1
    for shares in ([0.5, 0.25], [0.5, 0.5], [0], [1.1], []):
        edit("config/grid.yaml", search__checkpoints=shares)(tmp_path)
        with pytest.raises(ConfigError, match=r"search.checkpoints"):
            Experiment(file)


@pytest.mark.slow
def test_configuration_and_command_line_import_no_torch() -> None:
    code = "import sys, ffp.cli; ffp.cli.main(['--help']); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True).returncode == 0
