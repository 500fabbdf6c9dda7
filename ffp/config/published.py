"""Figures that others reported, for the report to set beside measured ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ffp.config.grid import Granularity
from ffp.config.reading import Count, Name, Strict
from ffp.core.suggest import did_you_mean


class PublishedSet(Strict):
    """Perplexities from one source that were measured in the same way."""

    source: str = Field(description="The publication, with its identifier.")
    status: str = Field(description="How reliable the transcription is: primary, or secondary source.")
    granularity: Granularity = Field(description="What was removed as a whole.")
    text: Name = Field(description="The file in texts/ on whose whole test text the perplexities are.")
    context: Count = Field(description="Tokens in a window.")
    calibration: str = Field(description="The text that the methods were calibrated on, in words.")
    values: Mapping[Name, Mapping[str, Mapping[str, Annotated[float, Field(gt=0)]]]] = Field(
        description='Perplexities by model, method and sparsity: a quoted share such as "0.20", "0.00" for dense.'
    )

    @field_validator("values")
    @classmethod
    def _two_decimals(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for sparsity in {s for methods in values.values() for by_sparsity in methods.values() for s in by_sparsity}:
            if not re.fullmatch(r"0\.\d\d", sparsity):
                raise ValueError(f"sparsity {sparsity!r} is not a quoted share with two decimals, such as '0.20'")
        return values


class PublishedConfig(Strict):
    """All published figures: config/published.yaml."""

    models: Mapping[Name, tuple[str, ...]] = Field(description="Hub repositories that hold the weights of a model.")
    sets: tuple[PublishedSet, ...] = Field(description="The figures, source by source.")

    @model_validator(mode="after")
    def _models_are_known(self) -> PublishedConfig:
        for name in {name for part in self.sets for name in part.values}:
            if name not in self.models:
                raise ValueError(f"model {name!r} has no entry under models: {did_you_mean(name, self.models)}")
        return self
