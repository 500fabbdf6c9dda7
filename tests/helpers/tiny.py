"""A tiny real grid: a random LLaMA on real English (the standard library's docstrings), nothing but local files."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import yaml

from ffp.store.files import sha256
from tests.helpers import forks

ROOT = Path(__file__).parents[2]
MODULES = ("argparse", "collections", "concurrent.futures", "csv", "datetime", "decimal", "difflib", "email.message",
           "fractions", "functools", "heapq", "inspect", "itertools", "json", "logging", "pathlib", "random", "re",
           "shutil", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "typing",
           "unittest.mock", "urllib.request", "zipfile")  # fmt: skip


def documents() -> list[dict[str, str]]:
    """One document a module: the docstrings of its public classes and functions."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        members = [module, *(m for _, m in inspect.getmembers(module) if inspect.isclass(m) or inspect.isroutine(m))]
        text = "\n\n".join(dict.fromkeys(filter(None, map(inspect.getdoc, members))))
        found.append({"id": name, "text": text})
    return found


def build(folder: Path, family: str = "Llama", **sizes: Any) -> Path:
    """Write model, text and configuration below `folder`; the grid's file.

    family, sizes: of transformers' configuration class, over those that all classes share.
    """
    sources(folder, family, **sizes)
    return configure(folder)


def sources(folder: Path, family: str = "Llama", **sizes: Any) -> None:
    """Write the model and the text below `folder`."""
    _model(folder / "source", family, sizes or {"intermediate_size": 64, "num_key_value_heads": 2})
    (folder / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents()))


def configure(folder: Path) -> Path:
    """Write the configuration below `folder`, whose paths are relative to it; the grid's file."""
    parts = {
        "models/tiny": {
            "title": "Tiny",
            "source": {"kind": "local", "path": "source"},
            "device": "cpu",
            "batch_tokens": 256,
        },
        "texts/docs": {
            "title": "Docstrings",
            "sources": [{"name": "docs", "source": {"kind": "local", "path": "docs.jsonl"}}],
            "shares": {"calibration": 0.3, "search": 0.3, "selection": 0.2, "test": 0.2},
        },
        "grid": {
            "title": "Tiny grid",
            "models": ["tiny"],
            "text": "docs",
            "sparsities": [0.3],
            "methods": ["owl", "fastforward", "fastforward-guided"],
            "variants": {"owl": {"compensate": "ridge"}},
            "calibration": {"windows": 4, "context": 64},
            "search": {"context": 64, "windows": 8, "selection_windows": 4, "evaluations": 40,
                       "windows_per_evaluation": 2, "finalists": 2},
            "evaluation": {"context": 64, "windows": 6},
        },
    }  # fmt: skip
    for name, body in parts.items():
        path = folder / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(body))
    return folder / "config" / "grid.yaml"


def _model(folder: Path, family: str, sizes: dict[str, Any]) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    core.train_from_iterator([document["text"] for document in documents()], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    common = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
              "max_position_embeddings": 128, "tie_word_embeddings": True}  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**common, **{"initializer_range": 0.3, **sizes})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_bos(tokenizer: Any, bos: str = "<eos>") -> Any:
    """Let a fast tokenizer put `bos` before every text that it encodes; by default the token that also ends texts."""
    from tokenizers import processors

    tokenizer.add_special_tokens({"bos_token": bos})
    begin = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    return tokenizer


def run(
    folder: Path,
    *words: str,
    start_only: bool = False,
    stdout: int | IO[str] = subprocess.PIPE,
    path: Path = ROOT,
    fork: bool = True,
) -> subprocess.Popen[str]:
    """Start a command of this environment in `folder`; wait for its end unless `start_only`.

    path: another folder with packages to import. fork: let forks.py run it and all that it starts; what is started
    only, so that a test can kill it, is always the real command.
    """
    command, environment = [sys.executable, "-m", *words], _environment(path)
    if fork and not start_only:
        command = [str(forks.folder(path) / words[0].removesuffix(".cli")), *words[1:]]
        environment["PATH"] = f"{forks.folder(path)}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        command, cwd=folder, text=True, stdout=stdout, stderr=subprocess.STDOUT, env=environment,
        start_new_session=True,
    )  # fmt: skip
    if not start_only:
        process.output = process.communicate()[0]  # type: ignore[attr-defined]
    return process


def shell(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Command lines in a shell in `folder`, one after the other until one fails; stdout and stderr together."""
    environment = _environment()
    environment["PATH"] = f"{forks.folder()}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=environment,
    )  # fmt: skip


def _environment(packages: Path = ROOT) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}", "OMP_NUM_THREADS": "1"}


def snakemake(folder: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Snakemake on the tiny grid, on two cores. options: of run()."""
    common = ["--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "--profile", str(ROOT / "profiles/local")]
    return run(folder, "snakemake", *words, *common, "--config", "grid=config/grid.yaml", **options)


def kill_and_run_again(folder: Path, words: list[str], ready: Callable[[], bool]) -> str:
    """Runs `python -m WORDS --out whole`, the same with `--out small` until it is killed, and that again.

    folder: what both run in. ready: when to kill. Returns what the last run printed; both checkpoints must be equal.
    """
    whole = run(folder, *words, "--out", "whole")
    assert whole.returncode == 0, whole.output
    first = run(folder, *words, "--out", "small", start_only=True)
    deadline = time.monotonic() + 120
    while not ready():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (folder / "small").exists()
    second = run(folder, *words, "--out", "small")
    assert second.returncode == 0, second.output
    assert sha256(folder / "small/model.safetensors") == sha256(folder / "whole/model.safetensors")
    assert not list(folder.glob(".small*"))
    return second.output
