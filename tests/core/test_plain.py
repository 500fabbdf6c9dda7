"""Words from outside in a shell, in Markdown, in a spreadsheet and as paths."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from ffp.core.plain import fault_of_path, markdown, one_line, shell_line, spreadsheet
from tests.helpers.hostile import NULL, VALUES, recorded

every_value = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)


@every_value
def test_a_shell_gets_each_word_as_it_was_and_runs_nothing_else(value, tmp_path):
    line = shell_line(["ffp", value, "", f"a {value}", "b"])
    assert line.isprintable()
    assert recorded(line, tmp_path) == [["ffp", value, "", f"a {value}", "b"]]


def test_a_shell_gets_bytes_that_are_no_text(tmp_path):
    name = b"a\xff'1\x1b".decode("utf-8", "surrogateescape")
    assert recorded(shell_line(["ffp", name]), tmp_path) == [["ffp", name]]


@pytest.mark.parametrize("value", [*VALUES.values(), NULL], ids=[*VALUES, "NUL"])
def test_markdown_shows_the_text_alone(value):
    """Rendered with HTML allowed, as the hub does it: no element, and the text as one line."""
    tags, text = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.handle_data = text.append
    parser.feed(MarkdownIt("commonmark", {"html": True}).enable(["table"]).render(f"Title: {markdown(value)}."))
    assert tags == ["p"]
    assert "".join(text).strip() == f"Title: {one_line(value)}."


@pytest.mark.parametrize("value", ["=1+1", "+1+1", "-1+A1", "@SUM(1)", "\t=1", "\r=1", VALUES["a formula"]])
def test_a_formula_is_a_text_in_a_spreadsheet(value):
    assert spreadsheet(value) == f"'{value}"


@pytest.mark.parametrize("value", ["-1", "+1.5", "-1.5e-05", "owl", "a=b", "", None, -0.5, 3, float("nan")])
def test_numbers_and_words_stay_as_they_are_in_a_spreadsheet(value):
    assert spreadsheet(value) is value


@pytest.mark.parametrize("path", ["data", "/a/b c/d.yaml", "../x", "модель/é", "a;b&c|(d)#!~=,@+", ".", ""])
def test_ordinary_paths_may_stand_in_a_workflow(path):
    assert fault_of_path(path) == ""


@pytest.mark.parametrize(
    "path", ["-x", "a'b", 'a"b', "a`b", "$(a)", "a\\b", "{a}", "<a>", "a\nb", "a\x1bb", "a\u202eb", NULL]
)
def test_paths_that_a_shell_or_snakemake_misreads_may_not(path):
    assert fault_of_path(path)
