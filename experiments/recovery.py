"""What LoRA wins back after pruning, and what the text alone is worth: the dense model trained on the same tokens.

    make demo && python -m experiments.recovery

Trains the demo's cells of one method, and the dense model, each on the same windows: documents of the calibration text
that calibration did not use. The test text is read by the two evaluations only. Settings are the defaults of
`ffp prune --recover lora`. Finished models are kept below --work; a killed training goes on where it was.

- `runs[]`: by sparsity: perplexity `before` and `after` with standard errors, `tokens` that were trained on, `seconds`,
  and the training's loss over its first and last quarter of steps.
- `marks.gain`: by sparsity, nats a token that training wins on the test text; `marks.of_which_text`: the dense model's
  own gain, which is no recovery.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from ffp import api
from ffp.config import Cell, Experiment
from ffp.config.recover import RecoverSettings
from ffp.measure.windows import later_windows
from ffp.models.checkpoint import load_tokenizer
from ffp.pipeline.inputs import text_windows
from ffp.pipeline.steps import load_prunable, prune_by_files
from ffp.store.documents import read_documents
from ffp.store.files import read_json, write_json
from ffp.store.layout import Layout
from ffp.store.provenance import provenance
from ffp.store.training import FileTraining

TAG, RUN = "ffp/experiment/recovery/1", "ffp/experiment/recovery-run/1"


def main() -> None:
    """Trains what is missing and writes the JSON."""
    options = _options()
    experiment = Experiment(options.config)
    model = experiment.grid.models[0]
    cells = [experiment.cell(f"{model}/structured/s0.00/dense/seed0")]
    cells += [experiment.cell(f"{model}/structured/s{each}/{options.method}/seed0") for each in options.sparsities]
    settings = RecoverSettings(tokens=options.tokens, checkpoint=False)
    runs = [_kept(experiment, cell, settings, options.work) for cell in cells]
    gains = {run["sparsity"]: math.log(run["before"]["value"] / run["after"]["value"]) for run in runs}
    body = {
        "marks": {"gain": gains, "of_which_text": gains[cells[0].sparsity]},
        "command": f"python -m experiments.recovery --tokens {options.tokens}",
        "method": options.method,
        "recover": settings.model_dump(),
        "runs": runs,
        "provenance": provenance(seed=0, settings=experiment.grid.model_dump(mode="json")).model_dump(),
    }
    write_json(options.out, TAG, body)
    print(json.dumps(body["marks"], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"), help="grid file")
    parser.add_argument("--method", default="fastforward-guided", help="method of the pruned cells")
    parser.add_argument("--sparsities", nargs="+", default=["0.20", "0.30"], help="sparsities of the pruned cells")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens to train on (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("experiments/work/recovery"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/recovery.json"))
    return parser.parse_args()


def _kept(experiment: Experiment, cell: Cell, settings: RecoverSettings, work: Path) -> dict[str, Any]:
    """A model's run, or the file that an earlier attempt left of it."""
    file = work / f"{cell.sparsity}-{settings.tokens}.json"
    if not file.exists():
        write_json(file, RUN, _run(experiment, cell, settings, file.with_suffix(".training")))
    return read_json(file, (RUN,))[1]["run"]


def _run(experiment: Experiment, cell: Cell, settings: RecoverSettings, training: Path) -> dict[str, Any]:
    """Scores a model, trains it and scores it again."""
    layout, grid = Layout.from_grid(experiment.grid), experiment.grid
    folder, text = layout.model(cell.model).folder, layout.text(grid.text)
    prunable, tokenizer = load_prunable(experiment, cell.model, folder), load_tokenizer(folder)
    prune_by_files(prunable, experiment, cell, None if cell.is_dense else layout.cell(cell).folder)
    test = text_windows(prunable, tokenizer, text.folder, "test", grid.evaluation.context, grid.evaluation.windows)
    used = grid.calibration
    windows = later_windows(
        tokenizer, read_documents(text.documents("calibration")), used_tokens=used.windows * used.context,
        context=used.context, windows=settings.tokens // used.context, name="calibration text",
    )  # fmt: skip
    before = api.evaluate(prunable.model, test)
    print(f"{cell.path}: {len(windows)} windows, perplexity {before['value']:.2f}", flush=True)
    started = time.perf_counter()
    state = FileTraining(training, [settings.model_dump(), cell.path])
    found = api.recover(prunable, windows, settings, seed=0, batch_tokens=settings.batch_tokens, state=state)
    elapsed = time.perf_counter() - started
    state.remove()
    after = api.evaluate(prunable.model, test)
    print(f"{cell.path}: perplexity {after['value']:.2f} after {elapsed:.0f} s", flush=True)
    losses = np.array([row["loss"] for row in found.curve])
    quarter = max(1, len(losses) // 4)
    scores = {
        name: {key: ppl[key] for key in ("value", "stderr")} for name, ppl in (("before", before), ("after", after))
    }
    return {
        "run": {
            "sparsity": cell.sparsity, **scores, "tokens": settings.tokens, "windows": len(windows), "seconds": elapsed,
            "training_loss": {"first": float(losses[:quarter].mean()), "last": float(losses[-quarter:].mean())},
        }
    }  # fmt: skip


if __name__ == "__main__":
    main()
