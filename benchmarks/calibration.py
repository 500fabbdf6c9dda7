"""Times calibration against a plain forward over the same tokens, in one run.

    snakemake --cores all --profile profiles/local --config grid=config/grids/second-order.yaml -- calibrated
    python -m benchmarks.calibration

- `plain_s`: median seconds of the base model's forward over the calibration text.
- `moments_over_plain`: median ratio to that of a calibration that keeps means, squares and the influence of blocks.
- `grams_over_plain`: of one that keeps the Gram matrices of all output projections too.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch

from benchmarks.common import make_parser, open_model, seconds, write_marks
from ffp import api
from ffp.config import Experiment
from ffp.measure.calibration import collect
from ffp.models.prunable import PrunableModel

SCHEMA = "ffp/benchmark/calibration/1"


def main() -> None:
    """Times the three in turn and writes the JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    prunable, calibration = open_model(Experiment(options.config), options.model)
    windows = calibration.windows.calibration[: options.windows]
    variants = {
        "plain": partial(forward, prunable, windows),
        "moments": partial(collect, prunable, windows, batch_tokens=api.BATCH_TOKENS),
        "grams": partial(collect, prunable, windows, batch_tokens=api.BATCH_TOKENS, grams=True),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds + 1):
        for name, run in variants.items():
            times[name].append(seconds(run))
    measured = {name: values[1:] for name, values in times.items()}  # the first round warms up
    marks = {"plain_s": statistics.median(measured["plain"])} | {
        f"{name}_over_plain": statistics.median(
            one / plain for one, plain in zip(measured[name], measured["plain"], strict=True)
        )
        for name in ("moments", "grams")
    }
    settings = {"model": options.model, "tokens": windows.numel(), "threads": options.threads}
    write_marks(options.out, SCHEMA, {"marks": marks, "seconds": measured}, settings)


@torch.no_grad()
def forward(prunable: PrunableModel, windows: torch.Tensor) -> None:
    """Runs the model without its LM head over all windows, in calibration's batches."""
    for ids in windows.split(max(1, api.BATCH_TOKENS // windows.shape[1])):
        prunable.model.base_model(input_ids=ids, use_cache=False)


def _options() -> argparse.Namespace:
    parser = make_parser("benchmarks.calibration", __doc__, grid="second-order")
    parser.add_argument("--model", default="smollm2-135m", help="model of the grid (%(default)s)")
    parser.add_argument("--windows", type=int, default=32, help="calibration windows (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is timed (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
