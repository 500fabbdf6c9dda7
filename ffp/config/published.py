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
    """Perplexities that others reported, measured alike. values: by model, method and sparsity ("0.00" for dense).

    text: the name in config/texts/ whose whole test text they are of; context: tokens a window; calibration: the text
    that the methods saw; status: how sure the transcription is, e.g. "secondary source".
    """

    source: str
    status: str
    granularity: Granularity
    text: Name
    context: Count
    calibration: str
    values: Mapping[Name, Mapping[str, Mapping[str, Annotated[float, Field(gt=0)]]]]

    @field_validator("values")
    @classmethod
    def _two_decimals(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for sparsity in {s for methods in values.values() for by_sparsity in methods.values() for s in by_sparsity}:
            if not re.fullmatch(r"0\.\d\d", sparsity):
                raise ValueError(f"sparsity {sparsity!r} is not a quoted share with two decimals, such as '0.20'")
        return values


class PublishedConfig(Strict):
    """config/published.yaml. models: the hub repositories that hold a model named in the sets."""

    models: Mapping[Name, tuple[str, ...]]
    sets: tuple[PublishedSet, ...]

    @model_validator(mode="after")
    def _models_are_known(self) -> PublishedConfig:
        for name in {name for part in self.sets for name in part.values}:
            if name not in self.models:
                raise ValueError(f"model {name!r} has no entry under models: {did_you_mean(name, self.models)}")
        return self
