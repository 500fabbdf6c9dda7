"""Blocks in a few characters, against Python's own slices and ranges, and what names no block of the model."""

import pytest

from ffp.core.blocks import check_blocks, parse_blocks
from ffp.core.errors import ConfigError

NAMED = {
    "": [],
    "3": [3],
    "-1": [9],
    "-10": [0],
    "0-3": [0, 1, 2, 3],
    "4-4": [4],
    "7--1": [7, 8, 9],
    "-3--2": [7, 8],
    "8:": [8, 9],
    "-2:": [8, 9],
    ":2": [0, 1],
    ":-8": [0, 1],
    "2:4": [2, 3],
    "5:10": [5, 6, 7, 8, 9],
    "0-3,-2:": [0, 1, 2, 3, 8, 9],
    " 0 , 2-3 , 2 ": [0, 2, 3],
}


@pytest.mark.parametrize("text", NAMED)
def test_blocks_are_those_of_ranges_and_slices(text):
    assert parse_blocks(text, 10) == frozenset(NAMED[text])


@pytest.mark.parametrize(
    "text", ["first", "0,", ",", " ", "1..3", "0-3-5", "1:2:3", "--1", "0;2", "1.5", "²", "9999999"]
)
def test_what_names_no_blocks_is_refused_without_a_model(text):
    with pytest.raises(ConfigError, match=r"names no blocks\. Write numbers, ranges and slices .* e\.g\. '0-3,-2:'"):
        check_blocks(text)


@pytest.mark.parametrize(
    "text", ["10", "-11", "3-10", "-11-2", "5-4", "10:", ":11", "-11:", ":0", "4:4", "6:3", "0,12"]
)
def test_blocks_outside_the_model_and_empty_parts_are_refused_with_its_blocks(text):
    with pytest.raises(ConfigError, match=r"is empty, or leaves the model's 10 blocks, which are 0 to 9\. Name some"):
        parse_blocks(text, 10)


@pytest.mark.parametrize("text", [":", "0-9", "0:", "-10:", ":5,5:"])
def test_naming_every_block_is_refused(text):
    with pytest.raises(ConfigError, match=r"names all 10 blocks: nothing can be pruned\. Leave some out\."):
        parse_blocks(text, 10)
