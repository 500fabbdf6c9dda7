"""The one typed source of configuration: a grid file, and the models, texts and tasks that it names.

Torch-free and quick to import, because the Snakefile of every cluster job reads it again.
"""

from ffp.config.assets import (
    CorpusConfig,
    HubSource,
    LmHead,
    LocalSource,
    ModelConfig,
    Source,
    TaskConfig,
    TasksConfig,
    TextConfig,
    WheelPart,
    WheelPartsSource,
    WheelSource,
)
from ffp.config.experiment import Cell, Experiment
from ffp.config.grid import GridConfig
from ffp.config.published import PublishedSet
from ffp.config.reading import read_part

__all__ = [
    "Cell",
    "CorpusConfig",
    "Experiment",
    "GridConfig",
    "HubSource",
    "LmHead",
    "LocalSource",
    "ModelConfig",
    "PublishedSet",
    "Source",
    "TaskConfig",
    "TasksConfig",
    "TextConfig",
    "WheelPart",
    "WheelPartsSource",
    "WheelSource",
    "read_part",
]
