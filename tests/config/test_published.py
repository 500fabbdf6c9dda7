"""The published figures that the package brings: each can be traced, and stands under its own conditions."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ffp.config.published import PublishedConfig, PublishedSet
from tests.helpers import tiny

CONFIG = tiny.ROOT / "config"
PUBLISHED = PublishedConfig.model_validate(yaml.safe_load((CONFIG / "published.yaml").read_text("utf-8")))
SETS = {origin.source: origin for origin in PUBLISHED.sets}
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")
SET: dict[str, Any] = {
    "source": "A", "url": "https://arxiv.org/abs/2401.00001", "status": "primary", "granularity": "structured",
    "text": "words", "context": 2048, "calibration": "C4", "values": {"opt": {"Theirs": {"0.20": 31.5}}},
}  # fmt: skip


def figures(origin: PublishedSet) -> set[tuple[str, str, str]]:
    """The model, method and sparsity of each perplexity."""
    return {(m, method, s) for m, methods in origin.values.items() for method, found in methods.items() for s in found}


def test_every_set_has_its_own_source() -> None:
    assert len(SETS) == len(PUBLISHED.sets)


@pytest.mark.parametrize("origin", PUBLISHED.sets, ids=SETS)
def test_an_address_on_arxiv_is_that_of_the_source(origin: PublishedSet) -> None:
    named = ARXIV.findall(origin.source)
    if origin.url.startswith("https://arxiv.org/"):
        assert [origin.url] == [f"https://arxiv.org/abs/{number}" for number in named]
    else:
        assert "arXiv" not in origin.source or "README" in origin.source


def test_a_method_has_one_value_under_the_same_conditions() -> None:
    for one, other in combinations(PUBLISHED.sets, 2):
        if (one.granularity, one.text, one.context) == (other.granularity, other.text, other.context):
            both = {figure for figure in figures(one) & figures(other) if figure[1] != "dense"}
            assert not both, (one.source, other.source)


def test_texts_with_the_same_test_text_have_the_same_test_sources() -> None:
    for files in PUBLISHED.texts.values():
        bodies = [yaml.safe_load((CONFIG / f"texts/{name}.yaml").read_text("utf-8")) for name in files]
        tested = [[part for part in body["sources"] if "test" in part["splits"]] for body in bodies]
        assert all((t, b["order"]) == (tested[0], bodies[0]["order"]) for t, b in zip(tested, bodies, strict=True))


@pytest.mark.parametrize("sparsity", ["0.2", "0.200", "0.1255", "1.00", "20"])
def test_a_sparsity_has_the_digits_that_it_needs(sparsity: str) -> None:
    with pytest.raises(ValidationError, match="two decimals"):
        PublishedSet.model_validate(SET | {"values": {"opt": {"Theirs": {sparsity: 31.5}}}})


@pytest.mark.parametrize("sparsity", ["0.00", "0.20", "0.125"])
def test_two_decimals_or_three_are_a_sparsity(sparsity: str) -> None:
    PublishedSet.model_validate(SET | {"values": {"opt": {"Theirs": {sparsity: 31.5}}}})


@pytest.mark.parametrize(
    "changes", [{"status": "secondary source"}, {"url": "arXiv:2401.00001"}, {"url": "https://a b"}, {"context": 0}]
)
def test_a_set_has_a_status_of_the_list_and_an_address(changes: dict[str, Any]) -> None:
    PublishedSet.model_validate(SET)
    with pytest.raises(ValidationError, match=next(iter(changes))):
        PublishedSet.model_validate(SET | changes)
