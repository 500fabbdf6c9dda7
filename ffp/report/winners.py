"""Which method, at what cost, on which models: the best of each model, granularity and sparsity, and its ties."""

from dataclasses import dataclass

from ffp.report.collect import Block
from ffp.report.groups import Group, best_and_ties, by_block


@dataclass(frozen=True)
class Winner:
    """The outcome of a block.

    Attributes:
        block: Model, granularity and sparsity.
        best: The method of the lowest perplexity.
        ties: Methods within the error of the difference, the lowest perplexity first.
        cheaper: The one of the ties that forwarded the fewest search tokens, if those are fewer than the best one's.
    """

    block: Block
    best: Group
    ties: list[Group]
    cheaper: Group | None


def winners(groups: list[Group]) -> list[Winner]:
    """Returns the outcome of each block in which two methods or more are finished; the dense model is none of them."""
    done = [group for group in groups if group.done and not group.is_dense and group.row.get("ppl") is not None]
    marks, found = best_and_ties(done, "ppl"), []
    for block, members in by_block(done).items():
        level = sorted((group for group in members if group.path in marks), key=lambda group: float(group.row["ppl"]))
        if level:
            cheapest = min(level, key=_tokens)
            cheaper = cheapest if _tokens(cheapest) < _tokens(level[0]) else None
            found.append(Winner(block, level[0], level[1:], cheaper))
    return found


def _tokens(group: Group) -> float:
    return float(group.row.get("search_tokens") or 0)
