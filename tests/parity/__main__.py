r"""Prunes a model exactly as a published reference does, and compares the result with the reference's own file.

    python -m tests.parity --method owl --sparsity 0.6 --model-dir MODEL --tokens tokens.npy \
        --reference masks.npz --out parity
    python -m tests.parity --method flap --sparsity 0.3 --structure AL-AM --metric WIFV \
        --model-dir MODEL --tokens tokens.npy --reference units.json --out parity

Run it in the repository's root. Without --reference the result is only written. Exit codes: 0 equal or only written,
1 the results differ, 2 wrong options, 3 a damaged file.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ffp.core.errors import FfpError
from tests.parity.settings import METHODS, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        _run(options)
    except (FfpError, OSError) as error:
        print(f"parity: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, FfpError) else FfpError.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    from ffp.config import LocalSource, ModelConfig
    from ffp.models.checkpoint import load_model
    from ffp.models.prunable import PrunableModel
    from tests.parity import compare

    source = LocalSource(kind="local", path=str(options.model_dir))
    config = ModelConfig(source=source, title="", dtype=options.dtype, device=options.device)
    tokens = compare.read_tokens(options.tokens, options.tensor)
    result = compare.run(PrunableModel(load_model(options.model_dir, config)), tokens, settings)
    compare.write(options.out, result, settings, None)
    if options.reference is not None:
        comparison = compare.check(result, options.reference, settings)
        compare.write(options.out, result, settings, comparison)
        print(", ".join(f"{key}: {value}" for key, value in comparison.items()))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--method", required=True, choices=METHODS, help="the reference")
    add("--sparsity", required=True, type=float, help="share of weights to remove, in (0, 1)")
    add("--model-dir", required=True, type=Path, metavar="PATH", help="folder that save_pretrained wrote")
    add("--tokens", required=True, type=Path, metavar="PATH", help="ids, (windows, context): .npy or .safetensors")
    add("--out", required=True, type=Path, metavar="PATH", help="folder for parity.json and masks.npz")
    add("--reference", type=Path, metavar="PATH", help="packed masks (.npz) or kept units (.json) to compare with")
    add("--tensor", default="calibration", metavar="NAME", help="tensor of a .safetensors file (%(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model (%(default)s)")
    add("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"), help="of the model (%(default)s)")
    add("--prune-n", type=int, default=0, metavar="N", help="remove N of every M weights; 0 for a share instead")
    add("--prune-m", type=int, default=0, metavar="M", help="see --prune-n")
    add("--variant", action="store_true", help="Wanda: search for a part of each row's summed score")
    add("--block-size", type=int, default=128, metavar="N", help="SparseGPT: columns at once (%(default)s)")
    add("--damping", type=float, default=0.01, metavar="X", help="SparseGPT: over the mean diagonal (%(default)s)")
    add("--outlier-multiple", type=float, default=5.0, metavar="M", help="OWL: M (%(default)s)")
    add("--strength", type=float, default=0.08, metavar="LAMBDA", help="OWL: lambda (%(default)s)")
    add("--pruner", default="wanda", help="OWL: wanda, magnitude or sparsegpt (%(default)s)")
    add("--special", action="store_true", help="OWL, N:M: a block that would save 1 of every M saves 2")
    add("--structure", default="AL-AM", help="FLAP: AL-AM, AL-MM, UL-MM or UL-UM (%(default)s)")
    add("--metric", default="WIFV", help="FLAP: WIFV, IFV or WIFN (%(default)s)")
    add("--remove-heads", type=int, default=8, metavar="N", help="FLAP, *-MM: heads of the whole model (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
