"""Figures that others reported, for the report to set beside measured ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ffp.config.reading import Context, Name, Strict, Title, like
from ffp.core.problem import Granularity
from ffp.core.suggest import did_you_mean

Status = Literal["primary", "secondary", "unconfirmed"]
MEANINGS: Mapping[Status, str] = {
    "primary": "printed by those who measured it, in a publication or in their code's README",
    "secondary": "read in another document that quotes it",
    "unconfirmed": "found in no text when the figures were checked",
}


class PublishedSet(Strict):
    """Perplexities from one source, of methods with the same calibration, that were measured in the same way."""

    source: Title = Field(description="The publication, with its identifier.")
    url: Annotated[str, like(r"^https://[^\s\"'<>]+$", "not an https:// address without blanks and quotes")] = Field(
        description="An address at which a reader can open the source."
    )
    status: Status = Field(
        description="Where the values were read. "
        + " ".join(f"{status}: {meaning}." for status, meaning in MEANINGS.items())
    )
    remarks: Title | None = Field(None, description="What else a reader has to know of these values.")
    granularity: Granularity = Field(description="What was removed as a whole.")
    text: Name = Field(
        description="The text on whose whole test text the perplexities are: a name under `texts`, or a file in texts/."
    )
    context: Context | None = Field(
        description="Tokens in a window; null where it is not known, and then the report shows none of these values."
    )
    calibration: Title = Field(description="The text that the methods were calibrated on, in words.")
    values: Mapping[Name, Mapping[Title, Mapping[str, Annotated[float, Field(gt=0)]]]] = Field(
        description='Perplexities by model, method and sparsity: a quoted share such as "0.20" or "0.125", "0.00" for '
        "dense."
    )

    @field_validator("values")
    @classmethod
    def _two_decimals(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        for sparsity in {s for methods in values.values() for by_sparsity in methods.values() for s in by_sparsity}:
            if not re.fullmatch(r"0\.\d\d[1-9]?", sparsity):
                raise ValueError(
                    f"sparsity {sparsity!r} is not a quoted share with two decimals, such as '0.20' (three where two "
                    "are not enough, as in '0.125')"
                )
        return values


class PublishedConfig(Strict):
    """All published figures: config/published.yaml."""

    models: Mapping[Name, tuple[str, ...]] = Field(description="Hub repositories that hold the weights of a model.")
    texts: Mapping[Name, tuple[Name, ...]] = Field(
        default_factory=dict,
        description="Files in texts/ that have the test text of that name; without an entry, the file of that name.",
    )
    sets: tuple[PublishedSet, ...] = Field(description="The figures, source by source.")

    @model_validator(mode="after")
    def _models_are_known(self) -> PublishedConfig:
        for name in {name for part in self.sets for name in part.values}:
            if name not in self.models:
                raise ValueError(f"model {name!r} has no entry under models: {did_you_mean(name, self.models)}")
        return self

    def same_text(self, published: str, text: str) -> bool:
        """Returns whether a file in texts/ has the test text of a set."""
        return text in self.texts.get(published, (published,))
