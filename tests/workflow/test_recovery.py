"""Recovery in a grid, from files to files: cells that are trained, the trained dense model, and kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffp import cli
from ffp.config import Cell, Experiment
from ffp.measure.windows import SEPARATOR
from ffp.models.checkpoint import load_pruned
from ffp.pipeline import plan, sizes
from ffp.pipeline.inputs import recovery_windows
from ffp.pipeline.recover import recover
from ffp.pipeline.steps import evaluate, load_prunable
from ffp.pipeline.took import took
from ffp.pipeline.verify import Verifier
from ffp.store import code_version, schemas
from ffp.store.documents import read_documents
from ffp.store.files import read_table
from ffp.store.identity import step_settings
from ffp.store.layout import CellFiles
from ffp.store.schemas import CostFile, ScoresFile
from ffp.store.training import FileTraining
from tests.helpers import tiny
from tests.helpers.verify import faults
from tests.workflow.test_code_version import called

RECOVER = {"tokens": 2560, "rank": 4, "batch_tokens": 64, "learning_rate": 0.02, "dense": True}
PLAIN, TRAINED = "tiny/structured/s0.30/owl/seed0", "tiny/structured/s0.30/owl-lora/seed0"
DENSE, TUNED = "tiny/structured/s0.00/dense/seed0", "tiny/structured/s0.00/dense-lora/seed0"
ONE = ["--config", "config/grid.yaml", "--model-dir", "data/models/tiny"]


def change(folder: Path, **keys: object) -> None:
    grid = folder / "config/grid.yaml"
    grid.write_text(yaml.safe_dump(yaml.safe_load(grid.read_text()) | keys))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A finished grid of a method with and without recovery."""
    folder = tmp_path_factory.mktemp("recovery")
    tiny.build(folder)
    variants = {"owl": {"compensate": "ridge", "recover": "none"}, "owl-lora": {"use": "owl", "compensate": "ridge"}}
    change(folder, methods=["owl", "owl-lora"], variants=variants, recover=RECOVER)
    done = tiny.snakemake(folder)
    assert done.returncode == 0, done.output
    return folder


@pytest.fixture
def here(grid, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(grid, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path, cell: str) -> CellFiles:
    return CellFiles(folder / "results/cells" / cell)


def scores(folder: Path, cell: str) -> ScoresFile:
    return ScoresFile.read(files(folder, cell).scores)


def test_only_cells_that_ask_for_it_are_trained(grid):
    made = {path.parent.relative_to(grid / "results/cells").as_posix() for path in grid.rglob("recovered.safetensors")}
    assert made == {TRAINED, TUNED}
    assert not list(grid.rglob("recover.state.safetensors"))
    assert not list(files(grid, PLAIN).folder.glob("recover*"))


def test_both_perplexities_are_measured_and_recovery_helps(grid):
    trained, plain = scores(grid, TRAINED), scores(grid, PLAIN)
    assert trained.ppl_before == plain.ppl, "before is the cell without recovery: same allocation, same masks"
    assert trained.ppl.value < plain.ppl.value
    tuned, dense = scores(grid, TUNED), scores(grid, DENSE)
    assert tuned.ppl_before == dense.ppl and tuned.ppl.value < dense.ppl.value
    assert "ppl_before" not in files(grid, PLAIN).scores.read_text()
    assert trained.params == plain.params and tuned.block_sparsity == 0


def test_the_plan_counts_the_perplexity_before_recovery(grid, monkeypatch):
    monkeypatch.chdir(grid)
    experiment = Experiment(Path("config/grid.yaml"))
    prunable = sizes.prunables_of(experiment, "tiny", sizes.load_sizes(experiment, "tiny"))[0]
    planned = plan.planned_flops(prunable, experiment, "tiny", 0)["evaluate"] / sizes.forward_flops(prunable)
    forwarded = took(experiment, "tiny")["evaluate"].tokens
    assert planned == pytest.approx(forwarded * 64 / 63)  # the first token of a window is not predicted


def test_the_curve_falls_and_the_cost_is_counted(grid):
    curve = schemas.CURVE.read(files(grid, TRAINED).curve)
    assert list(curve["tokens"]) == [64 * step for step in curve["step"]] and len(curve) == 40
    assert curve["loss"][-10:].mean() < curve["loss"][:10].mean()
    cost = CostFile.read(files(grid, TRAINED).recover_cost)
    assert cost.n_tokens == 3 * 2560 and cost.wall_s > 0


def test_the_report_shows_before_and_after_and_the_cost_apart_from_the_searchs(grid):
    table = pd.read_csv(grid / "results/report/comparison.csv").set_index("method")
    assert set(table["status"]) == {"done"} and list(table.index[:2]) == ["dense", "dense-lora"]
    row = table.loc["owl-lora"]
    assert row["ppl_before"] == pytest.approx(table.loc["owl", "ppl"]) and row["ppl"] < row["ppl_before"]
    assert row["recover_tokens"] == 7680 and row["search_tokens"] == 0
    assert np.isnan(table.loc["owl", "recover_tokens"])
    text = (grid / "results/report/comparison.md").read_text()
    assert "PPL before | PPL |" in text and "recover tokens | recover (s)" in text
    assert "PPL before is that of the pruned model before it was trained" in text
    assert "recover: LoRA of rank 4, 2,560 tokens" in (grid / "results/report/ablation.md").read_text()


def test_a_second_run_does_nothing_and_another_rank_repeats_the_training_alone(here):
    again = tiny.snakemake(here)
    assert "Nothing to be done" in again.output
    change(here, recover=RECOVER | {"rank": 3})
    planned = tiny.snakemake(here, "--dry-run").output
    assert planned.count(": recover tiny/") == 2 and planned.count(": evaluate tiny/") == 2, planned
    assert ": apply" not in planned and ": allocate" not in planned and ": calibrate" not in planned
    change(here, recover=RECOVER | {"checkpoint": False})
    assert ": recover" not in tiny.snakemake(here, "--dry-run").output


def test_a_sound_grid_is_verified_and_edits_are_found(here):
    assert not Verifier(Experiment(Path("config/grid.yaml"))).run()
    for cell in (TRAINED, TUNED):
        file, kept = files(here, cell).recovered, files(here, cell).recovered.read_bytes()
        weights, origin = schemas.UPDATES.read(file)
        name = next(iter(weights))
        schemas.UPDATES.write(file, {**weights, name: weights[name] + 1e-3}, origin)
        found = faults(Experiment(Path("config/grid.yaml")))
        assert any("scores.json: recovered is" in fault for fault in found), found
        file.write_bytes(kept)
    body = json.loads(files(here, TRAINED).scores.read_text())
    del body["schema"], body["checksum"]
    body["ppl_before"]["value"] += 1e-3
    ScoresFile.model_validate(body).write(files(here, TRAINED).scores)
    found = faults(Experiment(Path("config/grid.yaml")))
    assert any("scores.json: ppl_before.value is" in fault for fault in found), found


def test_the_printed_commands_train_a_cell_again_to_the_same_bytes(here):
    from ffp.report.collect import collect
    from ffp.report.details import commands

    experiment = Experiment(Path("config/grid.yaml"))
    for record in collect(experiment):
        if record.cell.path in (TRAINED, TUNED):
            before = files(here, record.cell.path).recovered.read_bytes()
            shutil.rmtree(files(here, record.cell.path).folder)
            done = tiny.shell(here, *commands(experiment, record))
            assert done.returncode == 0, done.stdout
            assert files(here, record.cell.path).recovered.read_bytes() == before


def train(folder, out, **options):
    words = [*ONE, "--cell", TRAINED, "--text-dir", "data/text/docs", "--cut", f"results/cells/{TRAINED}"]
    return tiny.run(folder, "ffp.cli", "recover", *words, "--out", out, **options)


@pytest.mark.fault
def test_a_killed_training_ends_like_an_undisturbed_one(here):
    """kill -9 after a state; the second attempt goes on from it and ends with the same bytes."""
    state = here / "again/recover.state.safetensors"
    run = train(here, "again", start_only=True)
    while run.poll() is None and not state.exists():
        time.sleep(0.01)
    assert run.poll() is None, "the training ended before it could be killed"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (here / "again/recovered.safetensors").exists()
    last = train(here, "again")
    assert last.returncode == 0 and "resuming: recovery after step" in last.output, last.output
    straight, again = files(here, TRAINED), CellFiles(here / "again")
    assert again.recovered.read_bytes() == straight.recovered.read_bytes()
    assert read_table(again.curve).equals(read_table(straight.curve))
    assert CostFile.read(again.recover_cost).n_tokens == CostFile.read(straight.recover_cost).n_tokens
    assert not state.exists()


@pytest.mark.fault
@pytest.mark.parametrize(("batch_tokens", "goes_on"), [(256, True), (64, False)])
def test_a_killed_training_goes_on_with_the_same_batches_alone(batch_tokens, goes_on, here, monkeypatch, caplog):
    """As after memory did not suffice: sums of other batches differ in their last bits."""
    model, save = here / "config/models/tiny.yaml", FileTraining.save
    folders = [Path("data/models/tiny"), Path("data/text/docs"), files(here, TRAINED).folder, Path("again")]

    def run(batch_tokens: int) -> None:
        model.write_text(yaml.safe_dump(yaml.safe_load(model.read_text()) | {"batch_tokens": batch_tokens}))
        experiment = Experiment(Path("config/grid.yaml"))
        recover(experiment, experiment.cell(TRAINED), *folders)

    def killed(self: FileTraining, arrays: object) -> None:
        save(self, arrays)
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(FileTraining, "save", killed)
        run(256)
    caplog.set_level("INFO")
    run(batch_tokens)
    assert ("resuming: recovery after step" in caplog.text) == goes_on
    assert CellFiles(Path("again")).recovered.exists()


def test_a_state_of_other_settings_counts_for_nothing(here):
    (here / "again").mkdir()
    other = schemas.TrainingOrigin(identity="other")
    schemas.TRAINING.write(here / "again/recover.state.safetensors", {"curve": np.zeros((8, 4))}, other)
    last = train(here, "again")
    assert last.returncode == 0 and "resuming" not in last.output
    assert (here / "again/recovered.safetensors").read_bytes() == files(here, TRAINED).recovered.read_bytes()


def exported(folder: Path, out: str, *words: str):
    assert cli.main(["export", *ONE, "--cell", TRAINED, "--cut", f"results/cells/{TRAINED}", "--out", out, *words]) == 0
    return (folder / out / "README.md").read_text()


def test_exports_hold_the_trained_weights_in_both_shapes(here):
    card = exported(here, "small")
    assert "- Recovery: LoRA of rank 4, 2,560 tokens, fitted to the text, from the calibration text" in card
    assert f"Perplexity before it: {scores(here, TRAINED).ppl_before.value:.4g}" in card
    exported(here, "wide", "--format", "dense-shape")
    models = [load_pruned("small"), AutoModelForCausalLM.from_pretrained("wide").eval()]
    ids = torch.arange(40)[None]
    logits = [model(ids).logits for model in models]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    weights, _ = schemas.UPDATES.read(files(here, TRAINED).recovered)
    for name, value in models[0].named_parameters():
        if name in weights:
            assert np.array_equal(value.detach().numpy(), weights[name])


def test_no_document_of_calibration_or_of_another_text_is_trained_on(here):
    experiment = Experiment(Path("config/grid.yaml"))
    prunable = load_prunable(experiment, "tiny", Path("data/models/tiny"), weights=False)
    tokenizer = AutoTokenizer.from_pretrained("data/models/tiny")
    cell = experiment.cell(TRAINED)
    trained = recovery_windows(experiment, cell, prunable, tokenizer, Path("data/text/docs"))
    read = tokenizer.decode(trained.flatten())
    tokens, _ = schemas.TOKENS.read(Path("data/calibration/tiny/tokens.safetensors"))
    calibrated = tokenizer.decode(tokens["calibration"].flatten())
    documents = read_documents(Path("data/text/docs/calibration.jsonl"))
    used = [document for document in documents if calibrated.find(document[:200]) >= 0]
    assert used and len(used) < len(documents)
    assert not [document for document in used if document[-200:] in read]
    others = [
        d for name in ("search", "selection", "test") for d in read_documents(Path(f"data/text/docs/{name}.jsonl"))
    ]
    assert not [document for document in others if document[:200] in read]
    assert documents[len(used)][:200] in read


def refused(capsys, *words: str) -> str:
    assert cli.main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.bad_input
def test_what_cannot_be_trained_is_refused_in_one_line_before_anything_costly(here, capsys, monkeypatch):
    out = ["--text-dir", "data/text/docs", "--out", "x"]
    assert "asks for no recovery" in refused(capsys, "recover", *ONE, "--cell", PLAIN, *out)
    assert "give --cut with the folder" in refused(capsys, "recover", *ONE, "--cell", TRAINED, *out)
    scored = ["--text-dir", "data/text/docs", "--out", "x.json"]
    assert "give --cut with the folder" in refused(capsys, "evaluate", *ONE, "--cell", TUNED, *scored)
    export = [*ONE, "--cut", f"results/cells/{TUNED}", "--out", "y"]
    assert "nothing was removed" in refused(capsys, "export", *export, "--cell", TUNED)
    calibrate = ["calibrate", *ONE, "--model", "tiny", "--text-dir", "data/text/docs", "--out", "z"]
    tokenizer = AutoTokenizer.from_pretrained("data/models/tiny")
    text = SEPARATOR.join(read_documents(Path("data/text/docs/calibration.jsonl")))
    whole = len(tokenizer(text)["input_ids"]) // 64
    change(here, calibration={"windows": whole, "context": 64})
    monkeypatch.setattr("ffp.api.calibrate", lambda *_, **__: pytest.fail("a token was spent"))
    assert "no document of the calibration text is left for recovery" in refused(capsys, *calibrate)
    change(here, calibration={"windows": 4, "context": 64})
    model = here / "config/models/tiny.yaml"
    model.write_text(model.read_text() + "offload: true\n")
    assert "which offload keeps on the host. Leave one out" in refused(capsys, *calibrate)
    assert "which offload keeps on the host. Leave one out" in refused(
        capsys, "validate", "--config", "config/grid.yaml"
    )


def test_validate_counts_recovery(here):
    experiment = Experiment(Path("config/grid.yaml"))
    found = plan.plan_model(experiment, "tiny")
    assert found.jobs == {
        "asset": 1,
        "preflight": 1,
        "calibrate": 1,
        "allocate": 2,
        "apply": 2,
        "recover": 2,
        "evaluate": 4,
    }
    prunable = load_prunable(experiment, "tiny", Path("data/models/tiny"), weights=False)
    assert found.flops["recover"] == 2 * 3 * 2560 * sizes.forward_flops(prunable)
    kl = {"owl": {"recover": "none"}, "owl-lora": {"use": "owl", "recover": {"loss": "kl", "tokens": 2560}}}
    change(here, variants=kl, recover="none")
    other = plan.plan_model(Experiment(Path("config/grid.yaml")), "tiny")
    assert other.jobs["recover"] == 1 and other.flops["recover"] == 4 * 2560 * sizes.forward_flops(prunable)
    assert other.memory["recover"] > found.memory["recover"] + found.host / 2
    assert "recover time" in plan.report(Experiment(Path("config/grid.yaml")), tflops=1.0)
    change(here, variants={"owl-lora": {"use": "owl"}})
    bare = Experiment(Path("config/grid.yaml"))
    assert "recover" not in plan.report(bare, tflops=1.0)


def test_a_cell_can_be_fitted_to_the_dense_models_predictions(here):
    kl = {"loss": "kl", "tokens": 640, "rank": 2, "batch_tokens": 128}
    owl = {"use": "owl", "compensate": "ridge"}
    change(here, variants={"owl": owl | {"recover": "none"}, "owl-lora": owl | {"recover": kl}}, recover="none")
    done = train(here, "kl")
    assert done.returncode == 0, done.output
    assert CostFile.read(here / "kl/recover.cost.json").n_tokens == 4 * 640


def test_nothing_that_runs_in_the_step_is_missing_in_the_digest_of_its_code(here):
    experiment = Experiment(Path("config/grid.yaml"))
    cell, folder = experiment.cell(TRAINED), files(here, TRAINED).folder
    model, text = Path("data/models/tiny"), Path("data/text/docs")
    runs = {
        "recover": lambda: recover(experiment, cell, model, text, folder, here / "again"),
        "evaluate": lambda: evaluate(experiment, cell, model, [text], None, folder, here / "scores.json"),
    }
    for step, run in runs.items():
        entered = {item for item in called(run) if not item[0].startswith(code_version.OUTSIDE)}
        assert len(entered) > 10
        assert entered <= code_version.closure(step), f"{step} runs code that its digest does not cover"


def test_settings_of_cells_without_recovery_do_not_name_it(here):
    experiment = Experiment(Path("config/grid.yaml"))
    for cell in experiment.cells():
        trained = cell.path in (TRAINED, TUNED)
        assert ("recover" in step_settings(experiment, "evaluate", cell)) == trained
        if not cell.is_dense:
            assert "recover" not in step_settings(experiment, "apply", cell)
            assert "recover" not in step_settings(experiment, "allocate", cell)
    assert Cell.parse(TUNED).is_dense and not Cell.parse(TRAINED).is_dense


def test_the_experiment_reads_trained_cells(here, monkeypatch):
    from experiments import recovery

    monkeypatch.setattr("sys.argv", ["recovery", "--config", "config/grid.yaml", "--out", "recovery.json"])
    recovery.main()
    body = json.loads(Path("recovery.json").read_text())
    assert [run["cell"] for run in body["runs"]] == [TUNED, TRAINED] and body["missing"] == []
    for run in body["runs"]:
        found = scores(here, run["cell"])
        assert (run["before"]["value"], run["after"]["value"]) == (found.ppl_before.value, found.ppl.value)
        gain, stderr = body["marks"]["gain"][run["cell"]]
        assert gain == pytest.approx(np.log(found.ppl_before.value / found.ppl.value)) and stderr > 0
        assert run["tokens"] == 3 * RECOVER["tokens"] and run["seconds"] > 0
