"""Pruned models in the engines that run them: the same perplexity, and what quantisation costs on top of pruning.

    make demo && python -m experiments.engines --transformers-4 PYTHON --vllm PYTHON --torchao PYTHON

Takes the dense model and two cells of the demo, writes each for transformers and as GGUF of several types, and computes
the perplexity of the same windows of the test text everywhere. PyTorch computes in float32. The other two engines run
in environments of their own; without the option their rows are left out. Finished figures are kept below --work, for
each grid, its masks and number of windows.

- `engines`: of the cell with the most removed: perplexity by engine. llama.cpp withholds the probability of a token
  that ends within a character; `same_tokens` is PyTorch's perplexity without these tokens, to compare with.
- `files[]`: each model and type of file: `bytes` and `ppl` in llama.cpp, and `ppl_over_dense`, over the dense F32 file.
  `torchao int8`: the linears of the blocks in 8 bits, the embeddings in float32, computed by PyTorch; bytes of tensors.
- `marks.largest_difference`: of any engine's perplexity from PyTorch's, relative.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.llama_cpp import losses
from ffp.config import Cell, Experiment
from ffp.measure.windows import token_windows
from ffp.models.formats import Gguf, Transformers
from ffp.pipeline.steps import load_prunable, prune_by_files
from ffp.store.documents import read_documents
from ffp.store.files import digest, sha256, write_json
from ffp.store.layout import Layout
from ffp.store.provenance import provenance

TAG = "ffp/experiment/engines/1"
TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K_M")
TRANSFORMERS = """
import sys
import numpy as np, torch
from transformers import AutoModelForCausalLM

folder, ids, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
ids = torch.from_numpy(np.load(ids))
with torch.no_grad():
    logs = torch.cat([torch.log_softmax(model(row[None]).logits.double(), -1) for row in ids])
np.save(out, -logs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].numpy())
"""
TORCHAO = """
import sys
import numpy as np, torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM

folder, ids, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
ids = torch.from_numpy(np.load(ids))
quantize_(model.model, Int8WeightOnlyConfig())
with torch.no_grad():
    logs = torch.cat([torch.log_softmax(model(row[None]).logits.double(), -1) for row in ids])
parts = [(p.qdata, p.scale) if hasattr(p, "qdata") else (p,) for p in set(model.parameters())]
size = sum(part.numel() * part.element_size() for each in parts for part in each)
np.savez(out, losses=-logs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].numpy(), bytes=size)
"""
VLLM = """
import sys
import numpy as np
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, ids, out = sys.argv[1:]
    ids = np.load(ids).tolist()
    model = LLM(folder, trust_remote_code=True, dtype="float32", enforce_eager=True, max_model_len=len(ids[0]) + 8)
    settings = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    answers = model.generate([{"prompt_token_ids": row} for row in ids], settings)
    rows = zip(answers, ids)
    np.save(out, [[-p[t].logprob for p, t in zip(a.prompt_logprobs[1:], row[1:])] for a, row in rows])
"""


def main() -> None:
    """Measures what is missing and writes the JSON."""
    options = _options()
    experiment = Experiment(options.config)
    model = experiment.grid.models[0]
    cells = [experiment.cell(f"{model}/structured/s0.00/dense/seed0")]
    cells += [experiment.cell(f"{model}/structured/s{each}/{options.method}/seed0") for each in options.sparsities]
    options.work /= _key(experiment, cells, options)
    options.work.mkdir(parents=True, exist_ok=True)
    ids = _windows(experiment, model, options.windows)
    np.save(options.work / "ids.npy", ids)
    for cell in cells:
        _write(experiment, cell, options.work / cell.sparsity)
    files = [_file(options, cell, kind, ids) for cell in cells for kind in TYPES]
    files += [_int8(options, cell) for cell in cells if options.torchao]
    for file in files:
        file["ppl_over_dense"] = file["ppl"] / files[0]["ppl"]
    engines = _engines(options, options.work / cells[-1].sparsity, ids)
    own = {"llama.cpp F32": engines["same_tokens"]}
    body = {
        "marks": {
            "largest_difference": max(
                abs(ppl / own.get(name, engines["transformers 5"]) - 1)
                for name, ppl in engines.items()
                if name != "same_tokens"
            )
        },
        "command": f"python -m experiments.engines --windows {options.windows} --transformers-4 PYTHON --vllm PYTHON "
        "--torchao PYTHON",
        "method": options.method,
        "tokens": int(ids.size),
        "engines": engines,
        "files": files,
        "provenance": provenance(settings=experiment.grid.model_dump(mode="json")).model_dump(),
    }
    write_json(options.out, TAG, body)
    print(json.dumps({"marks": body["marks"], "engines": engines, "files": files}, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/grids/demo.yaml"), help="grid file")
    parser.add_argument("--method", default="fastforward-guided", help="method of the pruned cells")
    parser.add_argument("--sparsities", nargs="+", default=["0.20", "0.30"], help="sparsities of the pruned cells")
    parser.add_argument("--windows", type=int, default=4, help="windows of the test text")
    parser.add_argument("--transformers-4", metavar="PYTHON", help="a Python that has transformers 4")
    parser.add_argument("--vllm", metavar="PYTHON", help="a Python that has vLLM")
    parser.add_argument("--torchao", metavar="PYTHON", help="a Python that has torchao")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp")
    parser.add_argument("--work", type=Path, default=Path("experiments/work/engines"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/engines.json"))
    return parser.parse_args()


def _key(experiment: Experiment, cells: list[Cell], options: argparse.Namespace) -> str:
    """What the figures of a work folder depend on: the grid, its masks and the windows."""
    layout = Layout.from_grid(experiment.grid)
    masks = [sha256(layout.cell(cell).masks) for cell in cells if not cell.is_dense]
    return digest([experiment.grid.model_dump(mode="json"), [cell.path for cell in cells], masks, options.windows])


def _windows(experiment: Experiment, model: str, count: int) -> Any:
    layout, context = Layout.from_grid(experiment.grid), experiment.grid.evaluation.context
    tokenizer = AutoTokenizer.from_pretrained(layout.model(model).folder)
    documents = read_documents(layout.text(experiment.grid.test_texts[0]).documents("test"))
    return token_windows(tokenizer, documents, context=context, windows=count, name="test").numpy()


def _write(experiment: Experiment, cell: Cell, folder: Path) -> None:
    """Writes a cell's model for transformers and as GGUF, unless it is there."""
    if (folder / "done").exists():
        return
    layout = Layout.from_grid(experiment.grid)
    parent, cut = layout.model(cell.model).folder, layout.cell(cell).folder
    prunable = load_prunable(experiment, cell, parent, on_host=True)
    prune_by_files(prunable, experiment, cell, None if cell.method == "dense" else cut)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    for format in (Transformers(), Gguf(quantize=TYPES)):
        (into := folder / format.name).mkdir(parents=True, exist_ok=True)
        format.save(prunable, tokenizer, into, parent=parent)
    (folder / "done").touch()


def _kept(path: Path, make: Callable[[Path], None]) -> Any:
    """An array of a file, which is made once, whole or not at all."""
    if not path.exists():
        part = path.with_name(f"part-{path.name}")
        make(part)
        part.replace(path)
    return np.load(path)


def _file(options: argparse.Namespace, cell: Cell, kind: str, ids: Any) -> dict[str, Any]:
    """Bytes and perplexity of one GGUF file."""
    folder = options.work / cell.sparsity
    file = folder / "gguf" / f"model-{kind}.gguf"
    print(f"llama.cpp: {cell.path} {kind}", flush=True)
    found = _kept(folder / f"{kind}.npy", lambda out: np.save(out, losses(file, ids.tolist(), threads=options.threads)))
    return {"sparsity": cell.sparsity, "type": kind, "bytes": file.stat().st_size, "ppl": _ppl(found)}


def _int8(options: argparse.Namespace, cell: Cell) -> dict[str, Any]:
    """Bytes and perplexity of a model whose linears torchao quantised to 8 bits."""
    folder = options.work / cell.sparsity
    print(f"torchao: {cell.path}", flush=True)
    found = _kept(folder / "int8.npz", partial(_elsewhere, options.torchao, TORCHAO, folder))
    return {
        "sparsity": cell.sparsity, "type": "torchao int8", "bytes": int(found["bytes"]), "ppl": _ppl(found["losses"]),
    }  # fmt: skip


def _engines(options: argparse.Namespace, folder: Path, ids: Any) -> dict[str, float]:
    """Perplexity of one model in each engine."""
    own = _kept(folder / "transformers5.npy", lambda out: np.save(out, _pytorch(folder / "transformers", ids)))
    theirs = np.load(folder / "F32.npy")
    found = {
        "transformers 5": _ppl(own),
        "same_tokens": _ppl(np.where(np.isnan(theirs), np.nan, own)),
        "llama.cpp F32": _ppl(theirs),
    }
    others = {"transformers 4": (options.transformers_4, TRANSFORMERS), "vLLM": (options.vllm, VLLM)}
    for name, (python, script) in others.items():
        if python:
            print(name, flush=True)
            make = partial(_elsewhere, python, script, folder)
            found[name] = _ppl(_kept(folder / f"{name}.npy", make))
    return found


def _pytorch(folder: Path, ids: Any) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    rows = torch.from_numpy(ids)
    with torch.no_grad():
        logs = torch.cat([torch.log_softmax(model(row[None]).logits.double(), -1) for row in rows])
    return -logs[:, :-1].gather(-1, rows[:, 1:, None])[..., 0].numpy()


def _elsewhere(python: str, script: str, folder: Path, out: Path) -> None:
    """Runs a script by another Python: (folder of the model, token ids, file for the losses)."""
    file = folder / "script.py"
    file.write_text(script)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": ""}
    words = [python, str(file), str(folder / "transformers"), str(folder.parent / "ids.npy"), str(out)]
    subprocess.run(words, env=environment, check=True)


def _ppl(found: Any) -> float:
    return math.exp(np.nanmean(found))


if __name__ == "__main__":
    main()
