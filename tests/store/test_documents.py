"""Documents of a fetched text: one a line of JSONL, whatever they hold."""

import json

import pytest

from ffp.core.errors import ArtifactError
from ffp.pipeline.leaks import documents
from ffp.store.documents import read_documents

TEXTS = ["one line", "a line\u2028and a paragraph\u2029of Unicode", "next\x85line", "tab\tand \x0b \x0c \x1c"]


def test_separators_inside_a_document_are_no_ends_of_lines(tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS), encoding="utf-8")
    assert read_documents(path) == TEXTS
    assert [row["text"] for row in documents(path)] == TEXTS


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"text": "whole"}\n{"text": "cut', "line 2 is no JSON at column 10: Unterminated string"),
        ("{}", "text"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(content, said, tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=f"search.jsonl is damaged: .*{said}.*run `ffp asset text` again"):
        read_documents(path)
