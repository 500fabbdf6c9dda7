"""From how many to which: the kept units of an allocation, as sorted indices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ffp.types import Allocation, ArtifactError, PruningProblem


def kept_units(
    problem: PruningProblem, allocation: Allocation, order: Mapping[str, npt.NDArray[np.int64]]
) -> dict[str, npt.NDArray[np.int32]]:
    """For each decision the ascending indices of its best `keep` units; order: indices from best to worst."""
    allocation.check(problem)
    return {
        unit.name: np.sort(order[unit.name][: keep * unit.size]).astype(np.int32)
        for unit, keep in zip(problem.units, allocation.keep, strict=True)
    }


def check_kept(problem: PruningProblem, kept: Mapping[str, npt.NDArray[np.int32]], source: object) -> None:
    """ArtifactError unless `kept` holds ascending, distinct, existing units for exactly this problem's decisions."""
    names = {unit.name for unit in problem.units}
    if set(kept) != names:
        odd = sorted(set(kept) ^ names)[0]
        raise ArtifactError(f"{source} does not fit the model: decision {odd!r} is in only one of them. Apply again.")
    for unit in problem.units:
        index = kept[unit.name]
        if len(index) % unit.size or len(index) < unit.min_keep * unit.size:
            raise ArtifactError(
                f"{source} keeps {len(index)} indices of {unit.name}, outside the multiples of {unit.size} from "
                f"{unit.min_keep * unit.size}. Apply again."
            )
        if (np.diff(index) <= 0).any() or index.min(initial=0) < 0:
            raise ArtifactError(f"{source} is damaged at {unit.name}: indices must ascend. Delete it and apply again.")
        if index.max(initial=0) >= (n := unit.n_groups * unit.size):
            raise ArtifactError(f"{source} keeps index {index.max()} of {unit.name}, which has {n}. Apply again.")
