"""Import: scores an allocation that somebody published.

Two kinds of file are read. EvoPress (Sieberling et al., arXiv:2410.14649) writes lines of the form
"model.layers.3.mlp.up_proj: -2": a level for each linear, which stands for a sparsity of
target + level * step / weights of the linear. The levels of a decision's linears add up. OWL and similar methods write
one number for each block, separated by blanks, commas or line breaks, with or without brackets: sparsities, or
densities as OWL's code prints them. The projection corrects any budget error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ffp.allocators.base import CalibrationStats, Heuristic
from ffp.allocators.blockwise import blocks_of
from ffp.core.errors import ConfigError
from ffp.core.problem import Allocation, FloatArray, PruningProblem
from ffp.core.projection import round_keep

LEVEL = re.compile(r"^\s*\S*?\.(\d+)\.(?:\S*\.)?(\w+)\s*:\s*(-?\d+)\s*$")
Share = Annotated[float, Field(ge=0, le=1)]


class Import(Heuristic):
    """Takes the allocation from a file or from the grid itself."""

    name: ClassVar[str] = "import"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "a published allocation, scored again"
    citation: ClassVar[str] = "-"
    reads_weights: ClassVar[bool] = False
    file_parameters: ClassVar[tuple[str, ...]] = ("file",)

    file: str = Field("", description="Path of the published file. Give this or `values`.")
    values: tuple[Share, ...] = Field((), strict=False, description="One ratio for each block. Give this or `file`.")
    kind: Literal["sparsity", "density"] = Field("sparsity", description="What a ratio is.")
    step: int = Field(1_000_000, ge=1, le=10**12, description="Weights between two levels of EvoPress.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.file) == bool(self.values):
            raise ValueError("needs either file or values. Give one of them in params.")
        return self

    def check(self, problem: PruningProblem) -> None:
        """Checks that the published allocation can be read, and is one of such a model.

        Raises:
            ConfigError: The file cannot be read or does not fit the model.
        """
        self._shares(problem)

    def allocate(self, problem: PruningProblem, stats: CalibrationStats) -> Allocation:
        """Returns the published allocation.

        Raises:
            ConfigError: The file cannot be read or does not fit the model.
        """
        keep = np.clip(problem.n_units * (1 - self._shares(problem)), problem.min_keep, problem.n_units)
        return round_keep(problem, keep)

    def _shares(self, problem: PruningProblem) -> FloatArray:
        """Returns the published sparsity of each decision."""
        text = self._text()
        if LEVEL.search(text.splitlines()[0] if text else ""):
            return self._levels(problem, text)
        return self._ratios(problem, self.values or _numbers(text, self.file))

    def _text(self) -> str:
        if not self.file:
            return ""
        try:
            return Path(self.file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"method 'import': {self.file} cannot be read. Name a text file in variants.") from error

    def _levels(self, problem: PruningProblem, text: str) -> FloatArray:
        """Returns the sparsity of each decision by EvoPress's levels."""
        levels: dict[str, list[int]] = {decision.name: [] for decision in problem.decisions}
        for line in text.splitlines():
            found = LEVEL.match(line)
            if found is None:
                raise ConfigError(f"method 'import': {self.file} has the line {line[:60]!r}, not `layer: level`.")
            block, linear, level = f"block{int(found[1]):02d}", found[2], int(found[3])
            module = "attention" if "attn" in line or "attention" in line else "ffn"
            for name in (block, f"{block}.{module}", f"{block}.{module}.{linear}"):
                if name in levels:
                    levels[name].append(level)
        if empty := [name for name, found in levels.items() if not found]:
            raise ConfigError(f"method 'import': {self.file} has no level for {empty[0]}. Give one of this model.")
        return np.array([problem.target + sum(levels[d.name]) * self.step / d.params for d in problem.decisions])

    def _ratios(self, problem: PruningProblem, values: Sequence[float]) -> FloatArray:
        """Returns the sparsity of each decision by its block's ratio."""
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
