"""What LoRA wins back after pruning, and what the text alone is worth: the dense model trained on the same tokens.

    make demo GRID=config/grids/recovery.yaml && python -m experiments.recovery

Reads the grid's cells that are trained. `runs[]` has, for each: perplexity of the test text `before` and `after`, with
standard errors, and the training's `tokens` (forward and backward passes) and `seconds`. `missing` lists cells without
a score.

- `marks.gain`: nats a token that training wins on the test text, by model, sparsity and method: mean and standard error
  over windows. The gain of `dense-lora` is that of the text, which is no recovery.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import make_parser, write_marks
from experiments.reading import CellResult, mean_and_stderr, read_grid
from ffp.config import Experiment
from ffp.store.layout import Layout
from ffp.store.schemas import CostFile

SCHEMA = "ffp/experiment/recovery/1"


def main() -> None:
    """Reads the grid and writes the JSON."""
    options = make_parser("experiments.recovery", __doc__, grid="recovery").parse_args()
    experiment = Experiment(options.config)
    results = read_grid(experiment)
    trained = [result for result in results.done if result.scores.ppl_before is not None]
    body = {
        "marks": {"gain": {result.cell.path: list(_gain(result)) for result in trained}},
        "runs": [_row(experiment, result) for result in trained],
        "missing": results.missing,
    }
    write_marks(options.out, SCHEMA, body, results.settings)
    print(f"{len(trained)} trained cells, {len(results.missing)} missing")


def _gain(result: CellResult) -> tuple[float, float | None]:
    """Mean loss before minus after on the same windows, and its standard error."""
    before = result.scores.ppl_before
    assert before is not None
    return mean_and_stderr(np.array(before.loss_by_window) - result.losses)


def _row(experiment: Experiment, result: CellResult) -> dict[str, Any]:
    before, after = result.scores.ppl_before, result.scores.ppl
    assert before is not None
    cost = CostFile.read(Layout.from_grid(experiment.grid).cell(result.cell).recover_cost)
    return {
        "cell": result.cell.path,
        "before": {"value": before.value, "stderr": before.stderr},
        "after": {"value": after.value, "stderr": after.stderr},
        "tokens": cost.n_tokens,
        "seconds": cost.wall_s,
    }


if __name__ == "__main__":
    main()
