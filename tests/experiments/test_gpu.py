"""The benchmark of one GPU, on a tiny shape and the CPU."""

import logging
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu_steps import SHAPES, STEPS
from ffp.store.files import read_json

WORDS = [
    "--shapes", "tiny", "--device", "cpu", "--dtype", "float32", "--context", "32", "--batch-tokens", "64",
    "--windows", "3", "--compensate-windows", "2", "--sparsities", "0.3", "0.5", "--aligns", "1", "32", "--rounds", "2",
]  # fmt: skip


def run(monkeypatch, out, *words):
    monkeypatch.setattr(sys, "argv", ["gpu", *WORDS, "--out", str(out), *words])
    monkeypatch.setattr(logging.getLogger("ffp"), "setLevel", lambda level: None)  # it would last
    gpu.main()
    return steps_of(out)


def steps_of(out):
    return read_json(out, [gpu.SCHEMA], sealed=True)[1]["shapes"]["tiny"]["steps"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, path, "--commit", "abc")
    return path


@pytest.fixture
def steps(out):
    return steps_of(out)


def test_each_step_has_seconds_and_the_figures_of_the_plan(steps, out):
    assert list(steps) == list(STEPS)
    for entry in steps.values():
        assert entry["seconds"] > 0 and entry["peak_memory_bytes"] is None and "failed" not in entry
    calls = {"calibrate": (3 + 4 + 1, 1), "candidate": (4, 1), "gate": (2, 3)}  # windows, forwards of each
    tiny = SHAPES["tiny"]
    width, ffn = tiny["hidden_size"], tiny["intermediate_size"]
    block = 3 * width * width + 3 * width * ffn  # queries, output, half as wide keys and values; gate, up, down
    matrices = tiny["num_hidden_layers"] * block + width * tiny["vocab_size"]
    for name, (windows, forwards) in calls.items():
        assert steps[name]["tokens"] == 32 * windows
        assert steps[name]["plan"]["flops"] == 2 * matrices * 32 * windows * forwards
        assert steps[name]["plan"]["memory_bytes"] > 4 * matrices
    origin = read_json(out, [gpu.SCHEMA])[1]["provenance"]
    assert (origin["commit"], origin["dirty"], origin["device"]) == ("abc", False, "cpu")  # whatever git says
    assert origin["settings"]["windows"] == 3


def test_candidates_are_rewarded_against_the_dense_model(steps):
    found = steps["candidate"]["candidates"]
    assert list(found) == ["dense", "0.30/1", "0.30/32", "0.50/1", "0.50/32"]
    assert found["dense"]["reward"] == pytest.approx(1, abs=1e-6)
    assert found["dense"]["over_dense"] == found["dense"]["flops_over_dense"] == 1
    for name in list(found)[1:]:
        assert found[name]["sparsity"] >= float(name.split("/")[0]) and found[name]["flops_over_dense"] < 1


def test_gradients_are_taken_with_each_align(steps):
    found = steps["gate"]["aligns"]
    assert list(found) == ["1", "32"] and found["1"]["seconds"] == steps["gate"]["seconds"]
    assert all(one["over_reward"] > 0 and one["reward_s"] > 0 for one in found.values())
    assert steps["gate"]["plan"]["memory_bytes"] > steps["candidate"]["plan"]["memory_bytes"]  # a backward's


def test_the_export_has_the_bytes_of_what_is_left(steps):
    assert steps["export"]["bytes"] == pytest.approx(4 * steps["export"]["params"], rel=0.1)
    assert steps["export"]["over_plan"]["disk"] < 0.9


def test_a_step_that_fails_is_recorded_after_the_others_and_the_next_goes_on(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"

    def fail(run):
        assert list(steps_of(out)) == ["build"]  # written by then
        raise RuntimeError("CUDA error\nno memory")

    monkeypatch.setitem(STEPS, "calibrate", fail)
    steps = run(monkeypatch, out, "--skip", "candidate", "export")
    assert list(steps) == ["build", "calibrate", "gate", "compensate"]
    assert steps["calibrate"] == {"failed": "RuntimeError: no memory"}
    assert steps["gate"]["seconds"] > 0 and steps["compensate"]["seconds"] > 0


def test_no_step_begins_after_the_limit(monkeypatch, tmp_path):
    steps = run(monkeypatch, tmp_path / "gpu.json", "--limit", "0")
    assert {entry["failed"] for entry in steps.values()} == {"not begun: --limit 0 s is over"}
