"""The card of an exported model with hostile titles, licences, revisions and file names."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from ffp.allocators import find
from ffp.config import Cell, ModelConfig
from ffp.models.card import model_card, remake_commands
from ffp.models.formats import Saved
from tests.helpers.hostile import VALUES, recorded

REMOVED = {"block_sparsity": 0.3, "model_sparsity": 0.2, "params": {"dense": 2, "kept": 1}}


def card(value: str, source: dict[str, object]) -> tuple[dict[str, object], str]:
    """The metadata and the body of a card in which everything free is the value."""
    model = ModelConfig.model_validate({"title": value, "license": value, "source": source})
    commands = remake_commands(
        grid_file=value, cell_path="tiny/structured/s0.30/owl/seed0", scores_file=value, format=[value], commit="abc",
        dirty=False,
    )  # fmt: skip
    text = model_card(
        model, Cell("tiny", "structured", "0.30", "owl", 0), method=find("owl"), units="2 channels", ranking="wanda",
        compensation="none", calibration=value, removed=REMOVED, scores={"dense": None, "pruned": None},
        commands=commands, version="1", saved=Saved("Run it so.", ["load(PATH)"]),
    )  # fmt: skip
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


def elements(body: str) -> Counter[str]:
    """How often each element of HTML is in rendered Markdown."""
    tags = Counter[str]()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.update([tag])
    parser.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    return tags


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_card_has_no_element_and_no_metadata_but_its_own(value):
    hub = {"kind": "hub", "repo": "a/b", "revision": value}
    for source in (hub, {"kind": "local", "path": value}):
        head, body = card(value, source)
        assert set(head) == {"library_name", "pipeline_tag", "license", "tags"} | (
            {"base_model"} if source is hub else set()
        )
        assert elements(body) == {
            "h1": 1, "h2": 3, "ul": 1, "li": 6, "p": 3, "pre": 2, "code": 4
        }  # fmt: skip


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_commands_of_a_card_can_be_pasted(value, tmp_path):
    _, body = card(value, {"kind": "local", "path": "x"})
    fence = re.search(r"With ffp 1:\n\n(`{3,})\ngit checkout abc\n(.*)\n\1\n", body, re.DOTALL)
    export = ["ffp", "export", "--config", value, "--cell", "tiny/structured/s0.30/owl/seed0", "--out", "OUT", value]
    snakemake = ["snakemake", "--cores", "all", "--config", f"grid={value}", "--", value]
    assert sorted(recorded(fence[2], tmp_path)) == sorted([snakemake, export])
