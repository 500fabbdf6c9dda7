"""How a pruned model is written: one format, one file. See `create`."""

from __future__ import annotations

from typing import Any

from ffp.core.errors import ConfigError
from ffp.core.suggest import did_you_mean
from ffp.models.formats.base import Format, Saved
from ffp.models.formats.dense_shape import DenseShape
from ffp.models.formats.gguf import Gguf
from ffp.models.formats.transformers import Transformers

__all__ = ["FORMATS", "DenseShape", "Format", "Gguf", "Saved", "Transformers", "create"]
FORMATS: dict[str, type[Format]] = {each.name: each for each in (Transformers, Gguf, DenseShape)}


def create(name: str, **options: Any) -> Format:
    """Returns a format.

    Args:
        name: One of FORMATS.
        options: Its own options; None for its default. Lists become tuples.

    Raises:
        ConfigError: There is no such format, or it has no such option.
    """
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}: {did_you_mean(name, FORMATS)}")
    found, given = FORMATS[name], {key: _fixed(value) for key, value in options.items() if value is not None}
    if odd := sorted(given.keys() - found.__dataclass_fields__.keys()):
        raise ConfigError(f"the format {name} has no option {odd[0]!r}. Leave it out, or choose another format.")
    return found(**given)


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
