"""A model of a listed family, given only its YAML, goes through every step, and scores the same once exported."""

import json
import re
from pathlib import Path

import pytest
import yaml

import ffp
from ffp import cli
from ffp.config import Experiment, ModelConfig, TaskConfig
from ffp.measure.perplexity import perplexity
from ffp.measure.task_loading import local_task
from ffp.measure.windows import token_windows
from ffp.models.checkpoint import load_tokenizer
from ffp.store.documents import read_documents
from ffp.store.schemas import ScoresFile
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]
MODELS = {
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3}, {}),
    "qwen3": ("Qwen3", {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}, {"align": 16}),
    "mistral": ("Mistral", {"num_key_value_heads": 2}, {"attention_units": "single-query-heads"}),
}


def readme_example() -> dict:
    """The YAML that README.md gives for a new model."""
    text = (ROOT / "README.md").read_text()
    return yaml.safe_load(re.search(r"\*\*Add a model\*\*.*?```yaml\n(.*?)```", text, re.DOTALL)[1])


def write(folder: Path, name: str, body: dict) -> None:
    path = folder / "config" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(body))


def run(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


@pytest.fixture(params=MODELS)
def site(request, tmp_path, monkeypatch, hub_modules):
    """A folder with the README's YAML for a tiny model, from local files and on the CPU, and one task."""
    family, sizes, settings = MODELS[request.param]
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")  # commands set them for themselves; here they are undone
    grid = yaml.safe_load(tiny.build(tmp_path, family, **sizes).read_text())
    here = {"source": {"kind": "local", "path": "source"}, "device": "cpu", "dtype": "float32", "batch_tokens": 256}
    write(tmp_path, "models/new", readme_example() | here | settings)
    rows = [{"goal": f"Open door {i}", "sol1": "push", "sol2": "pull it twice", "label": i % 2} for i in range(6)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"stock": "piqa", "source": {"kind": "local", "path": "piqa.jsonl"}, "reader": "jsonl"}
    write(tmp_path, "tasks/one", {"title": "One", "version": "1", "tasks": {"piqa": task}})
    variants = {"fastforward-guided": {"compensate": "bias"}}
    changes = {"models": ["new"], "tasks": "one", "methods": ["fastforward-guided"], "variants": variants}
    write(tmp_path, "grid", grid | changes)
    return tmp_path


def test_the_readmes_example_is_a_valid_model():
    assert ModelConfig.model_validate(readme_example()).source.kind == "hub"


def test_a_new_model_goes_through_every_step_and_scores_the_same_elsewhere(site):
    experiment = Experiment(Path("config/grid.yaml"))
    name = next(cell.path for cell in experiment.cells(dense=False))
    grid, model = ["--config", "config/grid.yaml"], ["--model-dir", "data/models/new"]
    calibration, out = ["--calibration", "data/calibration/new"], Path("results/cells", name)
    for kind, part in (("model", "models/new"), ("text", "texts/docs"), ("tasks", "tasks/one")):
        run("asset", kind, "--config", f"config/{part}.yaml", "--out", f"data/{part.replace('texts', 'text')}")
    texts = ["--text-dir", "data/text/docs"]
    run("calibrate", *grid, "--model", "new", *model, *texts, "--out", "data/calibration/new")
    run("allocate", *grid, "--cell", name, *model, *calibration, "--out", out)
    run("apply", *grid, "--cell", name, *model, *calibration, "--allocation", out / "allocation.json", "--out", out)
    cut = ["--tasks-dir", "data/tasks/one", "--cut", out, "--out", out / "scores.json"]
    run("evaluate", *grid, "--cell", name, *model, *texts, *cut)
    run("export", *grid, "--cell", name, "--out", "exported")
    scores = ScoresFile.read(out / "scores.json")

    align, pruned = experiment.models["new"].align, json.loads(Path("exported/config.json").read_text())["pruned"]
    channels = next(sizes["in"] for path, sizes in pruned["linears"].items() if path.endswith(("fc2", "down_proj")))
    assert all(count % align == 0 for count in channels)
    loaded = ffp.load_pruned("exported", device="cpu")
    assert scores.params.kept == sum(p.numel() for p in set(loaded.parameters()))
    documents = read_documents(Path("data/text/docs/test.jsonl"))
    windows = token_windows(load_tokenizer(Path("exported")), documents, context=64, windows=6, name="test text")
    assert perplexity(loaded, windows, batch_tokens=256)["value"] == pytest.approx(scores.ppl.value)
    assert stock_lm_eval(site) == {name: metric.model_dump() for name, metric in scores.tasks["piqa"].metrics.items()}
    card = Path("exported/README.md").read_text()
    assert f"| {scores.ppl.value:.4g} ±" in card
    assert "license: other" in card


def stock_lm_eval(site: Path) -> dict:
    """The metrics that lm-eval's own `--model hf` gives to the exported folder on the same documents."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    config = TaskConfig.model_validate({"stock": "piqa", "source": {"kind": "local", "path": "piqa.jsonl"}})
    task = local_task("again", config, site / "piqa.jsonl", cache=site / "cache")
    (site / "lm-eval").mkdir()
    (site / "lm-eval/again.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(site / "lm-eval"), include_defaults=False)
    found = simple_evaluate(
        model="hf",
        model_args="pretrained=exported,trust_remote_code=True,dtype=float32",
        device="cpu",
        tasks=["again"],
        task_manager=manager,
        bootstrap_iters=1000,
    )["results"]["again"]
    return {
        metric: {"value": found[f"{metric},none"], "stderr": found[f"{metric}_stderr,none"]}
        for metric in ("acc", "acc_norm")
    }
