"""Which units an allocation keeps, as sorted indices, and the checks of such indices. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ffp.core.errors import ArtifactError
from ffp.core.problem import Allocation, PruningProblem


def kept_units(
    problem: PruningProblem, allocation: Allocation, order: Mapping[str, npt.NDArray[np.int64]]
) -> dict[str, npt.NDArray[np.int32]]:
    """Returns the KV groups or channels that stay in each decision, ascending int32.

    Args:
        problem: What the allocation answers.
        allocation: How many units each decision keeps, or which ones.
        order: By decision, its KV groups or channels from best to worst; not read where the allocation says which ones.
    """
    allocation.check(problem)
    if (units := allocation.units) is not None:
        return {d.name: np.flatnonzero(units[d.name]).astype(np.int32) for d in problem.decisions}
    return {
        decision.name: np.sort(order[decision.name][: keep * decision.bundle]).astype(np.int32)
        for decision, keep in zip(problem.decisions, allocation.keep, strict=True)
    }


def learned_scales(allocation: Allocation) -> dict[str, npt.NDArray[np.float32]]:
    """Returns the scales of the kept KV groups or channels by decision, ascending; only where some are not 1."""
    kept = {name: factors[factors != 0] for name, factors in (allocation.units or {}).items()}
    return {name: scales for name, scales in kept.items() if (scales != 1).any()}


def count_kept(problem: PruningProblem, masks: Mapping[str, npt.NDArray[Any]], source: object) -> list[int]:
    """Returns the kept units of each decision.

    Args:
        problem: What the masks answer.
        masks: Indices by decision for "structured". Single weights are bits by parameter name;
            "model.layers.3.mlp.up_proj.weight" belongs to the decision "block03.ffn.up_proj", or to "block03" where
            a decision is N of M for a whole block.
        source: What the masks were read from, for errors.

    Raises:
        ArtifactError: They do not fit the problem; see check_kept.
    """
    if problem.granularity == "structured":
        check_kept(problem, masks, source)
        return [len(masks[decision.name]) // decision.bundle for decision in problem.decisions]
    weights = dict.fromkeys((decision.name for decision in problem.decisions), 0)
    spans_block = not problem.decisions[0].module
    for name, bits in masks.items():
        found = re.search(r"\.(\d+)\.(?:.*\.)?(\w+)\.weight$", name)
        block, linear = (f"block{int(found[1]):02d}", found[2]) if found else ("", "")
        owners = [d for d in weights if d == block or (not spans_block and d.split(".")[::2] == [block, linear])]
        if len(owners) != 1:
            raise ArtifactError(f"{source} does not fit the model: {name!r} belongs to no decision. Apply again.")
        weights[owners[0]] += int(np.bitwise_count(bits).sum())
    for decision in problem.decisions:
        if weights[decision.name] % decision.params_per_unit:
            raise ArtifactError(
                f"{source} keeps no whole N of {decision.n_units} weights of {decision.name}. Apply again."
            )
    return [weights[decision.name] // decision.params_per_unit for decision in problem.decisions]


def check_kept(problem: PruningProblem, kept: Mapping[str, npt.NDArray[Any]], source: object) -> None:
    """Checks that indices ascend, exist and belong to exactly this problem's decisions.

    Raises:
        ArtifactError: They do not; the message begins with `source`.
    """
    names = {decision.name for decision in problem.decisions}
    if set(kept) != names:
        odd = sorted(set(kept) ^ names)[0]
        raise ArtifactError(f"{source} does not fit the model: decision {odd!r} is in only one of them. Apply again.")
    for decision in problem.decisions:
        index, name, bundle = kept[decision.name], decision.name, decision.bundle
        if len(index) % bundle or len(index) < decision.min_keep * bundle:
            raise ArtifactError(
                f"{source} keeps {len(index)} indices of {name}, outside the multiples of {bundle} from "
                f"{decision.min_keep * bundle}. Apply again."
            )
        if (np.diff(index) <= 0).any() or index.min(initial=0) < 0:
            raise ArtifactError(f"{source} is damaged at {name}: indices must ascend. Delete it and apply again.")
        if index.max(initial=0) >= (n := decision.n_units * bundle):
            raise ArtifactError(f"{source} keeps index {index.max()} of {name}, which has {n}. Apply again.")
