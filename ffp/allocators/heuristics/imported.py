"""Import: re-score an allocation that somebody published.

Two kinds of file. EvoPress (Sieberling et al., arXiv:2410.14649): lines "model.layers.3.mlp.up_proj: -2", a level for
each linear, which stands for a sparsity of target + level * step / weights of the linear; the levels of a decision's
linears add up. OWL and its kin: one number for each block, separated by blanks, commas or lines, brackets allowed;
sparsities, or densities as OWL's code prints them. What does not meet the budget is made up for by the projection that
all methods use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ffp.allocators.base import CalibrationStats, Reward, SearchBudget, SearchResult
from ffp.allocators.blockwise import blocks_of
from ffp.allocators.tracker import check_number
from ffp.core.errors import ConfigError
from ffp.core.problem import FloatArray, PruningProblem
from ffp.core.projection import round_keep

KINDS = ("sparsity", "density")
LEVEL = re.compile(r"^\s*\S*?\.(\d+)\.(?:\S*\.)?(\w+)\s*:\s*(-?\d+)\s*$")


@dataclass(frozen=True)
class Import:
    """file: what was published; values: one ratio for each block, given in the grid itself; one of the two.

    kind: "sparsity" or "density", of ratios. step: weights between two levels of EvoPress.
    """

    file: str = ""
    values: Sequence[float] = ()
    kind: str = "sparsity"
    step: int = 1_000_000
    name: str = field(default="import", init=False)
    version: str = field(default="1", init=False)

    def __post_init__(self) -> None:
        if bool(self.file) == bool(self.values):
            raise ConfigError("method 'import' needs either file or values. Give one of them in variants.")
        if self.kind not in KINDS:
            raise ConfigError(f"method 'import': kind = {self.kind!r} is none of {', '.join(KINDS)}. Correct it.")
        check_number(self.name, "step", self.step, 1, 1e12, whole=True)

    def allocate(
        self,
        problem: PruningProblem,
        *,
        stats: CalibrationStats | None,
        reward: Reward | None,
        budget: SearchBudget,
        seed: int,
    ) -> SearchResult:
        """Answer `problem`; BudgetError if its target is infeasible, ConfigError if the file does not fit it."""
        text = self._text()
        if LEVEL.search(text.splitlines()[0] if text else ""):
            shares = self._levels(problem, text)
        else:
            shares = self._ratios(problem, list(self.values) or _numbers(text, self.file))
        keep = np.clip(problem.n_units * (1 - shares), problem.min_keep, problem.n_units)
        return SearchResult(round_keep(problem, keep))

    def _text(self) -> str:
        if not self.file:
            return ""
        try:
            return Path(self.file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"method 'import': {self.file} cannot be read. Name a text file in variants.") from error

    def _levels(self, problem: PruningProblem, text: str) -> FloatArray:
        """The sparsity of each decision by EvoPress's levels."""
        levels: dict[str, list[int]] = {decision.name: [] for decision in problem.decisions}
        for line in text.splitlines():
            found = LEVEL.match(line)
            if found is None:
                raise ConfigError(f"method 'import': {self.file} has the line {line[:60]!r}, not `layer: level`.")
            block, linear, level = f"block{int(found[1]):02d}", found[2], int(found[3])
            module = "attention" if "attn" in line or "attention" in line else "ffn"
            for decision in problem.decisions:
                if decision.name in (block, f"{block}.{module}", f"{block}.{module}.{linear}"):
                    levels[decision.name].append(level)
        if empty := [name for name, found in levels.items() if not found]:
            raise ConfigError(f"method 'import': {self.file} has no level for {empty[0]}. Give one of this model.")
        return np.array([problem.target + sum(levels[u.name]) * self.step / u.params for u in problem.decisions])

    def _ratios(self, problem: PruningProblem, values: Sequence[float]) -> FloatArray:
        blocks = blocks_of(problem)
        if len(values) != blocks.max() + 1 or not all(0 <= value <= 1 for value in values):
            raise ConfigError(
                f"method 'import' got {len(values)} ratios for {blocks.max() + 1} blocks, or some outside [0, 1]. "
                "Give one for each block of this model."
            )
        ratios = np.array(values, dtype=np.float64)[blocks]
        return ratios if self.kind == "sparsity" else 1 - ratios


def _numbers(text: str, source: str) -> list[float]:
    try:
        return [float(word) for word in re.split(r"[\s,\[\]()]+", text) if word]
    except ValueError as error:
        raise ConfigError(f"method 'import': {source} holds neither levels nor ratios: {error}.") from error
