"""Texts that are handed over: what is given is what is read, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ffp.core.errors import FfpError
from ffp.pipeline.texts import open_text

DOCUMENTS = [" ".join(f"{name}{number}" for number in range(20)) for name in ("one", "two", "three", "four", "five")]


def write_rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([Path("a.jsonl"), "more text"], r"text has the file a\.jsonl and a str, 'more text'\. Give files alone"),
        (["more text", Path("a.jsonl")], r"text has the file a\.jsonl and a str, 'more text'"),
        ([Path("a.jsonl"), None, 3], r"text has the file a\.jsonl and a NoneType, 'None'"),
        (["a.txt", "b.txt"], r"strings that name files, as 'a\.txt': .* Give files as pathlib\.Path"),
        ({"calibration": "a whole book"}, r"part 'calibration' of text is a str, 'a whole book'\. Give a list"),
        ({"calibration": Path("a.txt")}, r"part 'calibration' of text is a PosixPath, 'a\.txt'"),
        ({"calibration": None}, "part 'calibration' of text is a NoneType"),
        (
            {"test": ["words", Path("a.txt")]},
            r"document of part 'test' of the text is a PosixPath, 'a\.txt'\. Give strings",
        ),
        ({"test": b"words"}, r"a document of part 'test' of the text is a int, '119'"),
        ({"test": ["words", "a \ud83d"]}, r"document 2 of part 'test' of the text has '\\ud83d' at character 3, half"),
        ([*DOCUMENTS, "\udc80"], r"document 6 of the text has '\\udc80' at character 1, half of a surrogate pair"),
        ([Path("half.jsonl")], r"half\.jsonl cannot be read as jsonl: line 6 has '\\ud83d', half of a surrogate pair"),
        ({"train": ["words"]}, "text has a part 'train'"),
        ({3: ["words"]}, "text has a part 3"),
    ],
)
def test_text_that_would_be_lost_or_mangled_is_refused(
    text: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("\n\n".join(DOCUMENTS))
    write_rows(Path("half.jsonl"), [*DOCUMENTS, "x \ud83d y"])
    with pytest.raises(FfpError, match=message) as refusal:
        open_text(text, data=tmp_path)
    assert len(str(refusal.value).splitlines()) == 1


def test_every_document_that_is_given_is_in_one_part(tmp_path: Path) -> None:
    parts = open_text((each for each in DOCUMENTS), data=tmp_path).documents  # type: ignore[arg-type]
    assert sorted(each for part in parts.values() for each in part) == sorted(DOCUMENTS)
    given = {"calibration": (each for each in DOCUMENTS[:3]), "test": tuple(DOCUMENTS[3:])}
    parts = open_text(given, data=tmp_path).documents  # type: ignore[arg-type]
    assert parts == {"calibration": DOCUMENTS[:3], "test": DOCUMENTS[3:]}


def test_a_character_beyond_the_first_plane_is_one_however_it_is_escaped(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [f"{each} \U0001f600" for each in DOCUMENTS])
    assert "\\ud83d\\ude00" in (tmp_path / "pairs.jsonl").read_text()
    parts = open_text(tmp_path / "pairs.jsonl", data=tmp_path).documents
    assert all(each.endswith(" \U0001f600") for part in parts.values() for each in part)
