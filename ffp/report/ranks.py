"""Ranks methods over models and sparsities: what a grid of several says that no single block of it does."""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ffp.report.collect import Block
from ffp.report.groups import Group, by_block, tied

SAMPLES, COVERED = 10_000, 95.0  # of the bootstrap over settings; per cent of it inside the interval


@dataclass(frozen=True)
class Rank:
    """A method among the others of its granularity.

    Attributes:
        method: Its name in the grid.
        granularity: What it removes.
        settings: Models x sparsities that count: those in which every ranked method has a score.
        mean: Mean rank by perplexity over them, 1 for the best; equal perplexities share a rank.
        interval: Percentiles of that mean when settings are drawn with replacement.
        wins, ties, losses: Pairs of it and another method in one setting; see groups.tied.
        group: Its first cells.
    """

    method: str
    granularity: str
    settings: int
    mean: float
    interval: tuple[float, float]
    wins: int
    ties: int
    losses: int
    group: Group


def rank(groups: list[Group]) -> list[Rank]:
    """Returns the methods of each granularity from the best mean rank on; none where there are fewer than 2 settings.

    Methods that lack a score in a setting, in which others have one, are left out.
    """
    done = [group for group in groups if not group.is_dense and group.row.get("ppl") is not None]
    found: list[Rank] = []
    for granularity in dict.fromkeys(group.block[1] for group in done):
        blocks = by_block(group for group in done if group.block[1] == granularity)
        tried = Counter(group.method for members in blocks.values() for group in members)
        whole = {method for method, count in tried.items() if count == len(blocks)}
        table = {block: {g.method: g for g in members if g.method in whole} for block, members in blocks.items()}
        if len(table) > 1 and len(whole) > 1:
            found += _ranked(granularity, table)
    return found


def _ranked(granularity: str, table: Mapping[Block, Mapping[str, Group]]) -> list[Rank]:
    """The methods of a granularity; table: the groups by block and method, without gaps."""
    values = pd.DataFrame({block: {name: g.row["ppl"] for name, g in row.items()} for block, row in table.items()})
    ranks = values.rank(axis=0)
    drawn = np.random.default_rng(0).integers(len(table), size=(SAMPLES, len(table)))
    outcomes = Counter[tuple[str, str]]()
    for row in table.values():
        for first, second in itertools.permutations(row.values(), 2):
            outcomes[first.method, _outcome(first, second)] += 1
    groups, found = next(iter(table.values())), []
    for name in ranks.mean(axis=1).sort_values(kind="stable").index:
        mine = ranks.loc[name].to_numpy()
        low, high = np.percentile(mine[drawn].mean(1), [(100 - COVERED) / 2, (100 + COVERED) / 2])
        wins, ties, losses = (outcomes[name, what] for what in ("win", "tie", "loss"))
        interval = (float(low), float(high))
        found.append(
            Rank(name, granularity, len(table), float(mine.mean()), interval, wins, ties, losses, groups[name])
        )
    return found


def _outcome(first: Group, second: Group) -> str:
    """What the first of two groups of one block comes to against the second."""
    if tied(first, second, "ppl"):
        return "tie"
    return "win" if first.row["ppl"] < second.row["ppl"] else "loss"
