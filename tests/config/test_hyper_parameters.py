"""A wrong hyper-parameter of any method is refused when the grid is read, before any job runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffp.allocators import METHODS
from ffp.cli import main
from ffp.config import Experiment
from ffp.core.errors import ConfigError
from tests.bad_input.refusal import edit
from tests.helpers import tiny

FIELDS = [(name, key) for name, method in METHODS.items() for key in method.model_fields]


def sound(name: str) -> dict[str, Any]:
    """The hyper-parameters that a method cannot do without."""
    return {"file": "allocation.json"} if name == "import" else {}


def outside(name: str, key: str) -> Iterator[Any]:
    """Values just outside the bounds and the choices of a hyper-parameter."""
    schema = METHODS[name].model_json_schema()["properties"][key]
    for kind, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
        if kind in schema:
            yield schema[kind] + step
    if "enum" in schema:
        yield "no-such-choice"


def grid(folder: Path, name: str, **params: Any) -> Path:
    """The tiny grid with a variant of a method that the grid names by its own name."""
    file = tiny.configure(folder)
    variant = {"use": name, "params": {**sound(name), **params}}
    granularities = sorted(METHODS[name].granularities)[:1]
    edit("config/grid.yaml", methods=["mine"], variants={"mine": variant}, granularities=granularities)(folder)
    return file


def refusal(file: Path, capture: pytest.CaptureFixture[str]) -> str:
    """The one line with which a grid is refused, the same by the command and by Experiment()."""
    capture.readouterr()
    assert main(["validate", "--config", str(file)]) == 2
    [line] = capture.readouterr().err.splitlines()
    with pytest.raises(ConfigError) as refused:
        Experiment(file)
    assert line == f"ffp validate: {refused.value}"
    assert line.startswith(f"ffp validate: {file}: variants.mine.params."), line
    return line


@pytest.mark.bad_input
@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_hyper_parameter_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(grid(tmp_path, name, strenght=0.1), capsys)
    assert f"variants.mine.params.strenght: method {name!r} has no parameter 'strenght': " in line


@pytest.mark.bad_input
def test_a_misspelt_hyper_parameter_gets_near_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(grid(tmp_path, "owl", outlier_treshold=5), capsys)
    assert line.endswith("has no parameter 'outlier_treshold': did you mean outlier_threshold?")


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "key"), FIELDS)
def test_a_hyper_parameter_of_another_type_is_refused(
    name: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"variants.mine.params.{key}" in refusal(grid(tmp_path, name, **{key: {"a": 1}}), capsys)


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, key in FIELDS if list(outside(name, key))])
def test_a_hyper_parameter_out_of_bounds_is_refused(
    name: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in outside(name, key):
        line = refusal(grid(tmp_path, name, **{key: value}), capsys)
        assert f"variants.mine.params.{key}: " in line and str(value) in line


@pytest.mark.parametrize(("name", "key"), FIELDS)
def test_a_number_has_a_smallest_and_a_largest_value(name: str, key: str) -> None:
    schema = METHODS[name].model_json_schema()["properties"][key]
    if schema.get("type") in ("integer", "number"):
        assert {"minimum", "exclusiveMinimum"} & schema.keys() and {"maximum", "exclusiveMaximum"} & schema.keys()


@pytest.mark.bad_input
def test_a_generation_of_one_candidate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(grid(tmp_path, "cma-es", population=1), capsys)
    assert line.endswith("population = 1: a generation of 1 has nothing to select from. Give at least 2, or 0 for the "
                         "usual size")  # fmt: skip


@pytest.mark.bad_input
def test_a_hyper_parameter_at_the_old_place_is_refused(tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    edit("config/grid.yaml", variants={"owl": {"max_deviation": 0.1}})(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key 'variants.owl.max_deviation'.*method belong under params"):
        Experiment(file)


@pytest.mark.bad_input
def test_a_variant_that_no_cell_uses_is_checked_too(tmp_path: Path) -> None:
    file = tiny.configure(tmp_path)
    edit("config/grid.yaml", variants={"spare": {"use": "owl", "params": {"max_deviation": -1}}})(tmp_path)
    with pytest.raises(ConfigError, match=r"variants.spare.params.max_deviation: "):
        Experiment(file)


@pytest.mark.parametrize("name", METHODS)
def test_sound_hyper_parameters_are_accepted(name: str, tmp_path: Path) -> None:
    experiment = Experiment(grid(tmp_path, name))
    assert type(experiment.create("mine")) is METHODS[name] is experiment.method("mine")
    assert experiment.parameters("mine") == sound(name)
