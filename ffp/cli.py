"""The command line: explicit files in, explicit files out. Exit 0 done, 2 user or config error, 3 bad artifact."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import ffp
from ffp.allocators import registry
from ffp.config import Cell, Experiment, LocalSource, ModelConfig, TasksConfig, TextConfig, read_part
from ffp.core.errors import ConfigError, FfpError
from ffp.pipeline.cluster import claim_gpus

EXAMPLES = """examples:
  ffp asset model --config config/models/smollm2-135m.yaml --out data/models/smollm2-135m
  ffp calibrate --config config/grids/demo.yaml --model smollm2-135m --model-dir data/models/smollm2-135m \\
      --text-dir data/text/embedded --out data/calibration/smollm2-135m
  ffp allocate --config config/grids/demo.yaml --cell smollm2-135m/structured/s0.20/fastforward/seed0 \\
      --model-dir data/models/smollm2-135m --calibration data/calibration/smollm2-135m --out CELL
  ffp report --config config/grids/demo.yaml --out results/report
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with near matches of a name that is unknown."""

    def error(self, message: str) -> NoReturn:
        choice = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            name, value, names = choice.groups()
            known = re.findall(r"[\w.-]+", names)
            message = f"unknown {name} {value!r}: {registry.did_you_mean(value, known)}"
        self.exit(2, f"{self.prog}: {message.rstrip('.?')}. See {self.prog} --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, what the command returns, or that of its error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for chatty in ("httpx", "fontTools"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return int(options.run(options) or 0)
    except FfpError as error:
        print(f"ffp {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"ffp {options.command}: {what}. Check the path, its rights and the space on its disk.", file=sys.stderr)
        return FfpError.exit_code
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU's memory
        if not (isinstance(error, MemoryError) or re.search(r"allocate.*memory|out of memory", str(error))):
            raise
        print(
            f"ffp {options.command}: out of memory. Lower batch_tokens in the model's YAML, or give more (mem_mb).",
            file=sys.stderr,
        )
        return FfpError.exit_code
    except KeyboardInterrupt:
        print(f"ffp {options.command}: interrupted; start it again to go on.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ffp", description=ffp.__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ffp {ffp.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    asset = _command(commands, "asset", _asset, "fetch and verify a model, a text or a set of tasks")
    asset.add_argument("kind", choices=("model", "text", "tasks"))
    _paths(asset, config="YAML of the model, text or tasks", out="folder to make")

    step = _command(commands, "calibrate", _calibrate, "one pass over the calibration text, for every cell of a model")
    step.add_argument("--model", required=True, metavar="NAME", help="a model of the grid")
    _paths(step, config="grid file", model_dir="fetched model", text_dir="fetched text", out="folder to fill")

    step = _command(commands, "allocate", _allocate, "how much of each module to keep: " + ", ".join(registry.METHODS))
    _cell(step)
    _paths(step, config="grid file", model_dir="fetched model", calibration="calibration folder")
    _paths(step, out="folder of the cell")
    step.add_argument("--init", type=Path, metavar="DIR", help="folder of the cell whose policy the search starts from")

    step = _command(commands, "apply", _apply, "turn an allocation into the indices of the kept units")
    _cell(step)
    _paths(step, config="grid file", model_dir="fetched model", calibration="calibration folder")
    _paths(step, allocation="allocation.json", out="folder of the cell")

    step = _command(commands, "evaluate", _evaluate, "perplexity and lm-eval scores of a cell")
    _cell(step)
    _paths(step, config="grid file", model_dir="fetched model", text_dir="fetched text", out="scores.json to write")
    step.add_argument("--tasks-dir", type=Path, metavar="DIR", help="fetched tasks; none without it")
    step.add_argument(
        "--cut", type=Path, metavar="DIR", help="without it the dense model; folder with the cell's masks and updates"
    )

    step = _command(commands, "export", _export, "write a cell's model as a checkpoint: smaller, or with zeros")
    _cell(step)
    _paths(step, config="grid file", out="folder to make")
    step.add_argument("--model-dir", type=Path, metavar="PATH", help="fetched model; that of the grid without it")
    step.add_argument("--cut", type=Path, metavar="DIR", help="folder with the cell's masks and updates; as above")
    step.add_argument("--dense-shape", action="store_true", help="the parent's shapes, zeros for what was removed")

    step = _command(
        commands, "parity", _parity, "a reference's own result on a model and tokens, compared with its file"
    )
    _parity_options(step)

    step = _command(commands, "validate", _validate, "check a grid, and say what it will take, before it is fetched")
    _paths(step, config="grid file")
    step.add_argument("--tflops", type=float, default=100.0, help="sustained speed of a device (default: 100)")

    step = _command(commands, "report", _report, "tables and plots of all cells that are there")
    _paths(step, config="grid file", out="folder to fill")

    step = _command(commands, "verify", _verify, "check every digest, budget, text and figure behind a report again")
    step.add_argument("results", type=Path, nargs="?", metavar="DIR", help="results folder; the grid's own without it")
    step.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"), metavar="PATH", help="grid file (demo)")
    step = _command(commands, "status", _status, "how far a grid is: from another shell, or after a crash")
    _paths(step, config="grid file")

    step = _command(commands, "compare", _compare, "what changed between two result sets; exit 1 if anything did")
    step.add_argument("before", type=Path, metavar="A", help="results of one commit or machine: a folder with cells/")
    step.add_argument("after", type=Path, metavar="B", help="those of another one")
    step.add_argument("--tolerance", type=float, default=1e-4, metavar="X", help="relative difference to overlook")
    step.add_argument("--json", type=Path, metavar="PATH", help="write the differences here too")
    return parser


def _command(commands: argparse._SubParsersAction, name: str, run: object, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _paths(command: argparse.ArgumentParser, **helps: str) -> None:
    for name, text in helps.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, metavar="PATH", help=text)


def _parity_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", required=True, choices=("magnitude", "wanda", "sparsegpt", "owl", "flap"))
    command.add_argument("--sparsity", required=True, type=float, help="share to remove, in (0, 1)")
    _paths(command, model_dir="folder of save_pretrained", tokens="ids, (windows, context): .npy or .safetensors")
    _paths(command, out="folder to fill: parity.json, masks.npz")
    command.add_argument("--reference", type=Path, metavar="PATH", help="packed masks (.npz) or kept units (.json)")
    command.add_argument("--tensor", default="calibration", metavar="NAME", help="of a .safetensors; %(default)s")
    command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    command.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"))
    command.add_argument("--prune-n", type=int, default=0, metavar="N", help="remove N of every M; 0 for none")
    command.add_argument("--prune-m", type=int, default=0, metavar="M", help="see --prune-n")
    command.add_argument("--variant", action="store_true", help="of Wanda: its search for a part of each row's sum")
    command.add_argument("--block-size", type=int, default=128, metavar="N", help="of SparseGPT; %(default)s")
    command.add_argument("--damping", type=float, default=0.01, metavar="X", help="of SparseGPT; %(default)s")
    command.add_argument("--outlier-threshold", type=float, default=5.0, metavar="M", help="of OWL; %(default)s")
    command.add_argument("--strength", type=float, default=0.08, metavar="LAMBDA", help="of OWL; %(default)s")
    command.add_argument("--pruner", default="wanda", help="of OWL: wanda, magnitude or sparsegpt; %(default)s")
    command.add_argument("--special", action="store_true", help="of OWL's N:M: what would save 1 of M saves 2")
    command.add_argument("--structure", default="AL-AM", help="of FLAP: AL-AM, AL-MM, UL-MM or UL-UM; %(default)s")
    command.add_argument("--metric", default="WIFV", help="of FLAP: WIFV, IFV or WIFN; %(default)s")
    command.add_argument("--remove-heads", type=int, default=8, metavar="N", help="of FLAP's *-MM; %(default)s")


def _cell(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cell", required=True, metavar="CELL", help="MODEL/GRANULARITY/sSPARSITY/METHOD/seedN")


def _asset(options: argparse.Namespace) -> None:
    from ffp import assets

    if options.kind == "model":
        assets.fetch_model(read_part(ModelConfig, options.config), options.out)
    elif options.kind == "text":
        assets.fetch_text(read_part(TextConfig, options.config), options.out)
    else:
        assets.fetch_tasks(read_part(TasksConfig, options.config), options.out)


def _calibrate(options: argparse.Namespace) -> None:
    project = Experiment(options.config)
    if options.model not in project.models:
        near = registry.did_you_mean(options.model, project.models)
        raise ConfigError(f"{project.file} has no model {options.model!r}: {near}")
    _start_torch(project, options.model)
    from ffp.pipeline import steps

    steps.calibrate(project, options.model, options.model_dir, options.text_dir, options.out)


def _allocate(options: argparse.Namespace) -> None:
    project, cell = _open(options)
    origin = project.init_cell(cell)
    if (origin is None) != (options.init is None):
        wanted = f"--init with the folder of {origin.path}" if origin else "no --init"
        raise ConfigError(
            f"{cell.path} starts from {origin.path if origin else 'no policy'} in {project.file}: give {wanted}."
        )
    from ffp.pipeline import steps

    steps.allocate(project, cell, options.model_dir, options.calibration, options.out, options.init)


def _apply(options: argparse.Namespace) -> None:
    project, cell = _open(options)
    from ffp.pipeline import steps

    steps.apply(project, cell, options.model_dir, options.calibration, options.allocation, options.out)


def _evaluate(options: argparse.Namespace) -> None:
    project, cell = _open(options)
    from ffp.pipeline import steps

    steps.evaluate(project, cell, options.model_dir, options.text_dir, options.tasks_dir, options.cut, options.out)


def _export(options: argparse.Namespace) -> None:
    project, cell = _open(options)
    from ffp.pipeline import steps

    model_dir = options.model_dir or Path(project.grid.data, "models", cell.model)
    cut_dir = options.cut or Path(project.grid.results, "cells", cell.path)
    steps.export(project, cell, model_dir, cut_dir, options.out, dense_shape=options.dense_shape)
    print(options.out)


def _parity(options: argparse.Namespace) -> None:
    source = LocalSource(kind="local", path=str(options.model_dir))
    config = ModelConfig(source=source, title="", dtype=options.dtype, device=options.device)
    _quiet_libraries()
    from ffp.models.checkpoint import load_model
    from ffp.models.prunable import PrunableModel
    from tests import parity

    settings = parity.Settings(**{f.name: getattr(options, f.name) for f in dataclasses.fields(parity.Settings)})
    tokens = parity.read_tokens(options.tokens, options.tensor)
    result = parity.run(PrunableModel(load_model(options.model_dir, config)), tokens, settings)
    parity.write(options.out, result, settings, None)
    if options.reference is not None:
        comparison = parity.check(result, options.reference, settings)
        parity.write(options.out, result, settings, comparison)
        print(", ".join(f"{key}: {value}" for key, value in comparison.items()))


def _validate(options: argparse.Namespace) -> None:
    project = Experiment(options.config)
    _start_torch(project, project.grid.models[0])
    from ffp.pipeline import plan

    if not options.tflops > 0:
        raise ConfigError(f"--tflops {options.tflops:g} is not above 0. Give the sustained speed of a device.")
    print(plan.report(project, tflops=options.tflops))


def _report(options: argparse.Namespace) -> None:
    from ffp import report

    print(report.build(Experiment(options.config), options.out))


def _verify(options: argparse.Namespace) -> None:
    from ffp.pipeline.verify import verify

    print(verify(Experiment(options.config).at(results=options.results)))


def _status(options: argparse.Namespace) -> None:
    from ffp.pipeline import status

    print("\n".join(status.lines(Experiment(options.config))))


def _compare(options: argparse.Namespace) -> int:
    from ffp.report import compare

    found = compare.compare(options.before, options.after, tolerance=options.tolerance)
    print("\n".join(compare.lines(found, options.before, options.after)))
    if options.json:
        compare.write(found, options.json)
    return int(found.changed)


def _open(options: argparse.Namespace) -> tuple[Experiment, Cell]:
    project = Experiment(options.config)
    cell = project.cell(options.cell)
    _start_torch(project, cell.model)
    return project, cell


def _start_torch(project: Experiment, model: str) -> None:
    """Fix the number of threads, on which the last bits of every sum depend, and take GPUs that nobody else has."""
    config = project.models[model]
    if config.device in ("auto", "cuda"):
        claim_gpus(config.resources.gpu)
    _quiet_libraries()
    import torch

    torch.set_num_threads(config.resources.threads)


def _quiet_libraries() -> None:
    """Keep libraries off the network and off the terminal."""
    import os

    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
