"""Splits documents into four disjoint texts, whatever the order in which they come."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffp.store.layout import SPLITS

SHINGLE = 13


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: Its corpus and a hash of its words.
        source: Name of its corpus.
        group: Documents with equal groups stay together (an article).
        text: Its text.
        splits: The splits that its corpus may go to.
        corpus: Place of its corpus in the configuration.
        position: Its place in the corpus.
    """

    id: str
    source: str
    group: str
    text: str
    splits: tuple[str, ...] = SPLITS
    corpus: int = 0
    position: int = 0


@dataclass
class _Family:
    """Documents that must share a split, and the splits that all of them may go to."""

    members: list[Document]
    splits: frozenset[str]


def normalised(text: str) -> str:
    """Returns the text with every run of white space as one blank, which is equal for copies of a document."""
    return " ".join(text.split())


def shingles(text: str) -> Iterator[bytes]:
    """Yields 8-byte hashes of every run of 13 words, without case and punctuation; of a shorter text as a whole.

    13 words: the length at which GPT-3 and its successors call an overlap contamination (arXiv:2005.14165, app. C).
    """
    words = re.findall(r"\w+", text.lower())
    for start in range(max(1, len(words) - SHINGLE + 1)):
        yield hashlib.blake2b(" ".join(words[start : start + SHINGLE]).encode(), digest_size=8).digest()


def split(documents: Sequence[Document], shares: Mapping[Any, float]) -> dict[str, list[Document]]:
    """Splits documents, so that no document, group or run of 13 words lies in two splits.

    Documents that share a group or a run of 13 words, directly or through others, form a family. A family goes to one
    split, drawn by the hash of its least group. Copies (up to white space) are kept once. A document that would join
    families with no split in common is dropped; documents of a corpus that may go to the test come first and stay.

    Args:
        documents: Documents of all corpora, in any order.
        shares: Share of each split; they sum to 1.

    Returns:
        The documents of each split.
    """
    texts: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for family in families(documents):
        least = min(member.group for member in family.members)
        texts[_draw(least, {name: shares[name] for name in SPLITS if name in family.splits})] += family.members
    return texts


def families(documents: Sequence[Document]) -> list[_Family]:
    """Returns the families of the documents, without copies and clashing documents; see split()."""
    found: dict[int, _Family] = {}
    parent: list[int] = []
    owner: dict[bytes, int] = {}
    seen = set()
    for document in sorted(documents, key=_precedence):
        copy = hashlib.blake2b(normalised(document.text).encode()).digest()
        if copy in seen:
            continue
        keys = {b"group " + document.group.encode(), *shingles(document.text)}
        kin = {_root(parent, owner[key]) for key in keys if key in owner}
        common = frozenset(document.splits).intersection(*(found[root].splits for root in kin))
        if not common:
            continue
        seen.add(copy)
        joined = _Family([document], common)
        for root in sorted(kin):
            joined.members += found.pop(root).members
            parent[root] = len(parent)
        found[len(parent)] = joined
        owner.update(dict.fromkeys(keys, len(parent)))
        parent.append(len(parent))
    return list(found.values())


def _root(parent: list[int], node: int) -> int:
    """The family that a node belongs to now; shortens the path to it."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def _precedence(document: Document) -> tuple[int, int, int, str, str, str]:
    """Sort key: of two copies or clashing documents, the one of the corpus reserved for later splits comes first."""
    last = max(SPLITS.index(name) for name in document.splits)
    return -last, len(document.splits), document.corpus, document.id, document.group, document.text


def unit_hash(key: str) -> float:
    """Returns a number in [0, 1) drawn by sha256, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _draw(key: str, shares: Mapping[str, float]) -> str:
    """The split in whose share of [0, sum of shares) the hash of `key` falls."""
    point = unit_hash(key) * sum(shares.values())
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return list(shares)[-1]
